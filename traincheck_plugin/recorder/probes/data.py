"""Data loaders: when one is started and when it delivers a batch."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from traincheck_plugin.events import NONE
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import is_compiling
from traincheck_plugin.recorder.tape import Tape


class DataProbe:
    """Observes `DataLoader.__iter__` and the ``__next__`` of its iterators."""

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Patch the two classes; a loader that overrides ``__iter__`` calls the base's."""
        self._tape = tape
        self._loaders: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = (
            weakref.WeakKeyDictionary()
        )
        patches.wrap(DataLoader, "__iter__", self._iter)
        patches.wrap(_BaseDataLoaderIter, "__next__", self._next)

    def detach(self) -> None:
        """Nothing beyond the patches."""

    def _iter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        @functools.wraps(function)
        def __iter__(loader: Any) -> Any:  # noqa: N807
            if is_compiling() or not tape.is_active:
                return function(loader)
            entry = None
            with tape.problems:
                if tape.is_training_thread():
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
                self._loaders[iterator] = weakref.ref(loader)
            return iterator

        return __iter__

    def _next(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        @functools.wraps(function)
        def __next__(iterator: Any) -> Any:  # noqa: N807
            if is_compiling() or not tape.is_listening:
                return function(iterator)
            entry = loader = None
            with tape.problems:
                reference = self._loaders.get(iterator)
                loader = None if reference is None else reference()
                cls = DataLoader if loader is None else type(loader)
                api = tape.apis.method(cls, "__next__", "data", DataLoader)
                entry = tape.open("data", api, subject=loader)
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
            tape.close(entry, "", outputs)
            return batch

        return __next__
