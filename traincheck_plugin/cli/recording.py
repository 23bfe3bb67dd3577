"""Records one script, from the moment it imports torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from traincheck_plugin.cli.collect_options import CollectOptions
from traincheck_plugin.cli.script import ScriptEnd
from traincheck_plugin.config import Settings
from traincheck_plugin.errors import ConfigError, TraceError, TrainCheckError

if TYPE_CHECKING:
    from traincheck_plugin.plan import Plan
    from traincheck_plugin.session.session import Session
    from traincheck_plugin.trace.manifest import Outcome
    from traincheck_plugin.vocabulary import Role


class Recording:
    """The trace of one script, from before it starts until it has ended.

    numpy and torch read environment variables when they are imported (`OMP_NUM_THREADS`, say). A
    script that sets them first must find that they still count: so neither is imported here
    before the script itself has imported torch, and the session begins there.

    Attributes:
        directory: of the trace, as the user is shown it: a path or URI.
        place: the same, absolute.
        command: as typed.
        failure: why nothing could be recorded at all; "" while all is well.
    """

    def __init__(
        self, options: CollectOptions, settings: Settings, command: tuple[str, ...]
    ) -> None:
        """Make sure, before the script runs, that it can be recorded; *command* is as typed.

        Raises:
            TrainCheckError: the trace cannot be written, or the invariants cannot be read.
        """
        self.directory = _choose_directory(options, settings)
        self.failure = ""
        self._options = options
        self._settings = settings
        self.command = command
        self._remarks: list[str] = []
        self._plan = _plan_of(options.invariants, self._remarks) if options.invariants else None
        self.place = _prepare(self.directory, settings.rank)
        self._session: Session | None = None
        self._process = os.getpid()

    def start(self) -> None:
        """Begin; called when the script has imported torch. Never raises."""
        try:
            self._session = self._open_session()
            self._session.start()
        except Exception as error:  # noqa: BLE001 the training must go on, whatever it is
            reason = str(error) if isinstance(error, TrainCheckError) else repr(error)
            self.failure = f"recording could not start: {reason}"

    def close(self, end: ScriptEnd) -> None:
        """Stop and finish the trace; in a forked child, do nothing."""
        if not self.is_here:
            return
        if self._session is None:
            self._clean_up()
            return
        try:
            self._session.close(_outcome(end))
        except KeyboardInterrupt:
            # Somebody is in a hurry; what is on the disk can be read.
            self._remarks.append("finishing the trace was interrupted: its end may be missing")

    def abandon(self) -> None:
        """Finish the trace in whatever state it is: the process is told to terminate."""
        if self._session is not None:
            self._session.abandon(
                _outcome(ScriptEnd(how="interrupted", detail="SIGTERM", exit_code=143))
            )
        else:
            self._clean_up()

    @property
    def is_here(self) -> bool:
        """Whether this is the process that records, and not a child that it forked."""
        return os.getpid() == self._process

    @property
    def has_started(self) -> bool:
        return self._session is not None

    @property
    def problems(self) -> tuple[str, ...]:
        """What was not recorded, a sentence each."""
        return (*self._remarks, *(self._session.problems if self._session else ()))

    @property
    def num_windows(self) -> int:
        return self._session.tally.num_windows if self._session else 0

    @property
    def num_calls(self) -> int:
        return self._session.tally.num_calls if self._session else 0

    @property
    def num_bytes(self) -> int | None:
        """Size of the trace on disk; None where it is not a local one."""
        if "://" in self.place:
            return None
        files = Path(self.place, f"rank_{self._settings.rank}").glob("*")
        return sum(file.stat().st_size for file in files)

    def saw(self, *roles: Role) -> bool:
        """Return whether a call of any of *roles* was recorded."""
        return self._session is not None and not self._session.tally.roles.isdisjoint(roles)

    def _clean_up(self) -> None:
        """Remove the directories made for a trace that never began."""
        if "://" not in self.place:
            for empty in (Path(self.place, f"rank_{self._settings.rank}"), Path(self.place)):
                with suppress(OSError):
                    empty.rmdir()

    def _open_session(self) -> Session:
        # The script has just imported torch: from here on everything may be imported.
        from traincheck_plugin.plan import Plan
        from traincheck_plugin.recorder.sampling import Sampling
        from traincheck_plugin.recorder.variables import Selection
        from traincheck_plugin.session.session import Session, SessionOptions

        options, settings = self._options, self._settings
        return Session(
            SessionOptions(
                plan=Plan.full() if self._plan is None else self._plan,
                trace=self.place,
                rank=settings.rank,
                world_size=settings.world_size,
                sampling=Sampling(
                    interval=options.sampling_interval, warm_up_steps=options.warm_up_steps
                ),
                selection=Selection(model_names=options.models_to_track),
                modules_to_instrument=options.modules_to_instr,
                command=self.command,
                script=Path(options.pyscript).name or options.pymodule,
                notes={"invariants": options.invariants, "script_arguments": options.args},
            )
        )


def _choose_directory(options: CollectOptions, settings: Settings) -> str:
    chosen = options.output_dir or settings.output_dir
    if chosen is not None:
        return chosen
    if settings.world_size > 1:
        # Each process would name its own after the time at which it started.
        raise ConfigError(
            f"expected --output-dir, as this is one of {settings.world_size} processes that write "
            "one trace, got none; give all of them the same"
        )
    return default_directory(options.program)


def default_directory(program: str) -> str:
    """Return the directory of the trace of *program*, run now, where the user names none."""
    time = datetime.now().astimezone().strftime("%Y%m%d_%H%M%S")
    return f"traincheck_{program}_trace_{time}"


def _prepare(directory: str, rank: int) -> str:
    """Return the absolute place of the trace, made ready where that needs no pyarrow."""
    if "://" in directory:
        return directory
    # The script may change the current directory.
    place = os.path.abspath(directory)
    own = Path(place, f"rank_{rank}")
    try:
        own.mkdir(parents=True, exist_ok=True)
        is_taken = any(own.iterdir())
    except OSError as error:
        raise TraceError(
            f"expected a directory for the trace, but {directory} gives: {error.strerror}; "
            "choose another --output-dir"
        ) from error
    if is_taken:
        raise TraceError(
            f"expected a new directory, but {directory} holds a trace; "
            "choose another --output-dir, or delete it first"
        )
    return place


def _plan_of(sources: Sequence[str], remarks: list[str]) -> Plan:
    from traincheck_plugin.relations.loading import load_checkable
    from traincheck_plugin.relations.needs import plan_for
    from traincheck_plugin.relations.registry import relations

    invariants, left_out = load_checkable(sources)
    remarks += left_out
    return plan_for(invariants, relations())


def _outcome(end: ScriptEnd) -> Outcome:
    from traincheck_plugin.trace.manifest import Outcome

    return Outcome(how=end.how, detail=end.detail, exit_code=end.exit_code)
