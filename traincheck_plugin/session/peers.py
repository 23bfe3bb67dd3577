"""Reductions over the processes of a run that the training never notices.

A gloo group with connections of its own, made from a copy of the connection to the key-value store:
no stream, collective or lock of the training is shared. To be used in a thread of its own, since
every call may wait for other processes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from traincheck_plugin.vocabulary import Array, Int64

_TIMEOUT = timedelta(minutes=30)
"""How long a process may keep the others waiting: it may evaluate or save meanwhile."""

_JOIN_TIMEOUT = timedelta(minutes=5)
_LAST_WORDS = timedelta(seconds=1)


def are_there() -> bool:
    """Return whether this process can reach others of its run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Peers:
    """The processes of a run that take part; raises `RuntimeError` where one is lost.

    Attributes:
        rank, size: of this process among them, of how many.
        ranks: of all of them in the run.
    """

    def __init__(self, prefix: str, rank: int, size: int) -> None:
        """Copy the connection; called in the thread that trains, and waits for nobody.

        Args:
            prefix: of the keys in the store; the same in all processes that take part.
            rank: of this process among them.
            size: how many they are.

        Raises:
            RuntimeError: this torch cannot do it.
        """
        store = dist.distributed_c10d._get_default_store()
        if not hasattr(store, "clone") or not dist.is_gloo_available():
            raise RuntimeError("expected a torch with gloo and Store.clone (2.8), got an older one")
        self.rank, self.size = rank, size
        self.ranks: list[int] = []
        self._own = dist.get_rank()
        self._store = torch._C._distributed_c10d.PrefixStore(prefix, store.clone())
        self._group: Any = None

    def join(self) -> None:
        """Connect with all others."""
        group = dist.ProcessGroupGloo(
            torch._C._distributed_c10d.PrefixStore("gloo", self._store),
            self.rank,
            self.size,
            _JOIN_TIMEOUT,
        )
        group.set_timeout(_TIMEOUT)
        self._group = group
        self.ranks = [int(one[0]) for one in self.gathered(np.array([self._own], np.int64))]

    def spread(self, values: Array) -> tuple[Int64, Int64]:
        """Return the least and the greatest of each of *values*, 64 bits, over all processes."""
        own = values.view(np.int64)
        # The greatest is the complement of the least complement: one reduction gives both.
        both = torch.from_numpy(np.concatenate([own, ~own]))
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MIN  # type: ignore[assignment]
        self._group.allreduce([both], options).wait()
        low, high = both.numpy().reshape(2, -1)
        return low, ~high

    def gathered(self, values: Array) -> list[Int64]:
        """Return the *values* of each process, in order of rank; equally many of each."""
        own = torch.from_numpy(values.view(np.int64).copy())
        found = [torch.empty_like(own) for _ in range(self.size)]
        self._group.allgather([found], [own]).wait()
        return [one.numpy() for one in found]

    def leave(self, how: str) -> None:
        """Tell the others how this process ended, and part: nobody has to wait for it."""
        try:
            self._store.set(f"left/{self.rank}", how)
        finally:
            self._group = None

    def those_who_left(self) -> dict[int, str]:
        """Return how each process ended that said so."""
        left = {}
        self._store.set_timeout(_LAST_WORDS)
        for rank in range(self.size):
            key = f"left/{rank}"
            if self._store.check([key]):
                left[self.ranks[rank] if self.ranks else rank] = self._store.get(key).decode()
        return left
