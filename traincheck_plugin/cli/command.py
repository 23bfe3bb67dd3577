"""How every command ends: errors become one line and an exit code, here and nowhere else.

| code | meaning |
|---|---|
| 0 | the work is done, and nothing was reported |
| 1 | the work is done, and violations were reported |
| 2 | the work could not be done; one line on stderr says why |
| 130, 141 | interrupted from the keyboard; whoever read the output went away |
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from traincheck_plugin.errors import TrainCheckError

EXIT_OK = 0
EXIT_VIOLATIONS = 1
EXIT_FAILURE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def run_command(name: str, work: Callable[[], int]) -> int:
    """Do the work of the command *name* and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A variable may be called what the terminal's encoding has no letter for.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        code = work()
        sys.stdout.flush()
    except TrainCheckError as error:
        return _fail(name, str(error))
    except BrokenPipeError:
        # What is still buffered has nowhere to go; without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        return _fail(name, f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        _fail(name, "interrupted")
        return EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001 - a defect of ours: shown whole, and never taken for a finding
        traceback.print_exc()
        return _fail(name, "this is a defect in traincheck-plugin; please report the lines above")
    return code


def _fail(name: str, message: str) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_FAILURE
