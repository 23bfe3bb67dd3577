"""Which modules ran, in which order, and whether autograd recorded it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from traincheck_plugin.events import NOT_RUN, RUN_WITHOUT_GRADIENTS
from traincheck_plugin.vocabulary import Int32

MAX_MODULES = 1 << 20
"""Modules that are made and thrown away in every step must not fill the memory."""

_is_grad_enabled: Callable[[], bool] = torch.is_grad_enabled


class ModuleRuns:
    """The last run of each module, by its id.

    A run has a stamp that grows; noting one is all that is done at each forward.
    """

    def __init__(self) -> None:
        self._next = itertools.count(1).__next__
        self._with_gradients: dict[int, int] = {}
        self._without: dict[int, int] = {}
        # Of an optimizer that did not step yet, when it was made.
        self._at_last_step: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def note(self, key: int) -> None:
        """Note that the module with this id runs."""
        (self._with_gradients if _is_grad_enabled() else self._without)[key] = self._next()

    def made(self, optimizer: Any) -> None:
        """Note that *optimizer* was made: what ran before led to the steps of others."""
        self._at_last_step[optimizer] = self._next()

    def stepped(self, optimizer: Any) -> None:
        """Note that *optimizer* completed a step: what runs from now on leads to its next one."""
        self._at_last_step[optimizer] = self._next()
        if len(self._with_gradients) + len(self._without) > MAX_MODULES:
            self._with_gradients.clear()
            self._without.clear()

    def since_step(self, optimizer: Any | None, keys: Sequence[int]) -> Int32:
        """Return for each module how it ran since *optimizer* stepped last, or was made.

        Args:
            optimizer: whose step; since the beginning, for None.
            keys: ids of the modules.

        Returns:
            Its place in the order of those that ran with gradients, counted from 0, else
            `RUN_WITHOUT_GRADIENTS` or `NOT_RUN`.
        """
        since = 0 if optimizer is None else self._at_last_step.get(optimizer, 0)
        stamps, others = self._with_gradients, self._without
        ran = np.array([stamps.get(key, 0) for key in keys], np.int64)
        places = np.full(len(keys), NOT_RUN, np.int32)
        if len(others):
            without = np.array([others.get(key, 0) for key in keys], np.int64)
            places[without > since] = RUN_WITHOUT_GRADIENTS
        recent = np.flatnonzero(ran > since)
        places[recent[np.argsort(ran[recent])]] = np.arange(len(recent), dtype=np.int32)
        return places
