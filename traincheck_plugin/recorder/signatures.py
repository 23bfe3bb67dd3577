"""Summaries of arguments and results, interned: the text of each distinct one is made once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from traincheck_plugin.catalog import Interner
from traincheck_plugin.recorder.naming import class_path
from traincheck_plugin.vocabulary import NONE, Item, decode_signature, encode_signature

MAX_ELEMENTS = 32
"""Elements of one container that are described; the rest is left out."""

MAX_TEXT = 80
MAX_NUMBERED = 4096
"""Signatures with numbers in them that are kept: a counter makes a new one in every call."""

_MAX_DEPTH = 4

_Key = tuple[Any, ...]
_Tensor = torch.Tensor
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


class Signatures:
    """Turns values into codes of `Catalog.signatures`."""

    def __init__(self, interner: Interner[str]) -> None:
        self._interner = interner
        self._codes: dict[_Key, int] = {}
        self._num_numbered = 0

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> int:
        """Return the code for the arguments of a call."""
        key = tuple(
            [
                (type(v), v.dtype, v.shape, v.device, v.requires_grad)
                if type(v) in _PLAIN  # inlined: most arguments of functions are
                else _key(v, 0)
                for v in args
            ]
        )
        if kwargs:
            key = (key, *[(name, _key(value, 0)) for name, value in kwargs.items()])
            code = self._find(key)
            return self._add(key, _named(key)) if code is None else code
        if not key:
            return NONE
        # A tuple that starts with a tuple of tuples is the form above: this one never does.
        code = self._find(("", *key))
        return self._add(("", *key), _numbered(key, "")) if code is None else code

    def result(self, value: Any) -> int:
        """Return the code for what a call returned."""
        key = _key(value, 0)
        code = self._find(key)
        return self._add(key, _items(key, "")) if code is None else code

    def extended(self, arguments: int, path: str, value: str) -> int:
        """Return the code of *arguments* with a text at *path* added to them."""
        key = (Item, arguments, path, value)
        code = self._codes.get(key)
        if code is not None:
            return code
        items = decode_signature(self._interner[arguments]) if arguments != NONE else ()
        return self._add(key, iter((*items, Item(path=path, type="str", value=value))))

    def numbered(self, arguments: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """Return the code of *arguments* with the whole numbers among them."""
        given = [*((str(index), value) for index, value in enumerate(args)), *kwargs.items()]
        numbers = {path: value for path, value in given if type(value) is int}
        if not numbers:
            return arguments
        key = (int, arguments, tuple(numbers.items()))
        code = self._codes.get(key)
        if code is not None or self._num_numbered >= MAX_NUMBERED:
            return arguments if code is None else code
        self._num_numbered += 1
        items = decode_signature(self._interner[arguments])
        return self._add(
            key,
            iter([replace(i, value=numbers[i.path]) if i.path in numbers else i for i in items]),
        )

    def _find(self, key: _Key) -> int | None:
        """Return the code of what was seen before, None if it was not, `NONE` if it has none."""
        try:
            return self._codes.get(key)
        except TypeError:
            # Where torch prepares a tracing, a size may be a symbol, which has no hash.
            return NONE

    def _add(self, key: _Key, items: Iterator[Item]) -> int:
        code = self._codes[key] = self._interner.code(encode_signature(list(items)))
        return code


def sizes(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of *tensor*, with `NONE` for what is no number: it may equal no other."""
    return tuple([size if type(size) is int else NONE for size in tensor.shape])


def _key(value: Any, depth: int) -> _Key:
    """Describe *value* by something hashable that holds no tensor.

    ``(type, dtype, shape, device, requires_grad)`` for a tensor, ``(type, (keys...))`` for a
    sequence, ``(type, (keys...), (names...))`` for a mapping, ``(type, None, value)`` for a bool,
    a string or None, and ``(type,)`` for anything else.
    """
    kind = type(value)
    if kind in _PLAIN:
        return (kind, value.dtype, value.shape, value.device, value.requires_grad)
    if isinstance(value, _Tensor):
        return (kind, value.dtype, sizes(value), value.device, value.requires_grad)
    if kind is int or kind is float:
        return (kind,)
    if value is None or kind is bool:
        return (kind, None, value)
    if kind is str:
        return (kind, None, value[:MAX_TEXT])
    if depth < _MAX_DEPTH:
        if isinstance(value, (list, tuple)):
            if not value or type(value[0]) in (int, float):
                return (kind,)
            return (kind, tuple([_key(v, depth + 1) for v in value[:MAX_ELEMENTS]]))
        if isinstance(value, dict):
            names = list(value)[:MAX_ELEMENTS]
            return (
                kind,
                tuple([_key(value[name], depth + 1) for name in names]),
                tuple([str(name) for name in names]),
            )
    return (kind,)


def _items(key: _Key, path: str) -> Iterator[Item]:
    kind = key[0]
    if len(key) == 5:
        _, dtype, shape, device, requires_grad = key
        yield Item(
            path=path,
            type=class_path(kind),
            dtype=str(dtype),
            shape=tuple(shape),
            device=str(device),
            requires_grad=requires_grad,
        )
    elif len(key) == 3 and key[1] is None:
        yield Item(path=path, type=class_path(kind), value=key[2])
    elif len(key) == 3:
        for name, inner in zip(key[2], key[1], strict=True):
            yield from _items(inner, _join(path, name))
    elif len(key) == 2:
        yield from _numbered(key[1], path)
    else:
        yield Item(path=path, type=class_path(kind))


def _numbered(keys: _Key, path: str) -> Iterator[Item]:
    for number, key in enumerate(keys):
        yield from _items(key, _join(path, str(number)))


def _named(key: _Key) -> Iterator[Item]:
    yield from _numbered(key[0], "")
    for name, inner in key[1:]:
        yield from _items(inner, name)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
