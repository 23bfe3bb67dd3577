"""``traincheck-collect``: runs a training script, unchanged, and records what its training does.

The script owns the process: its output, its exit code and the way it dies stay as they are. What
this command has to say is one line on stderr, at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack

from traincheck_plugin.annotations import provide_upstream_names
from traincheck_plugin.cli.after_import import after_import
from traincheck_plugin.cli.collect_options import CollectOptions, parse_options
from traincheck_plugin.cli.launch import launch, summary_of_ranks
from traincheck_plugin.cli.recording import Recording
from traincheck_plugin.cli.script import (
    ScriptEnd,
    find_module,
    read_script,
    run_module,
    run_script,
)
from traincheck_plugin.cli.spawned import SpawnedRanks
from traincheck_plugin.cli.termination import before_termination
from traincheck_plugin.cli.words import count_of, joined, say, size_of
from traincheck_plugin.config import Settings
from traincheck_plugin.errors import TrainCheckError

NO_WORK = 2
"""The exit code that says: the command could not do its work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Raises:
        KeyboardInterrupt: the script was interrupted; the process is to die of that.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = parse_options(arguments)
        settings = Settings.from_environment()
        if not (options.pyscript or options.pymodule):
            exit_code, line = launch(options, settings)
            say(line)
            return exit_code
        _look_for(options)
        recording = None if settings.disabled else _recording(options, settings, arguments)
        if recording is None:
            with provide_upstream_names():
                end = _run(options)
            exit_code, line = end.exit_code, "TRAINCHECK_DISABLE is set: nothing was recorded"
        else:
            ranks = SpawnedRanks(recording, options, settings)
            end = _record(recording, ranks, options)
            if not recording.is_here:
                # A child that the script forked ends here too, as it would under python.
                return end.exit_code
            if ranks.settle():
                exit_code, line = (
                    end.exit_code,
                    summary_of_ranks(recording.place, recording.directory),
                )
            else:
                exit_code, line = _conclusion(recording, end)
    except TrainCheckError as error:
        say(str(error))
        return NO_WORK
    if options.is_launched:
        # The command that runs the launcher sums up; to the launcher this process is the script.
        exit_code = end.exit_code
        if recording is not None and recording.failure:
            say(f"rank {settings.rank} is not recorded: {recording.failure}")
    else:
        say(line)
    if end.how == "interrupted":
        # Python dies of the signal, so that a calling shell stops too; it has told why already.
        sys.excepthook = lambda *_: None
        raise KeyboardInterrupt
    return exit_code


def _look_for(options: CollectOptions) -> None:
    """Raise `ScriptError` if there is nothing to run."""
    if options.pymodule:
        find_module(options.pymodule)
    else:
        read_script(options.pyscript)


def _run(options: CollectOptions) -> ScriptEnd:
    if options.pymodule:
        return run_module(options.pymodule, options.args)
    return run_script(options.pyscript, options.args)


def _recording(
    options: CollectOptions, settings: Settings, arguments: Sequence[str]
) -> Recording | None:
    """Return the recording that is to be made; None where it cannot be, and must not hinder."""
    try:
        return Recording(options, settings, ("traincheck-collect", *arguments))
    except TrainCheckError as error:
        if not options.is_launched:
            raise
        say(f"rank {settings.rank} is not recorded: {error}")
        return None


def _record(recording: Recording, ranks: SpawnedRanks, options: CollectOptions) -> ScriptEnd:
    def start() -> None:
        recording.start()
        stack.enter_context(ranks.recorded())

    with (
        ExitStack() as stack,
        provide_upstream_names(),
        after_import("torch", start),
        before_termination(recording.abandon),
    ):
        end = _run(options)
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
        size = "" if recording.num_bytes is None else f", {size_of(recording.num_bytes)}"
        summary = (
            f"{count_of(recording.num_windows, 'window')}, {count_of(recording.num_calls, 'call')}"
            f"{size} in {recording.directory}"
        )
    if recording.problems:
        summary += f"; {joined(recording.problems)}"
    return end.exit_code, summary


if __name__ == "__main__":
    sys.exit(main())
