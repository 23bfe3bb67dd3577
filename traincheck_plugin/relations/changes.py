"""Labels what one call does to variables: the changes between its begin and its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from traincheck_plugin.events import Array, Bool, Frame, GradState, Window
from traincheck_plugin.invariants.model import ANY, VAR_TYPES, APIParam, VarTypeParam
from traincheck_plugin.relations.base import NO_EXAMPLES, Examples, Explanation, Monitor
from traincheck_plugin.relations.causes import find_cause
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.values import align, is_about, matches, select

RESOLUTION = {"torch.float64": 2.3e-16, "torch.float32": 1.2e-7, "torch.float16": 9.8e-4}
RESOLUTION["torch.bfloat16"] = 7.9e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One call seen through one `VarTypeParam`.

    Attributes:
        begin: the frame that the masks index.
        subject: variables that the rule speaks of.
        did: those that did what is expected.
    """

    begin: Frame
    subject: Bool
    did: Bool


class ChangeMonitor(Monitor):
    """Holds at a call of A iff *some* / *every* variable goes from pre_value to post_value in it.

    *some*: at least one variable that `where` selects changes so. *every*: all that it selects and
    that have pre_value before; calls without such a variable are no example.

    A parameter that the update cannot move is no evidence against the call: its gradient is all
    zeros, its learning rate is 0, or the update is below the resolution of its dtype. Nor is a step
    of an optimizer that searches: one that goes backward several times in a step may find that no
    move is better than none.
    """

    def __init__(self, api: APIParam, variables: VarTypeParam) -> None:
        self._api = api
        self._variables = variables
        self._searching: set[int] = set()

    def observe(self, window: Window) -> Examples:
        rows: list[int] = []
        holds: list[bool] = []
        changes: list[Change] = []
        steps = self._api.role == "step"
        for row in window.rows_of_name(self._api.api_full_name).tolist():
            if steps and _num_backwards_in(window, row) > 1:
                self._searching.add(int(window.calls.object[row]))
            change = self._change(window, row)
            held = None if change is None else self._holds(window, change)
            if held is False and int(window.calls.object[row]) in self._searching:
                continue
            if change is not None and held is not None:
                rows.append(row)
                holds.append(held)
                changes.append(change)
        if not rows:
            return NO_EXAMPLES
        where = np.array(rows, np.int64)

        def explain(index: int) -> Explanation:
            return self._explain(window, rows[index], changes[index])

        return Examples.of_calls(window, where, np.array(holds, np.bool_), explain)

    def _change(self, window: Window, row: int) -> Change | None:
        frames = {
            frame.phase: frame
            for frame in window.frames_of_call.get(int(window.calls.call[row]), ())
            if is_about(window, frame, self._variables)
        }
        if len(frames) < 2:
            return None
        begin, end = frames["begin"], frames["end"]
        param = self._variables
        subject = select(param, begin, int(window.calls.object[row]))
        if subject is None:
            return None
        before: Array = begin.columns[param.attr_name]
        after: Array = end.columns[param.attr_name]
        did = np.zeros(len(begin), np.bool_)
        common = align(begin, end)
        if common is None:
            did = matches(param.attr_name, param.post_value, after, before)
        else:
            first, second = common
            did[first] = matches(param.attr_name, param.post_value, after[second], before[first])
        pre = matches(param.attr_name, param.pre_value, before)
        if param.quantifier == "every":
            subject = subject & pre
        elif param.pre_value is None and not pre[subject].all():
            # Where gradients are there already, a backward may do no more than add to them.
            return None
        return Change(begin=begin, subject=subject, did=did & subject & pre)

    def _holds(self, window: Window, change: Change) -> bool | None:
        """Return whether the example holds; None where the call is no example."""
        if not change.subject.any():
            return None
        moved = self._variables.attr_name == "data" and self._variables.post_value == "changed"
        if self._variables.quantifier == "every":
            failing = change.subject & ~change.did
            if moved:
                failing &= ~inert(window, change.begin, normalised=False)
                if not failing.any() and not change.did.any():
                    return None
            return not failing.any()
        if change.did.any():
            return True
        if moved and (change.subject & inert(window, change.begin, normalised=True)).any():
            return None
        return False

    def _explain(self, window: Window, row: int, change: Change) -> Explanation:
        failing = change.subject & ~change.did
        name = short(window.catalog.apis[int(window.calls.api[row])].name)
        done, total = int(change.did.sum()), int(change.subject.sum())
        verb, _, noun = verbs(self._variables)
        one = "" if total == 1 else "s"
        return Explanation(
            message=f"{name} {verb} {done} of {total} {noun}{one}",
            cause=find_cause(window, row, change.begin, failing, change.did),
        )


def _num_backwards_in(window: Window, row: int) -> int:
    """Return how many backward passes a call contains."""
    calls, apis = window.calls, window.catalog.apis
    begin, end = calls.begin[row], calls.end[row]
    return sum(
        int(((calls.begin[inner] > begin) & (calls.end[inner] < end)).sum())
        for code in window.api_codes
        if apis[code].role == "backward" and len(inner := window.rows_of_api(code))
    )


def verbs(param: VarTypeParam) -> tuple[str, str, str]:
    """Return what happens to variables: a verb in the past, in the present, and a noun."""
    noun = {
        VAR_TYPES["parameter"]: "parameter",
        VAR_TYPES["buffer"]: "buffer",
        VAR_TYPES["slot"]: "optimizer state",
        VAR_TYPES["group"]: "param group option",
        VAR_TYPES["module"]: "module",
    }.get(param.var_type, param.var_type)
    if param.attr_name == "grad":
        if param.post_value is None:
            return "cleared the gradient of", "clears the gradient of", noun
        return "gave a gradient to", "gives a gradient to", noun
    if param.post_value == "changed":
        return "updated", "updates", noun
    what = f"{param.attr_name} to {_value(param.post_value)} for"
    return f"set {what}", f"sets {what}", noun


def _value(value: Any) -> str:
    return "anything" if value == ANY else str(value).replace("_", " ")


def inert(window: Window, frame: Frame, *, normalised: bool) -> Bool:
    """Return which parameters an optimizer cannot be expected to move.

    The size of an update is bounded with the learning rate and the gradient norm, as it is in
    plain gradient descent; *normalised* takes the larger bound of optimizers that scale gradients
    to about 1, so that fewer parameters are excused.
    """
    columns = frame.columns
    inert = np.zeros(len(frame), np.bool_)
    if "grad" in columns:
        inert |= columns["grad"] == GradState.ZERO
    if "lr" in columns:
        inert |= columns["lr"] == 0
    if {"lr", "grad", "grad_norm", "data_norm", "dtype"} <= set(columns):
        sizes = window.catalog.num_elements(frame.variables)
        strings = window.catalog.strings
        codes, inverse = np.unique(columns["dtype"], return_inverse=True)
        epsilon = np.array(
            [RESOLUTION.get(strings[int(c)], 0.0) if c >= 0 else 0.0 for c in codes]
        )[inverse]
        gradient = columns["grad_norm"]
        if normalised:
            gradient = np.maximum(gradient, 1.0)
        typical = columns["data_norm"] / np.sqrt(np.maximum(sizes, 1))
        with np.errstate(invalid="ignore"):
            below = columns["lr"] * gradient < epsilon * typical
        inert |= below & (columns["grad"] == GradState.NON_ZERO)
    return inert
