"""Runs a launcher, such as torchrun, so that every rank that it starts is recorded."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from traincheck_plugin.cli.collect_options import CollectOptions
from traincheck_plugin.cli.recording import default_directory
from traincheck_plugin.cli.words import count_of, joined
from traincheck_plugin.config import Launch, Settings, child_environment, place
from traincheck_plugin.errors import ScriptError, TraceError

_HOOK = Path(__file__).parent / "hook"
_SIGNALED = 128


def launch(options: CollectOptions, settings: Settings) -> tuple[int, str]:
    """Run the launcher that the arguments of *options* are; return its exit code and what to say.

    Raises:
        ScriptError: there is no such command.
        TraceError: the directory holds a trace.
    """
    command = options.args
    if settings.disabled:
        exit_code = _run(command, child_environment({}))
        return exit_code, "TRAINCHECK_DISABLE is set: nothing was recorded"
    files = [word for word in command if word.endswith(".py") and os.path.isfile(word)]
    directory = options.output_dir or settings.output_dir
    if directory is None:
        directory = default_directory(Path(files[0] if files else command[0]).stem)
    elsewhere = directory if "://" in directory else os.path.abspath(directory)
    _expect_no_trace(elsewhere, directory)
    launched = Launch(
        arguments=options.for_launched(elsewhere),
        files=tuple(map(os.path.realpath, files)),
        hook=str(_HOOK),
        place=place(),
    )
    exit_code = _run(command, launched.environment())
    return exit_code, summary_of_ranks(elsewhere, directory)


def _expect_no_trace(place: str, shown: str) -> None:
    # A rank of another machine may have begun to write; only what has ended is of another run.
    if "://" not in place and any(Path(place).glob("rank_*/end.json")):
        raise TraceError(
            f"expected a new directory, but {shown} holds a trace; "
            "choose another --output-dir, or delete it first"
        )


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise ScriptError(
            f"expected a command that launches scripts, but {command[0]} gives: {error.strerror}; "
            "check what follows --"
        ) from error

    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    # The terminal sends Ctrl-C to the launcher as well: it decides what that means.
    handlers: list[tuple[int, Any]] = [
        (signal.SIGTERM, signal.signal(signal.SIGTERM, pass_on)),
        (signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN)),
    ]
    try:
        exit_code = process.wait()
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    return exit_code if exit_code >= 0 else _SIGNALED - exit_code


def summary_of_ranks(place: str, shown: str) -> str:
    """Return what to say of the traces of several ranks: how many wrote, and which did not end.

    Args:
        place: of the trace, absolute.
        shown: the same, as the user is shown it.
    """
    from traincheck_plugin.trace.reader import open_run

    try:
        run = open_run(place)
    except TraceError:
        return (
            "nothing was recorded: expected a process that runs a script named after --, or to "
            "which the launcher gives a RANK, and that imports torch"
        )
    problems = list(run.problems)
    for trace in run.ranks:
        end = trace.end
        if end is None:
            problems.append(f"rank {trace.rank} was killed: its trace has no end")
        elif end.outcome.how == "exception":
            problems.append(f"rank {trace.rank} ended by {end.outcome.detail}")
        problems += end.problems if end is not None else ()
    summary = f"{count_of(len(run.ranks), 'rank')} in {shown}"
    return f"{summary}; {joined(list(dict.fromkeys(problems)))}" if problems else summary
