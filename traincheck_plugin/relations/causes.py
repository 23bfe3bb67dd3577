"""The likely cause of a failure, found by asking the recorded state.

The question is always the same: what have the variables that failed in common that those which
did not fail have not? The facts are asked from the one that explains most to the one that explains
least, since a parameter of a foreign model also has no gradient, and one without gradient also
does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.events import Frame, Window
from traincheck_plugin.relations.base import Cause
from traincheck_plugin.relations.naming import MAX_NAMED, describe_variables, place, short
from traincheck_plugin.vocabulary import NONE, Array, Bool, GradState, Int32, Variable


@dataclass(frozen=True, slots=True)
class _Fact:
    """Something that can be true of a variable and keeps it from learning.

    Attributes:
        name: a few words.
        attribute: column of the frame that shows it.
        test: which values of the column do.
        sentence: says it of ``{who}``, with ``{be}`` and ``{have}`` in the right number.
    """

    name: str
    attribute: str
    test: Callable[[Array], Array]
    sentence: str


MAX_PARTS = 2
"""Facts that are told together; more of them explain nothing."""

NO_GRADIENT = _Fact(
    "gradient is None", "grad", lambda c: c == GradState.NULL, "{who} {have} no gradient"
)

FACTS = (
    _Fact("in no model that ran", "in_model", lambda c: ~c, "{who} {be} in no model that ran"),
    _Fact("requires_grad=False", "requires_grad", lambda c: ~c, "{who} {have} requires_grad=False"),
    _Fact("in no optimizer", "optimizer", lambda c: c == NONE, "{who} {be} in no optimizer"),
    _Fact("learning rate is 0", "lr", lambda c: c == 0, "the learning rate of {who} is 0"),
    NO_GRADIENT,
    _Fact(
        "gradient is not finite",
        "grad",
        lambda c: c == GradState.NON_FINITE,
        "the gradient of {who} is NaN or infinite",
    ),
    _Fact(
        "gradient is all zeros",
        "grad",
        lambda c: c == GradState.ZERO,
        "the gradient of {who} is all zeros",
    ),
)


def find_cause(window: Window, row: int, frame: Frame, failing: Bool, others: Bool) -> Cause | None:
    """Return what the failing variables have in common; at worst, what two parts of them have.

    Args:
        window: where it happened.
        row: the call that failed.
        frame: shows the state that the call met.
        failing: rows of the frame that did not do what was expected.
        others: rows that did.
    """
    if not failing.any():
        return None
    fact = next((f for f in FACTS if _explains(f, frame, failing, others)), None)
    parts = [(fact, failing)] if fact is not None else _parts(frame, failing, others)
    if not parts:
        return None
    texts = []
    for fact, mask in parts:
        names = _variables(window, frame, mask)
        one = len(names) == 1
        who = _who(names, others if len(parts) == 1 else mask)
        text = fact.sentence.format(
            who=who, be="is" if one else "are", have="has" if one else "have"
        )
        if fact is NO_GRADIENT:
            text += _why_no_gradient(window, row, frame.variables[mask])
        texts.append(text)
    fact, mask = parts[0]
    names = _variables(window, frame, mask)
    text = "; ".join(texts)
    left_out, only_these = left_behind(window, frame, failing)
    if left_out:
        described = describe_variables(left_out)
        text += (
            f"; the parameters that do require gradients ({described}) are in no optimizer"
            if only_these
            else f"; {described} require gradients and are in no optimizer"
        )
    return Cause(
        fact=fact.name,
        subjects=tuple(sorted(v.label for v in names)),
        text=text,
        left_out=tuple(sorted(v.label for v in left_out)),
    )


def accumulation(window: Window, row: int, frame: Frame, filled: Bool) -> Cause:
    """Return the cause that gradients still hold those of earlier steps.

    Args:
        window: where it happened.
        row: the call that failed.
        frame: shows the gradients.
        filled: rows of the frame whose gradients were not cleared.
    """
    names = _variables(window, frame, filled)
    calls, apis = window.calls, window.catalog.apis
    clears = [
        int(index)
        for index in np.flatnonzero(calls.end < calls.end[row])
        if apis[int(calls.api[index])].role == "zero_grad"
    ]
    why = "zero_grad was not called"
    if clears:
        name = short(apis[int(calls.api[clears[-1]])].name)
        why = f"{name}{place(window, clears[-1])} did not clear them"
    return Cause(
        fact="gradients accumulate",
        subjects=tuple(sorted(v.label for v in names)),
        text=f"backward adds to gradients of earlier steps ({describe_variables(names)}): {why}",
    )


def frozen_parameters(window: Window) -> Cause | None:
    """Return the cause that parameters do not require gradients, where some do not."""
    frame = next((f for f in window.frames if "requires_grad" in f.columns), None)
    if frame is None:
        return None
    frozen = ~frame.columns["requires_grad"]
    if not frozen.any():
        return None
    names = _variables(window, frame, frozen)
    have = "has" if len(names) == 1 else "have"
    return Cause(
        fact="requires_grad=False",
        subjects=tuple(sorted(v.label for v in names)),
        text=f"{_who(names, ~frozen)} {have} requires_grad=False",
    )


def _variables(window: Window, frame: Frame, mask: Bool) -> list[Variable]:
    return [window.catalog.variables[int(code)] for code in frame.variables[mask]]


def _explains(fact: _Fact, frame: Frame, failing: Bool, others: Bool) -> bool:
    """Return whether the fact is true of all that failed, and not of all that did not."""
    column = frame.columns.get(fact.attribute)
    if column is None:
        return False
    met = fact.test(column)
    return bool(met[failing].all()) and not (others.any() and bool(met[others].all()))


def _parts(frame: Frame, failing: Bool, others: Bool) -> list[tuple[_Fact, Bool]]:
    """Return two facts that explain all that failed together, the greater part first; or none."""
    parts: list[tuple[_Fact, Bool]] = []
    remaining = failing
    for fact in FACTS:
        column = frame.columns.get(fact.attribute)
        if column is None or not remaining.any():
            continue
        met = fact.test(column)
        if (met & remaining).any() and not (met & others).any():
            parts.append((fact, met & remaining))
            remaining = remaining & ~met
    if remaining.any() or len(parts) > MAX_PARTS:
        return []
    return sorted(parts, key=lambda part: -int(part[1].sum()))


def _who(names: Sequence[Variable], others: Bool) -> str:
    described = describe_variables(names)
    if others.any():
        return described
    if len(names) == 1:
        return f"the only parameter ({described})"
    if len(names) <= MAX_NAMED:
        return f"{'both' if len(names) == 2 else 'all'} parameters ({described})"
    return f"all {described}"


def _why_no_gradient(window: Window, row: int, codes: Int32) -> str:
    """Say where the gradients of variables went, from the calls that ended before *row* does.

    With a closure these calls happen inside the step, so their ends are compared.
    """
    calls, apis = window.calls, window.catalog.apis
    last: dict[str, int] = {}
    for index in np.argsort(calls.end):
        if calls.end[index] < calls.end[row]:
            last[apis[int(calls.api[index])].role] = int(index)
    backward, clear = last.get("backward"), last.get("zero_grad")
    if backward is None:
        return ": no backward ran before it in this step"
    if clear is not None and calls.end[clear] > calls.end[backward]:
        name = short(apis[int(calls.api[clear])].name)
        return f": {name}{place(window, clear)} cleared it after the last backward"
    for frame in window.frames_of_call.get(int(calls.call[backward]), ()):
        if frame.phase == "end" and "grad" in frame.columns:
            shown = np.isin(frame.variables, codes)
            if (frame.columns["grad"][shown] > GradState.NULL).any():
                return f": it was cleared between backward{place(window, backward)} and this call"
    return ": backward does not reach it (detached, under no_grad, or not part of the loss)"


def left_behind(window: Window, frame: Frame, failing: Bool) -> tuple[list[Variable], bool]:
    """Return the parameters that could learn and are in no optimizer, and whether no others can."""
    columns = frame.columns
    if not {"requires_grad", "optimizer", "in_model"} <= set(columns):
        return [], False
    trainable = columns["requires_grad"] & columns["in_model"]
    mask = trainable & (columns["optimizer"] == NONE) & ~failing
    return _variables(window, frame, mask), not bool((trainable & ~mask & ~failing).any())
