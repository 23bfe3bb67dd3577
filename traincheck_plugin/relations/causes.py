"""The likely cause of a failure, found by asking the recorded state.

The question is always the same: what have the variables that failed in common that those which
did not fail have not? The facts are asked from the one that explains most to the one that explains
least, since a parameter of a foreign model also has no gradient, and one without gradient also
does not change.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from traincheck_plugin.events import NONE, Array, Bool, Frame, GradState, Variable, Window
from traincheck_plugin.relations.base import Cause
from traincheck_plugin.relations.naming import describe_variables, place, short

FACTS: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    ("in no model that was run", "in_model", lambda column: ~column),
    ("requires_grad=False", "requires_grad", lambda column: ~column),
    ("in no optimizer", "optimizer", lambda column: column == NONE),
    ("learning rate is 0", "lr", lambda column: column == 0),
    ("gradient is None", "grad", lambda column: column == GradState.NULL),
    ("gradient is NaN or infinite", "grad", lambda column: column == GradState.NON_FINITE),
    ("gradient is all zeros", "grad", lambda column: column == GradState.ZERO),
)


def find_cause(window: Window, row: int, frame: Frame, failing: Bool, others: Bool) -> Cause | None:
    """Return what the failing variables have in common.

    Args:
        window: where it happened.
        row: the call that failed.
        frame: shows the state that the call met.
        failing: rows of the frame that did not do what was expected.
        others: rows that did.
    """
    if not failing.any():
        return None
    for fact, attribute, test in FACTS:
        column = frame.columns.get(attribute)
        if column is None:
            continue
        met = test(column)
        if met[failing].all() and not (others.any() and met[others].all()):
            break
    else:
        return None
    variables = window.catalog.variables
    names = [variables[int(code)] for code in frame.variables[failing]]
    verb = "has" if len(names) == 1 else "have"
    be = "is" if len(names) == 1 else "are"
    who = _who(names, others)
    text = {
        "in no model that was run": f"{who} {be} in no model that was run",
        "requires_grad=False": f"{who} {verb} requires_grad=False",
        "in no optimizer": f"{who} {be} in no optimizer",
        "learning rate is 0": f"the learning rate of {who} is 0",
    }.get(fact, f"{who}: {fact}")
    if fact == "gradient is None":
        text += _why_no_gradient(window, row)
    return Cause(
        fact=fact,
        subjects=tuple(sorted(v.label for v in names)),
        text=text + _left_out(window, frame, failing),
    )


def accumulation(window: Window, row: int, frame: Frame, filled: Bool) -> Cause:
    """Return the cause that gradients still hold those of earlier steps.

    Args:
        window: where it happened.
        row: the call that failed.
        frame: shows the gradients.
        filled: rows of the frame whose gradients were not cleared.
    """
    names = [window.catalog.variables[int(code)] for code in frame.variables[filled]]
    calls, apis = window.calls, window.catalog.apis
    clears = [
        index
        for index in np.flatnonzero(calls.end < calls.end[row])
        if apis[int(calls.api[index])].role == "zero_grad"
    ]
    why = "zero_grad was not called"
    if clears:
        name = short(apis[int(calls.api[clears[-1]])].name)
        why = f"{name}{place(window, int(clears[-1]))} did not clear them"
    return Cause(
        fact="gradients accumulate",
        subjects=tuple(sorted(v.label for v in names)),
        text=f"backward adds to gradients of earlier steps ({describe_variables(names)}): {why}",
    )


def _who(names: list[Variable], others: Bool) -> str:
    described = describe_variables(names)
    if others.any():
        return described
    if len(names) == 1:
        return f"the only parameter concerned ({described})"
    return (
        f"{'both' if len(names) == 2 else f'all {len(names)}'} parameters concerned ({described})"
    )


def _why_no_gradient(window: Window, row: int) -> str:
    """Say what the order of backward and zero_grad before the call tells."""
    roles = [window.catalog.apis[int(code)].role for code in window.calls.api]
    begins = window.calls.begin
    # What matters is what ended before the call did and began before its own work: with a closure
    # these calls are inside it.
    last: dict[str, int] = {}
    for index in np.argsort(begins):
        if begins[index] < window.calls.end[row] and index != row:
            last[roles[index]] = int(index)
    backward, clear = last.get("backward"), last.get("zero_grad")
    if backward is None:
        return "; no backward ran before it in this step"
    if clear is not None and begins[clear] > begins[backward]:
        name = short(window.catalog.apis[int(window.calls.api[clear])].name)
        return (
            f"; {name}{place(window, clear)} cleared them after the last backward"
            f"{place(window, backward)}"
        )
    return "; backward does not reach them (frozen, detached, or not part of the loss)"


def _left_out(window: Window, frame: Frame, failing: Bool) -> str:
    """Say which parameters could learn and are in no optimizer."""
    columns = frame.columns
    if not {"requires_grad", "optimizer", "in_model"} <= set(columns):
        return ""
    mask = columns["requires_grad"] & columns["in_model"] & (columns["optimizer"] == NONE)
    mask &= ~failing
    if not mask.any():
        return ""
    names = [window.catalog.variables[int(code)] for code in frame.variables[mask]]
    return (
        f"; the parameters that do require gradients ({describe_variables(names)}) "
        "are in no optimizer"
        if not (columns["requires_grad"] & (columns["optimizer"] != NONE)).any()
        else f"; {describe_variables(names)} require gradients and are in no optimizer"
    )
