"""Names as a reader is shown them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import takewhile

from traincheck_plugin.events import Window
from traincheck_plugin.vocabulary import NONE, Variable


def short(api_name: str) -> str:
    """Return ``Adam.step`` for ``torch.optim.Adam.step``, ``relu`` for a plain function."""
    parts = api_name.split(".")
    if len(parts) > 1 and parts[-2][:1].isupper():
        return ".".join(parts[-2:])
    return parts[-1]


def class_name(owner: str) -> str:
    """Return ``Net`` for ``__main__.Net#0``.

    The module that defines a class may be another one when a script is imported.
    """
    return owner.partition("#")[0].rpartition(".")[2]


def full_name(variable: Variable) -> str:
    """Return ``Net.encoder.weight``, under which a variable is found again in another run."""
    model = class_name(variable.owner)
    return f"{model}.{variable.name}" if variable.name else model


def beginnings(name: str) -> Iterator[str]:
    """Yield the parts of models that something is in, the largest first, and its own name."""
    words = name.split(".")
    return (".".join(words[:number]) for number in range(1, len(words) + 1))


def part_of(parts: Collection[str]) -> Callable[[Variable], str]:
    """Return what tells in which of some parts a variable is; "" where in none."""
    return lambda variable: next((p for p in beginnings(full_name(variable)) if p in parts), "")


def largest_parts(names: Iterable[str], others: Iterable[str]) -> set[str]:
    """Return the largest parts that hold *names*, none of which is among *others*, and no other."""
    above = {part for name in others for part in beginnings(name)}
    return {next(part for part in beginnings(name) if part not in above) for name in names}


MAX_NAMED = 3


def describe_variables(variables: Sequence[Variable]) -> str:
    """Return a few words that say which variables are meant.

    Up to `MAX_NAMED` are named; more are told by what they have in common: the part of the model
    they are in, or the class of their module.
    """
    if len(variables) <= MAX_NAMED:
        return ", ".join(f"`{v.label}`" for v in variables)
    count = len(variables)
    types = {v.module_type for v in variables}
    if types == {""}:
        return f"{count} parameters that no known model has"
    prefix = _common_prefix([v.name.split(".")[:-1] for v in variables])
    if prefix:
        return f"{count} parameters of `{'.'.join(prefix)}`"
    kind = f"{short(next(iter(types)))} parameters" if len(types) == 1 else "parameters"
    return f"{count} {kind} (`{variables[0].label}`, `{variables[1].label}`, ...)"


def _common_prefix(paths: Sequence[list[str]]) -> list[str]:
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return [parts[0] for parts in shared]


def place(window: Window, row: int) -> str:
    """Return `` (train.py:30 in train)`` for a call, "" where its source is unknown."""
    code = int(window.calls.source[row])
    return f" ({window.catalog.sources[code]})" if code != NONE else ""
