"""Numbers read off tensors: at once on the CPU, later from a device, without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from traincheck_plugin.vocabulary import Array

Tensor = torch.Tensor


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured on this thread.

    What is launched then becomes part of the graph, and to wait for anything breaks it.
    """
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype in which numbers of any kind are read from a device."""
    # Metal has no float64.
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True, slots=True)
class _Transfer:
    host: Tensor
    event: Any
    receive: Callable[[Array], None]


class DeviceReadings:
    """Vectors that are copied back from a device while it goes on computing.

    `add` starts a copy into pinned memory; the numbers are handed out by `resolve`, about one
    training step later, when they have long arrived.
    """

    def __init__(self) -> None:
        self._transfers: deque[_Transfer] = deque()
        self._num_added = 0
        self._num_resolved = 0

    def add(self, vector: Tensor, receive: Callable[[Array], None]) -> None:
        """Copy *vector* to the host and give it to *receive* later."""
        if vector.is_cuda:
            # A script may have set another default device.
            host = torch.empty(vector.shape, dtype=vector.dtype, device="cpu", pin_memory=True)
            host.copy_(vector, non_blocking=True)
            event = torch.cuda.current_stream(vector.device).record_event()
        else:
            host, event = vector.cpu(), None
        self._transfers.append(_Transfer(host, event, receive))
        self._num_added += 1

    def take(self, vector: Tensor, receive: Callable[[Array], None], host: str) -> None:
        """Give *vector* to *receive*: at once if it is on a device of the type *host*."""
        if vector.device.type == host:
            receive(vector.numpy())
        else:
            self.add(vector, receive)

    def ticket(self) -> int:
        """Return what to `resolve` to get all numbers asked for so far; 0 if none is pending."""
        return self._num_added if self._transfers else 0

    def resolve(self, ticket: int) -> None:
        """Hand out all numbers that were asked for before *ticket* was given."""
        while self._num_resolved < ticket and self._transfers:
            transfer = self._transfers.popleft()
            self._num_resolved += 1
            if transfer.event is not None:
                transfer.event.synchronize()
            transfer.receive(np.asarray(transfer.host.numpy()))
