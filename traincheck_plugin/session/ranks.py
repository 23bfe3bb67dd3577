"""What the processes of one run tell each other, without ever waiting for one another."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from traincheck_plugin.config import Settings

_runs = itertools.count()


class Ranks:
    """The processes of a run, through the key-value store that `torch.distributed` has anyway.

    No collectives: a process that stops, or never answers, keeps nobody waiting. Where there is no
    store, each process is on its own.

    Attributes:
        prefix: of the keys of this run, the same in all processes.
    """

    def __init__(self) -> None:
        # Every process watches the same runs in the same order.
        self.prefix = f"traincheck/{next(_runs)}/"

    def are_several(self) -> bool:
        """Return whether there are other processes, and a way to reach them."""
        return _store() is not None

    def is_first_to_tell(self, text: str) -> bool:
        """Return whether no other process told *text* before, and note that this one does."""
        store = _store()
        if store is None:
            return True
        return bool(store.add(self.prefix + text, 1) == 1)

    def stop_after(self, step: int) -> None:
        """Ask all processes to stop when *step* is complete."""
        store = _store()
        if store is not None and store.add(f"{self.prefix}stopping", 1) == 1:
            store.set(f"{self.prefix}stop", str(step))

    def stop_step(self) -> int | None:
        """Return the step after which all are asked to stop, if any."""
        store = _store()
        if store is None or not store.check([f"{self.prefix}stop"]):
            return None
        return int(store.get(f"{self.prefix}stop"))


def place_of(settings: Settings) -> tuple[int, int]:
    """Return the rank of this process and how many there are.

    As `torch.distributed` has them, which a script may have told itself; else as the launcher set.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return settings.rank, settings.world_size


def _store() -> Any:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    if distributed.get_world_size() == 1:
        return None
    return distributed.distributed_c10d._get_default_store()
