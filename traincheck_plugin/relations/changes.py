"""Labels what one call does to variables: the changes between its begin and its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ANY, VAR_TYPES, APIParam, VarTypeParam
from traincheck_plugin.relations.base import NO_EXAMPLES, Examples, Explanation, Monitor
from traincheck_plugin.relations.causes import find_cause
from traincheck_plugin.relations.lifecycle import Backwards, Patience, Searches, rows_of_role
from traincheck_plugin.relations.moments import Moments, Pair, inert, pairs_of_calls
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.relations.values import matches
from traincheck_plugin.vocabulary import Bool, Int64

__all__ = ["ChangeMonitor", "inert", "verbs"]


SLOT = VAR_TYPES["slot"]

# What `np.any` comes to, without the way there: it takes longer than a small array.
_ANY = np.logical_or.reduce


class ChangeMonitor(Monitor):
    """Holds at a call of A iff *some* / *every* variable goes from pre_value to post_value in it.

    *some*: at least one variable that `where` selects changes so. *every*: all that it selects and
    that have pre_value before; calls without such a variable are no example, nor are those that
    find no gradient to clear.

    A parameter that the update cannot move is no evidence against the call: its gradient is all
    zeros, its learning rate is 0, or the update is below the resolution of its dtype. Nor is a step
    of an optimizer that searches: one that goes backward several times in a step may find that no
    move is better than none. Nor is a backward within which gradients are used up, as where each
    parameter has an optimizer that steps as soon as its gradient is there, or one to which no
    parameter is open. Nor do the slots of an optimizer tell that leaves the work to another one,
    whose step it calls.

    The first failure in a row of an optimizer is no example where no backward led to the step,
    since trainers may only feed a model with data; nor where *every* variable is to change, since
    Rprop does not move what has changed its direction.
    """

    def __init__(self, api: APIParam, variables: VarTypeParam) -> None:
        self._api = api
        self._variables = variables
        self._steps = _Steps(is_patient=variables.quantifier == "every")

    def observe(self, window: Window) -> Examples:
        if self._api.role == "step":
            self._steps.observe(window, window.rows_of_name(self._api.api_full_name))
        found = [
            effect
            for pair in pairs_of_calls(window, self._api.api_full_name, self._variables)
            if (effect := self._effect(pair)) is not None
        ]
        if not found:
            return NO_EXAMPLES
        rows = np.concatenate([effect.begin.calls[effect.judged] for effect in found])
        holds = np.concatenate([effect.holds[effect.judged] for effect in found])
        order = np.argsort(rows)
        order = order[self._is_judged(window, rows[order], holds[order])]
        if not len(order):
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            number = int(order[index])
            for effect in found:
                judged = np.flatnonzero(effect.judged)
                if number < len(judged):
                    return self._explain(window, effect, int(judged[number]))
                number -= len(judged)
            raise IndexError(index)

        return Examples.of_calls(window, rows[order], holds[order], explain)

    def _is_judged(self, window: Window, rows: Int64, holds: Bool) -> Bool:
        """Return which calls are examples: others need not have done what is expected of them."""
        judged: Bool
        if self._api.role == "step":
            judged = self._steps.is_judged(window, rows, holds)
            if self._variables.var_type == SLOT and not holds.all():
                judged = judged & (holds | ~_wraps(window, rows))
            return judged
        if self._api.role == "backward" and not holds.all():
            calls = window.calls
            using = np.sort(calls.begin[rows_of_role(window, "step", "zero_grad")])
            before, after = (np.searchsorted(using, at[rows]) for at in (calls.begin, calls.end))
            judged = holds | (before == after)
            return judged
        return np.ones(len(rows), np.bool_)

    def _effect(self, pair: Pair) -> _Effect | None:
        param, begin = self._variables, pair.begin
        attribute = param.attr_name
        subject = begin.select(param.where)
        if subject is None:
            return None
        before, after = begin.column(attribute), pair.end.column(attribute)
        if pair.common is not None:
            did = np.zeros(before.shape, np.bool_)
            first, second = pair.common
            did[:, first] = matches(attribute, param.post_value, after[:, second], before[:, first])
        elif param.post_value == "changed":
            did = matches(attribute, param.post_value, after, before)
        else:
            did = pair.end.matches(attribute, param.post_value)
        pre = begin.matches(attribute, param.pre_value)
        if param.quantifier == "every":
            subject = subject & pre
        judged: Bool = _ANY(subject, axis=1)
        if attribute == "grad" and param.post_value is None:
            # Where nothing is there to clear, nothing is amiss.
            judged &= _ANY(subject & pre, axis=1)
        if attribute == "grad" and param.post_value == "not_null" and begin.has("requires_grad"):
            # A sampler freezes a model, and goes backward to its own samples.
            judged &= _ANY(subject & begin.column("requires_grad"), axis=1)
        if param.quantifier != "every" and param.pre_value is None:
            # Where gradients are there already, a backward may do no more than add to them.
            judged &= np.all(pre | ~subject, axis=1)
        did = did & subject & pre
        moved = attribute == "data" and param.post_value == "changed"
        if param.quantifier == "every":
            failing = subject & ~did
            if moved:
                failing &= ~begin.inert(normalised=False)
                judged &= _ANY(failing, axis=1) | _ANY(did, axis=1)
            holds: Bool = ~_ANY(failing, axis=1)
        else:
            holds = _ANY(did, axis=1)
            if pair.common is not None and param.var_type == SLOT and moved:
                # State that a step made is what it did: another part of the model had its turn.
                holds = holds | (len(pair.end.variables) > len(pair.common[1]))
            if moved and not holds.all():
                judged &= holds | ~(subject & begin.inert(normalised=True)).any(axis=1)
        if not judged.any():
            return None
        return _Effect(begin=begin, subject=subject, did=did, judged=judged, holds=holds)

    def _explain(self, window: Window, effect: _Effect, index: int) -> Explanation:
        subject, did = effect.subject[index], effect.did[index]
        part, row = window.at(int(effect.begin.calls[index]))
        name = short(window.catalog.apis[int(part.calls.api[row])].name)
        done, total = int(did.sum()), int(subject.sum())
        verb, _, noun = verbs(self._variables)
        one = "" if total == 1 else "s"
        frame = window.frames[int(effect.begin.positions[index])]
        failing = subject & ~did
        cause = find_cause(part, row, frame, failing, did)
        what = ""
        if cause is None and done and self._variables.quantifier == "every":
            # Where nothing tells why, it is at least told of what.
            names = [window.catalog.variables[int(code)] for code in frame.variables[failing]]
            what = f", not {describe_variables(names)}"
        return Explanation(
            message=f"{name} {verb} {done} of {total} {noun}{one}{what}", cause=cause
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Effect:
    """Calls seen through one `VarTypeParam`: a row for each.

    Attributes:
        begin: the frames at their begin, which the masks are of.
        subject: variables that the rule speaks of.
        did: those that did what is expected.
        judged: which of the calls are examples.
        holds: whether they hold.
    """

    begin: Moments
    subject: Bool
    did: Bool
    judged: Bool
    holds: Bool


def _wraps(window: Window, steps: Int64) -> Bool:
    """Return which steps call that of another optimizer."""
    calls = window.calls
    inner = calls.parent[rows_of_role(window, "step")]
    wraps: Bool = np.isin(calls.call[steps], inner)
    return wraps


class _Steps:
    """Knows which steps need not move anything.

    Args:
        is_patient: whether the first failure in a row is excused anyway.
    """

    def __init__(self, *, is_patient: bool) -> None:
        self._is_patient = is_patient
        self._patience = Patience()
        self._backwards = Backwards()
        self._searches = Searches()
        # Of the window: the steps that no backward led to.
        self._idle: Int64 = np.empty(0, np.int64)

    def observe(self, window: Window, steps: Int64) -> None:
        """Look at the steps of a window."""
        self._idle = steps[~self._backwards.led_to(window, steps)]
        self._searches.observe(window, steps)

    def is_judged(self, window: Window, rows: Int64, holds: Bool) -> Bool:
        """Return which of some steps are examples."""
        judged = self._patience.kept(window.calls.object[rows], holds)
        if holds.all():
            return judged
        if not self._is_patient:
            judged = judged | ~np.isin(rows, self._idle)
        return judged & (holds | ~self._searches.at(window, rows))


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
