"""``traincheck-collect``: runs a training script, unchanged, and records what its training does.

The script owns the process: its output, its exit code and the way it dies stay as they are. What
this command has to say is one line on stderr, at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

from traincheck_plugin.annotations import provide_upstream_names
from traincheck_plugin.cli.after_import import after_import
from traincheck_plugin.cli.collect_options import CollectOptions, parse_options
from traincheck_plugin.cli.recording import Recording
from traincheck_plugin.cli.script import ScriptEnd, read_script, run_script
from traincheck_plugin.cli.termination import before_termination
from traincheck_plugin.config import Settings
from traincheck_plugin.errors import TrainCheckError

NO_WORK = 2
"""The exit code that says: the command could not do its work."""

_MOST_PROBLEMS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Raises:
        KeyboardInterrupt: the script was interrupted; the process is to die of that.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = parse_options(arguments)
        settings = Settings.from_environment()
        read_script(options.pyscript)
        if settings.disabled:
            with provide_upstream_names():
                end = run_script(options.pyscript, options.args)
            exit_code, line = end.exit_code, "TRAINCHECK_DISABLE is set: nothing was recorded"
        else:
            recording = Recording(options, settings, ("traincheck-collect", *arguments))
            end = _record(recording, options)
            if not recording.is_here:
                # A child that the script forked ends here too, as it would under python.
                return end.exit_code
            exit_code, line = _conclusion(recording, end)
    except TrainCheckError as error:
        _say(str(error))
        return NO_WORK
    _say(line)
    if end.how == "interrupted":
        # Python dies of the signal, so that a calling shell stops too; it has told why already.
        sys.excepthook = lambda *_: None
        raise KeyboardInterrupt
    return exit_code


def _record(recording: Recording, options: CollectOptions) -> ScriptEnd:
    with (
        provide_upstream_names(),
        after_import("torch", recording.start),
        before_termination(recording.abandon),
    ):
        end = run_script(options.pyscript, options.args)
        recording.close(end)
    return end


def _conclusion(recording: Recording, end: ScriptEnd) -> tuple[int, str]:
    """Return the exit code, and the line to say."""
    has_crashed = end.how == "exception"
    if recording.failure:
        return end.exit_code, f"nothing was recorded: {recording.failure}"
    if has_crashed and not recording.saw("construct", "step", "forward"):
        return NO_WORK, (
            f"the script failed before training started: {end.detail}; no training was recorded"
        )
    if not recording.has_started:
        return end.exit_code, "warning: the script never imported torch; nothing was recorded"
    if not recording.saw("step"):
        summary = (
            "warning: no optimizer step was seen, so there is nothing to learn from "
            f"in {recording.directory}"
        )
    else:
        size = "" if recording.num_bytes is None else f", {_size(recording.num_bytes)}"
        summary = (
            f"{_count(recording.num_windows, 'window')}, {_count(recording.num_calls, 'call')}"
            f"{size} in {recording.directory}"
        )
    if recording.problems:
        summary += f"; {_joined(recording.problems)}"
    return end.exit_code, summary


def _joined(problems: Sequence[str]) -> str:
    more = len(problems) - _MOST_PROBLEMS
    ending = [f"and {more} more in end.json"] if more > 0 else []
    return "; ".join([*problems[:_MOST_PROBLEMS], *ending])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _say(line: str) -> None:
    # The script may have closed or replaced either stream.
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(Exception):
        print(f"traincheck-collect: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
