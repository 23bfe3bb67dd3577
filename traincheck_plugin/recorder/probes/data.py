"""Data loaders: when one is started, and which batches it delivers in which order."""

from __future__ import annotations

import functools
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from traincheck_plugin.events import Frame
from traincheck_plugin.recorder.calls import OpenCall
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.samplers import epoch_of, facts_of, key_of_indices
from traincheck_plugin.recorder.stored import Stored
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced
from traincheck_plugin.vocabulary import NONE

MAX_STARTS = 2
"""Starts of a loader beside that for training that are worth to be listened to: the first, and one
to compare with it."""


class _Place:
    """Where an iterator is: in which start of its loader, after how many batches.

    The loader itself may be gone: ``for batch in DataLoader(...)`` keeps the iterator alone.
    """

    __slots__ = ("batch", "epoch", "facts", "label", "loader", "start")

    def __init__(self, loader: Any, label: str, start: int) -> None:
        self.loader = weakref.ref(loader)
        self.label = label
        self.start = start
        self.batch = 0
        self.facts = facts_of(loader)
        self.epoch = epoch_of(loader)


class DataProbe:
    """Observes `DataLoader.__iter__` and the ``__next__`` of its iterators."""

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Patch the two classes; a loader that overrides ``__iter__`` calls the base's."""
        self._tape = tape
        self._places: weakref.WeakKeyDictionary[Any, _Place] = weakref.WeakKeyDictionary()
        self._starts: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        patches.wrap(DataLoader, "__iter__", self._iter)
        self._indices: weakref.WeakKeyDictionary[Any, deque[Any]] = weakref.WeakKeyDictionary()
        patches.wrap(_BaseDataLoaderIter, "__next__", self._next)
        patches.wrap(_BaseDataLoaderIter, "_next_index", self._next_index)
        patches.wrap(_BaseDataLoaderIter, "_reset", self._reset)

    def detach(self) -> None:
        """Nothing beyond the patches."""

    def _iter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        @functools.wraps(function)
        def __iter__(loader: Any) -> Any:  # noqa: N807
            if is_traced() or not tape.is_active:
                return function(loader)
            entry = None
            with tape.problems:
                if tape.is_training_thread():
                    is_new = self._starts.get(loader, 0) < MAX_STARTS
                    if is_new and not tape.tracker.trains_on(loader):
                        tape.starts_loader()
                    tape.tracker.started_loader(loader)
                if tape.is_listening:
                    api = tape.apis.method(type(loader), "__iter__", "data", DataLoader)
                    entry = tape.open("data", api, subject=loader)
            try:
                iterator = function(loader)
            except BaseException as error:
                tape.close(entry, type(error).__name__)
                raise
            tape.close(entry, "")
            with tape.problems:
                start = self._starts.get(loader, 0)
                self._starts[loader] = start + 1
                # Samplers may ask tensors how many samples there are.
                mutes = tape.is_training_thread()
                if mutes:
                    tape.silencer.mute()
                try:
                    self._places[iterator] = _Place(loader, tape.labels.text(loader), start)
                finally:
                    if mutes:
                        tape.silencer.unmute()
            return iterator

        return __iter__

    def _next(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        @functools.wraps(function)
        def __next__(iterator: Any) -> Any:  # noqa: N807
            if is_traced() or not tape.is_listening:
                batch = function(iterator)
                with tape.problems:
                    self._take_indices(iterator)
                    tape.has_passed_batch |= tape.is_training_thread()
                    if tape.is_active and (place := self._places.get(iterator)) is not None:
                        place.batch += 1
                return batch
            entry = loader = place = None
            before: dict[str, Stored] = {}
            with tape.problems:
                if tape.is_training_thread():
                    tape.delivers()
                place = self._places.get(iterator)
                loader = None if place is None else place.loader()
                cls = DataLoader if loader is None else type(loader)
                api = tape.apis.method(cls, "__next__", "data", DataLoader)
                entry = tape.open("data", api, subject=loader)
                before = self._stored_before(entry, iterator)
            try:
                batch = function(iterator)
            except StopIteration:
                tape.discard(entry)
                raise
            except BaseException as error:
                tape.close(entry, type(error).__name__)
                raise
            outputs = NONE
            with tape.problems:
                if entry is not None and entry.is_observed:
                    outputs = tape.signatures.result(batch)
                if loader is not None and tape.is_training_thread():
                    tape.tracker.delivered_batch(loader)
                indices = self._take_indices(iterator)
                if place is not None:
                    self._note(entry, place, iterator, batch, indices, before)
                    place.batch += 1
            tape.close(entry, "", outputs)
            return batch

        return __next__

    def _next_index(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        @functools.wraps(function)
        def _next_index(iterator: Any) -> Any:
            indices = function(iterator)
            if tape.is_active:
                with tape.problems:
                    # Workers are told what to fetch long before it is delivered.
                    self._indices.setdefault(iterator, deque()).append(indices)
            return indices

        return _next_index

    def _reset(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def _reset(iterator: Any, *args: Any, **kwargs: Any) -> Any:
            self._indices.pop(iterator, None)
            return function(iterator, *args, **kwargs)

        return _reset

    def _take_indices(self, iterator: Any) -> Any:
        """Return the indices of the batch that is delivered; None where they are not known."""
        waiting = self._indices.get(iterator)
        if not waiting:
            return None
        indices = waiting.popleft()
        return indices if getattr(iterator, "_in_order", True) else None

    def _stored_before(self, entry: OpenCall | None, iterator: Any) -> dict[str, Stored]:
        """Return what the data set stores before a batch is read; workers have copies of it."""
        works_here = getattr(iterator, "_num_workers", None) == 0
        if entry is None or not entry.is_observed or not works_here:
            return {}
        start_ns = time.perf_counter_ns()
        before = self._tape.arguments.stored_before(getattr(iterator, "_dataset", None))
        self._tape.spent_ns += time.perf_counter_ns() - start_ns
        return before

    def _note(
        self,
        entry: OpenCall | None,
        place: _Place,
        iterator: Any,
        batch: Any,
        indices: Any,
        before: dict[str, Stored],
    ) -> None:
        arguments, dataset = self._tape.arguments, getattr(iterator, "_dataset", None)
        facts = [*place.facts, float(place.start), float(place.batch), place.epoch]

        def frames(call: OpenCall) -> list[Frame]:
            told = [*facts, key_of_indices(indices)]
            return arguments.of_batch(call, place.label, dataset, batch, told, before)

        self._tape.note(entry, frames)
