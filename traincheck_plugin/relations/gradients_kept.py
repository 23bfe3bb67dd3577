"""GradientsKeptRelation: what a backward computed is there when the optimizer steps."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.events import NONE, Bool, Frame, GradState, Role, Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    APIParam,
    Param,
    Severity,
    VarTypeParam,
)
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.lifecycle import completed, factor, rows_of_role, skipped_steps
from traincheck_plugin.relations.naming import place, short
from traincheck_plugin.relations.params import gradient_plan, pair
from traincheck_plugin.relations.role_proposer import RoleProposer

IN_A_ROW = 3
"""Steps that lack the gradients of a batch until that is no coincidence: a loop may throw those
away that are not finite, or too large."""

LARGEST_SHARE = 0.5
"""What the loss of a micro-batch is multiplied by, at most: it is divided by their number."""

_NON_ZERO = int(GradState.NON_ZERO)
_SHOWING: frozenset[Role] = frozenset({"zero_grad", "backward", "step"})

GRADIENTS = VarTypeParam(
    var_type=VAR_TYPES["parameter"],
    attr_name="grad",
    pre_value="non_zero",
    where=(("held", True),),
)


class GradientsKeptRelation(Relation):
    """The gradients of every micro-batch are there when the optimizer that holds them steps.

    ``forall steps s of an optimizer o, forall backwards b since the last step of any optimizer:
    exists a parameter that has its gradient from the end of b to the begin of s``, where the loss
    of b was divided, as that of one of several micro-batches is, where another batch was delivered
    since, and not missing in `IN_A_ROW` steps of o on end.

    A gradient that is pending when some optimizer steps is a by-product, as those of a
    discriminator from the loss of the generator. What one batch does with its own gradients, as
    sharpness-aware or adversarial training does, is its own affair; so is an attack, whose first
    forward takes an input that requires a gradient.

    Methods that collect gradients of whole losses, and set what they make of them, are not meant.

    Catches a `zero_grad` with every micro-batch where only every fourth leads to a step. Cannot see
    gradients of one loss that are cleared before the next loss of the same batch, nor micro-batches
    of which the loss is not divided by a constant.
    """

    name = "GradientsKeptRelation"

    def proposer(self) -> Proposer:
        return RoleProposer(self.name, frozenset({"step"}), GRADIENTS)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return _Monitor(step)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return f"the gradients of every batch are there when {short(step.api_full_name)} runs"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return gradient_plan("backward", "zero_grad", "step")

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "critical"


class _Pending:
    """The gradients since the last step, of whatever optimizer, made or skipped.

    Attributes:
        has: by variable code, whether there is a gradient of a backward.
        num_backwards: so far.
        num_missing: backwards of which no gradient was left when that of another batch began.
        is_attack: whether some backward was one for the gradient of an input.
        cleared_by: name and place of what cleared gradients last.
    """

    def __init__(self) -> None:
        self.has: Bool = np.zeros(0, np.bool_)
        self.restart()

    def restart(self) -> None:
        """Begin anew after a step, or a stretch that was not observed."""
        self.has[:] = False
        self.num_backwards = self.num_missing = 0
        self.is_attack = False
        self.cleared_by = ""
        # Shares of a loss that led to no step yet: their gradients are there, or gone.
        self._num_there = self._num_gone = 0
        self._is_first_forward = True
        self._was_delivered = False

    def delivered(self) -> None:
        self._was_delivered = True

    def went_forward(self, *, takes_gradient: bool) -> None:
        self.is_attack |= self._is_first_forward and takes_gradient
        self._is_first_forward = False

    def saw(self, frame: Frame, num_codes: int) -> bool:
        """Look which gradients are gone; return whether nothing is left of some backward."""
        if len(self.has) < num_codes:
            self.has = np.append(self.has, np.zeros(num_codes - len(self.has), np.bool_))
        self.has[frame.variables] &= frame.columns["grad"] >= _NON_ZERO
        if not self._num_there or self.has.any():
            return False
        self._num_gone += self._num_there
        self._num_there = 0
        return True

    def began_backward(self) -> None:
        if self._was_delivered:
            self.num_missing += self._num_gone
        self._num_gone = 0
        self._was_delivered = False

    def went_backward(self, frame: Frame, *, is_share: bool) -> None:
        """Note what has a gradient at the end of a backward."""
        has = frame.columns["grad"] >= _NON_ZERO
        self.num_backwards += 1
        self._num_there += is_share and bool(has.any())
        self._is_first_forward = True
        self.has[frame.variables] |= has


class _Monitor(Monitor):
    def __init__(self, step: APIParam) -> None:
        self._step = step.api_full_name
        self._pending = _Pending()
        self._num_missing: dict[int, int] = {}

    def observe(self, window: Window) -> Examples:
        pending = self._pending
        if not window.observed:
            pending.restart()
            self._num_missing.clear()
            return NO_EXAMPLES
        found = []
        for _, event, row, frame in _events(window):
            if event == "data":
                pending.delivered()
            elif event == "forward":
                items = window.catalog.signature(int(window.calls.inputs[row]))
                pending.went_forward(takes_gradient=any(item.requires_grad for item in items))
            elif event == "attempt":
                pending.restart()
            elif frame is not None:
                example = self._look(window, event, row, frame)
                if example is not None:
                    found.append(example)
        if not found:
            return NO_EXAMPLES
        rows = np.array([row for row, _, _ in found], np.int64)
        holds = np.array([held for _, held, _ in found], np.bool_)
        return Examples.of_calls(window, rows, holds, lambda index: found[index][2])

    def _look(
        self, window: Window, event: str, row: int, frame: Frame
    ) -> tuple[int, bool, Explanation] | None:
        """Follow a frame of gradients; return the example that it completes, if any."""
        pending, calls = self._pending, window.calls
        if pending.saw(frame, len(window.catalog.variables)) and event == "zero_grad":
            name = short(window.catalog.apis[int(calls.api[row])].name)
            pending.cleared_by = f"{name}{place(window, row)}"
        if event == "backward":
            if frame.phase == "begin":
                pending.began_backward()
            else:
                is_share = factor(window, row) <= LARGEST_SHARE
                pending.went_backward(frame, is_share=is_share)
        names = window.catalog.apis[int(calls.api[row])].names
        if event != "step" or self._step not in names:
            return None
        held = (frame.columns["optimizer"] == calls.object[row]) & pending.has[frame.variables]
        if not held.any() or pending.is_attack:
            return None
        target = int(calls.object[row])
        missing = self._num_missing[target] = (
            self._num_missing.get(target, 0) + 1 if pending.num_missing else 0
        )
        return row, missing < IN_A_ROW, self._explain(window, row)

    def _explain(self, window: Window, row: int) -> Explanation:
        pending = self._pending
        name = short(window.catalog.apis[int(window.calls.api[row])].name)
        total, missing = pending.num_backwards, pending.num_missing
        by = f" by {pending.cleared_by}" if pending.cleared_by else ""
        return Explanation(
            message=f"{name} used the gradients of {total - missing} of {total} backwards",
            cause=Cause(
                fact="gradients cleared before the step",
                subjects=("gradients",),
                text=f"the gradients of the others were cleared{by} before the step",
            ),
        )


Event = tuple[int, str, int, Frame | None]


def _events(window: Window) -> list[Event]:
    """Return what matters in a window in order of time, as (sequence, what, row, frame)."""
    calls, apis = window.calls, window.catalog.apis
    contexts = window.catalog.contexts
    steps = completed(window, rows_of_role(window, "step"))
    delivered = [
        row
        for row in rows_of_role(window, "data").tolist()
        if apis[int(calls.api[row])].name.endswith("__next__")
    ]
    forwards = [
        row
        for row in rows_of_role(window, "forward").tolist()
        if contexts[int(calls.context[row])].grad_enabled
    ]
    attempts = [*steps.tolist(), *skipped_steps(window, steps).tolist()]
    events: list[Event] = [
        *((int(calls.end[row]), "data", row, None) for row in delivered),
        *((int(calls.begin[row]), "forward", row, None) for row in forwards),
        *((int(calls.end[row]), "attempt", row, None) for row in attempts),
        *(
            (frame.sequence, role, row, frame)
            for frame in window.frames
            if "grad" in frame.columns
            and (row := window.row_of_call.get(frame.call, NONE)) != NONE
            and (role := apis[int(calls.api[row])].role) in _SHOWING
            # What a step leaves of gradients is what it met.
            and not (role == "step" and frame.phase == "end")
        ),
    ]
    return sorted(events, key=lambda event: event[0])
