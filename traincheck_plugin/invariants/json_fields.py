"""Typed access to the fields of JSON objects, with errors that say what came instead."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from traincheck_plugin.errors import InvariantError

REQUIRED: Any = object()
"""The default of a field that must be there."""

NAMES: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "an integer",
    bool: "true or false",
}


class MalformedError(InvariantError):
    """A JSON value is not what it should be; the text says what was expected and what came."""


class UnsupportedError(InvariantError):
    """An invariant of TrainCheck uses what has no counterpart here."""


def show(value: object) -> str:
    """Return *value* as JSON, cut to a length that a message can hold."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def expect(value: object, kind: type, what: str) -> Any:
    """Return *value* if it is of *kind*, a key of `NAMES`.

    Raises:
        MalformedError: it is not; *what* names the value.
    """
    # In JSON true is no integer; in Python it is.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise MalformedError(f"expected {NAMES[kind]} as {what}, got {show(value)}; correct it")
    return value


def take(obj: Mapping[str, Any], name: str, kind: type, default: Any = REQUIRED) -> Any:
    """Return the field *name*; *default* where it is absent, or null where a default is given.

    Raises:
        MalformedError: a required field is absent, or the field is not of *kind*.
    """
    value = obj.get(name)
    if value is None and default is not REQUIRED:
        return default
    if name not in obj:
        raise MalformedError(
            f"expected the field {name!r}, got only {show(sorted(obj))}; add it or delete the line"
        )
    return expect(value, kind, name)


def take_one_of(obj: Mapping[str, Any], name: str, choices: Sequence[str], default: Any) -> Any:
    """Return the field *name*, one of *choices*.

    Raises:
        MalformedError: it is another value.
    """
    value = take(obj, name, str, default)
    if value not in choices:
        raise MalformedError(f"expected {name} to be one of {', '.join(choices)}, got {value!r}")
    return value


def take_count(obj: Mapping[str, Any], name: str) -> int:
    """Return the field *name*, a number of things; 0 where it is absent.

    Raises:
        MalformedError: it is no such number.
    """
    value: int = take(obj, name, int, 0)
    if value < 0:
        raise MalformedError(f"expected {name} to be at least 0, got {value}; correct it")
    return value


def frozen(value: object) -> Any:
    """Return a literal of JSON with its lists as tuples, so that it can be hashed.

    Raises:
        UnsupportedError: it holds an object.
    """
    if isinstance(value, dict):
        raise UnsupportedError(f"a value that is an object cannot be checked: {show(value)}")
    return tuple(frozen(item) for item in value) if isinstance(value, list) else value
