"""The state of a monitor in the checkpoints of an accelerator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from traincheck_plugin.session.console import say
from traincheck_plugin.session.monitor import Monitor

FILE_NAME = "traincheck_{rank}.json"
"""In the folder of the checkpoint, one for each process, as the random states are."""


class Checkpoints:
    """Saves the state of a monitor with `Accelerator.save_state`, and loads it with `load_state`.

    Not through ``register_for_checkpointing``, after which a checkpoint that was made without
    watching could not be loaded, nor one made with it without watching.
    """

    def __init__(self, accelerator: Accelerator, monitor: Monitor) -> None:
        self._accelerator = accelerator
        self._monitor = monitor
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Register the hooks."""
        self._handles = [
            self._accelerator.register_save_state_pre_hook(self._save),
            self._accelerator.register_load_state_pre_hook(self._load),
        ]

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _path(self, directory: str) -> Path:
        return Path(directory, FILE_NAME.format(rank=self._accelerator.process_index))

    def _save(self, models: Any, weights: Any, directory: str) -> None:
        try:
            self._path(directory).write_text(json.dumps(self._monitor.state_dict()))
        except OSError as error:
            say(f"the checkpoint does not tell at which step it was made: {error}")

    def _load(self, models: Any, directory: str) -> None:
        try:
            state = json.loads(self._path(directory).read_text())
        except FileNotFoundError:
            # Made without watching, or by fewer processes.
            return
        except (OSError, ValueError) as error:
            say(f"the checkpoint does not tell at which step it was made: {error}")
            return
        if isinstance(state, dict):
            self._monitor.load_state_dict(state)
