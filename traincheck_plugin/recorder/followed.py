"""Tensors that are followed from one function to the next, without keeping any alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch

MAX_TENSORS = 4096
"""Tensors that are followed at a time; no more are until some are gone."""

MAX_ELEMENTS = 8
"""Elements of an argument that are looked at, as of a list of tensors or an index."""

T = TypeVar("T")


class Followed(Generic[T]):
    """What is known of tensors, as long as they live."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], T]] = {}
        self._is_full = False

    def __bool__(self) -> bool:
        return bool(self._known)

    def get(self, tensor: torch.Tensor) -> T | None:
        """Return what is known of *tensor*; None where it is not followed."""
        known = self._known.get(id(tensor))
        # Another may have its place in memory now.
        return known[1] if known is not None and known[0]() is tensor else None

    def follow(self, tensor: torch.Tensor, known: T) -> None:
        """Know something of *tensor* from now on."""
        if len(self._known) >= MAX_TENSORS and not self._is_full:
            # Between two losses a model may be evaluated for long.
            self.forget_gone()
            self._is_full = len(self._known) > MAX_TENSORS // 2
        if len(self._known) < MAX_TENSORS or id(tensor) in self._known:
            self._known[id(tensor)] = weakref.ref(tensor), known

    def forget_gone(self) -> None:
        """Forget the tensors that are no more."""
        for key in [key for key, (tensor, _) in self._known.items() if tensor() is None]:
            del self._known[key]
        self._is_full = False


def tensors_in(
    args: Iterable[Any], kwargs: Mapping[str, Any] | None = None
) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments, and in the lists, tuples and slices among these."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for inner in value[:MAX_ELEMENTS]:
                if isinstance(inner, torch.Tensor):
                    yield inner


def name_of(function: Callable[..., Any]) -> str:
    """Return what a function is called: operators and methods as the functions they stand for."""
    name: str = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        name = getattr(function.__self__, "__name__", name)  # type: ignore[attr-defined]
    return name.strip("_").replace(">", "").replace(" ", "")
