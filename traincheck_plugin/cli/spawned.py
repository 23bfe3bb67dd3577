"""Records the ranks that a script starts by itself, through `torch.multiprocessing`.

`spawn` and `start_processes` number the processes that they start, and these take that number for
their rank. Which process trains is only known when all is over: so both record, the script and what
it started, and the traces of the ranks take the place of that of a script that did not train.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from traincheck_plugin.cli.collect_options import CollectOptions
from traincheck_plugin.cli.recording import Recording
from traincheck_plugin.cli.script import ScriptEnd, end_of
from traincheck_plugin.cli.termination import before_termination
from traincheck_plugin.cli.tracebacks import remove_own_frames
from traincheck_plugin.cli.words import say
from traincheck_plugin.config import Settings
from traincheck_plugin.errors import TrainCheckError

_FOLDER = "started_by_the_script"
_MODULE = "torch.multiprocessing.spawn"


@dataclass(frozen=True, slots=True)
class _Rank:
    """What a started process runs: the function that it was meant to run, recorded."""

    function: Callable[..., Any]
    options: CollectOptions
    settings: Settings
    command: tuple[str, ...]

    def __call__(self, rank: int, *args: Any) -> None:
        try:
            recording = Recording(self.options, replace(self.settings, rank=rank), self.command)
        except TrainCheckError as error:
            # There is a trace of this rank where the script starts its ranks a second time.
            say(f"rank {rank} is not recorded: {error}")
            self.function(rank, *args)
            return
        recording.start()
        if recording.failure:
            say(f"rank {rank} is not recorded: {recording.failure}")
        with before_termination(recording.abandon):
            try:
                self.function(rank, *args)
            except BaseException as error:
                remove_own_frames(error)
                recording.close(end_of(error))
                raise
            recording.close(ScriptEnd(how="finished"))


class SpawnedRanks:
    """The ranks that the script of a recording starts.

    Args:
        recording: of the script.
        options, settings: as of the recording.
    """

    def __init__(self, recording: Recording, options: CollectOptions, settings: Settings) -> None:
        self._recording = recording
        self._place = Path(recording.place)
        self._folder = self._place / _FOLDER
        self._options = replace(options, output_dir=str(self._folder))
        self._settings = settings
        # What is not a local folder cannot be moved.
        self._is_possible = "://" not in recording.place and settings.world_size == 1

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within the context, record each process that `start_processes` starts.

        To be entered when torch has been imported.
        """
        module, package = sys.modules.get(_MODULE), sys.modules.get("torch.multiprocessing")
        original = getattr(module, "start_processes", None)
        if not self._is_possible or original is None:
            yield
            return
        signature = inspect.signature(original)

        @functools.wraps(original)
        def start_processes(*args: Any, **kwargs: Any) -> Any:
            with suppress(TypeError):
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                function, number = bound.arguments["fn"], bound.arguments["nprocs"]
                settings = replace(self._settings, world_size=number)
                bound.arguments["fn"] = _Rank(
                    function, self._options, settings, self._recording.command
                )
                args, kwargs = bound.args, bound.kwargs
            return original(*args, **kwargs)

        for holder in (module, package):
            if getattr(holder, "start_processes", None) is original:
                vars(holder)["start_processes"] = start_processes
        try:
            yield
        finally:
            for holder in (module, package):
                if getattr(holder, "start_processes", None) is start_processes:
                    vars(holder)["start_processes"] = original

    def settle(self) -> bool:
        """Put the traces of the ranks where they belong, or away if the script trained itself.

        To be called when the recording is closed.

        Returns:
            Whether the trace is that of ranks now.
        """
        if os.path.isdir(self._folder) and not self._recording.saw("step"):
            own = self._place / f"rank_{self._settings.rank}"
            shutil.rmtree(own, ignore_errors=True)
            for entry in self._folder.iterdir():
                os.replace(entry, self._place / entry.name)
            self._folder.rmdir()
            return True
        shutil.rmtree(self._folder, ignore_errors=True)
        return False
