"""Turns a process that a launcher started into one of ``traincheck-collect``.

Called before anything else runs in it, so replacing it by exec costs the start of an interpreter
and loses nothing: process number, streams and environment stay what the launcher knows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from traincheck_plugin.config import Launch, place


def take_over() -> None:
    """Start this process anew as ``traincheck-collect`` if it is to be recorded."""
    launch = Launch.from_environment()
    program = program_of(sys.orig_argv, sys.argv)
    if launch is None or program is None or not _is_recorded(launch, sys.argv[0]):
        return
    flags, words = program
    command = [sys.executable, *flags, "-m", "traincheck_plugin.cli.collect", *launch.arguments]
    os.execve(sys.executable, [*command, *words], launch.restored_environment())  # noqa: S606


def program_of(
    original: Sequence[str], arguments: Sequence[str]
) -> tuple[list[str], list[str]] | None:
    """Return the flags of Python, and what it runs as options of ``traincheck-collect``.

    Args:
        original: `sys.orig_argv`.
        arguments: `sys.argv` before the program runs.

    Returns:
        None where it runs neither a script nor a module.
    """
    name, *rest = arguments or [""]
    before = list(original[1 : len(original) - len(rest)])
    if name == "-m":
        # Either ``-m module`` or ``-mmodule``.
        module = before.pop()
        if before and before[-1] == "-m":
            before.pop()
        else:
            module = module.removeprefix("-m")
        return before, ["--pymodule", module, "--", *rest]
    if not os.path.isfile(name):
        return None
    return before[:-1], ["--pyscript", name, "--", *rest]


def _is_recorded(launch: Launch, script: str) -> bool:
    """Return whether a launcher has given this process a rank, or it runs a named script.

    The place of the command itself is no news: on some clusters each machine has a rank of its
    own, which the launcher inherits too.
    """
    has_rank = any(place()) and place() != launch.place
    return has_rank or os.path.realpath(script) in launch.files
