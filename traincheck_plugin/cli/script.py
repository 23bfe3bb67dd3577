"""Runs a script in this process the way ``python SCRIPT ARGUMENTS`` runs it.

Only the standard library is imported here: a script may still set environment variables and
filters that numpy or torch read when they are first imported.
"""

from __future__ import annotations

import builtins
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Literal

from traincheck_plugin.cli.tracebacks import remove_own_frames
from traincheck_plugin.errors import ScriptError


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptEnd:
    """How a script ended.

    Attributes:
        how: it ran to its end, called `sys.exit`, raised, or was interrupted from the keyboard.
        detail: the exception on one line, or what was given to `sys.exit`.
        exit_code: what `python` would exit with.
    """

    how: Literal["finished", "exit", "exception", "interrupted"]
    detail: str = ""
    exit_code: int = 0


def read_script(path: str) -> bytes:
    """Return the source of the script at *path*.

    Raises:
        ScriptError: there is no readable file.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ScriptError(
            f"expected a Python script, but {path} does not exist; check the path"
        ) from error
    except IsADirectoryError as error:
        raise ScriptError(
            f"expected a Python script, but {path} is a directory; name the file to run"
        ) from error
    except OSError as error:
        raise ScriptError(
            f"expected a readable Python script, but {path} gives: {error.strerror}; "
            "check its permissions"
        ) from error


def run_script(path: str, arguments: Sequence[str]) -> ScriptEnd:
    """Run the script at *path* as ``__main__`` and report how it ended.

    What `python` prints when a script ends is printed: the traceback of an exception (without the
    frames of this package), or the text given to `sys.exit`. The module stays ``__main__``: exit
    handlers, worker processes and unpickling still need it.

    Raises:
        ScriptError: there is no readable file.
    """
    source = read_script(path)
    # Like python: absolute, but neither normalised nor with links resolved.
    file = os.path.join(os.getcwd(), path)
    module = _become_main(file, path, arguments, folder=os.path.dirname(os.path.realpath(file)))
    return _run(source, module)


def find_module(name: str) -> ModuleSpec:
    """Return where the module is that ``python -m NAME`` runs.

    Raises:
        ScriptError: there is none.
    """
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    try:
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = find_spec(f"{name}.__main__")
    except ImportError as error:
        raise ScriptError(f"expected a Python module, but {name} gives: {error}") from error
    if spec is None or spec.origin is None or not isinstance(spec.loader, SourceFileLoader):
        raise ScriptError(
            f"expected a Python module with a source file, but found none for {name}; "
            "check the name and the current directory"
        )
    return spec


def run_module(name: str, arguments: Sequence[str]) -> ScriptEnd:
    """Run the module *name* as ``python -m NAME`` does; the rest as `run_script`.

    Raises:
        ScriptError: there is no such module.
    """
    spec = find_module(name)
    file = str(spec.origin)
    source = read_script(file)
    module = _become_main(file, file, arguments, folder=os.getcwd())
    vars(module).update(__spec__=spec, __package__=spec.parent, __loader__=spec.loader)
    return _run(source, module)


def _run(source: bytes, module: ModuleType) -> ScriptEnd:
    # Shown when no longer handled: a hook of the script finds `sys.exc_info()` empty, as ever.
    error = _execute(source, module)
    if error is None:
        return ScriptEnd(how="finished")
    if isinstance(error, SystemExit):
        return _exit(error)
    replaced = _show(error)
    end = end_of(error)
    if replaced is None or end.how == "interrupted":
        return end
    return replace(end, exit_code=replaced)


def end_of(error: BaseException) -> ScriptEnd:
    """Return how a script, or a function of it, ended that raised *error*."""
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or isinstance(code, int):
            number = 0 if code is None else int(code)
            return ScriptEnd(how="exit", detail=f"sys.exit({number})", exit_code=number)
        return ScriptEnd(how="exit", detail=str(code), exit_code=1)
    if isinstance(error, KeyboardInterrupt):
        return ScriptEnd(how="interrupted", detail="KeyboardInterrupt", exit_code=130)
    return ScriptEnd(how="exception", detail=_one_line(error), exit_code=1)


def _execute(source: bytes, module: ModuleType) -> BaseException | None:
    """Execute *source* as *module* and return what it raised."""
    try:
        # dont_inherit: the __future__ imports of this file are not those of the script.
        code = compile(source, str(module.__file__), "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 running the user's script is what is asked for
    except BaseException as error:  # noqa: BLE001 whatever ends the script is shown and reported
        return error
    return None


def _become_main(file: str, name: str, arguments: Sequence[str], *, folder: str) -> ModuleType:
    """Replace ``__main__``, `sys.argv` and `sys.path[0]` by those of the script."""
    module = ModuleType("__main__")
    vars(module).update(
        __annotations__={},
        __builtins__=builtins,
        __cached__=None,
        __file__=file,
        __loader__=SourceFileLoader("__main__", file),
    )
    sys.modules["__main__"] = module
    sys.argv[:] = [name, *arguments]
    if not sys.flags.safe_path:
        # In place of the folder of the command, or the current one after python -m.
        sys.path[0] = folder
    return module


def _exit(request: SystemExit) -> ScriptEnd:
    if not (request.code is None or isinstance(request.code, int)):
        sys.stdout.flush()
        print(request.code, file=sys.stderr)
    return end_of(request)


def _show(error: BaseException) -> int | None:
    """Print *error* as python prints an uncaught exception; return the exit code of the hook.

    The hook is the script's own where it installed one; it may end the process with a code.
    """
    remove_own_frames(error)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as request:
        return _exit(request).exit_code
    except BaseException as hook_error:  # noqa: BLE001 python reports any failure of a hook
        remove_own_frames(hook_error)
        print("Error in sys.excepthook:", file=sys.stderr)
        sys.__excepthook__(type(hook_error), hook_error, hook_error.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(error), error, error.__traceback__)
    return None


def _one_line(error: BaseException) -> str:
    # The last line says where a syntax error is; of a multi-line message the first tells most.
    text = "".join(traceback.format_exception_only(error)).strip()
    lines = text.splitlines()
    return lines[-1] if isinstance(error, SyntaxError) else lines[0]
