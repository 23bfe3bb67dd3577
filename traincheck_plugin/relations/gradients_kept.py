"""GradientsKeptRelation: what a backward computed is there when the optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.events import Window
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
from traincheck_plugin.relations.frames import frames_at, is_named, times_of
from traincheck_plugin.relations.frames import place as place_of
from traincheck_plugin.relations.lifecycle import completed, factor, skipped_steps
from traincheck_plugin.relations.moments import Moments, by_stack
from traincheck_plugin.relations.naming import place, short
from traincheck_plugin.relations.params import gradient_plan, pair, passing_plan
from traincheck_plugin.relations.passing import inputs_of
from traincheck_plugin.relations.role_proposer import RoleProposer
from traincheck_plugin.vocabulary import NONE, Int64, Role

IN_A_ROW = 3
"""Steps that lack the gradients of a batch until that is no coincidence: a loop may throw those
away that are not finite, or too large."""

LARGEST_SHARE = 0.5
"""What the loss of a micro-batch is multiplied by, at most: it is divided by their number, or by
one that is not known, as that of the tokens in all of them."""

MIN_BY_HAND = 3
"""Backwards of a step with inputs of their own that show that these are batches, where no loader
delivers them: two may be a batch and what an attack makes of it."""

HELD = (("held", True),)
PARAMETER = VAR_TYPES["parameter"]

GRADIENTS = VarTypeParam(var_type=PARAMETER, attr_name="grad", pre_value="non_zero", where=HELD)


class GradientsKeptRelation(Relation):
    """The gradients of every micro-batch are there when the optimizer that holds them steps.

    ``forall steps s of an optimizer o, forall backwards b since the last step of any optimizer:
    exists a parameter that has its gradient from the end of b to the begin of s``, where the loss
    of b was divided, as that of one of several micro-batches is, where another batch was delivered
    since, or one for each backward before them all, and not missing in `IN_A_ROW` steps of o on
    end. Where no loader delivers any, it is another batch if a model has inputs, without gradients,
    of its own for each of `MIN_BY_HAND` backwards or more.

    A gradient that is pending when some optimizer steps is a by-product, as those of a
    discriminator from the loss of the generator. What one batch does with its own gradients, as
    sharpness-aware or adversarial training does, is its own affair; so is an attack, whose first
    forward takes an input that requires a gradient.

    Methods that collect gradients of whole losses, and set what they make of them, are not meant.

    Catches a `zero_grad` with every micro-batch where only every fourth leads to a step. Cannot see
    gradients of one loss that are cleared before the next loss of the same batch, nor micro-batches
    of which the loss is not divided.
    """

    name = "GradientsKeptRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return RoleProposer(self.name, frozenset({"step"}), GRADIENTS)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return _Monitor(step)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return f"the gradients of every batch are there when {short(step.api_full_name)} runs"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return gradient_plan("backward", "zero_grad", "step").union(passing_plan("input"))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "critical"


class _Pending:
    """The gradients since the last step, of whatever optimizer, made or skipped.

    Sets of parameters are numbers with a bit for each code.

    Attributes:
        has: the parameters with a gradient of a backward.
        num_backwards: so far.
        missing: of each backward of which no gradient was left when that of another batch began,
            the parameters that it gave one.
        replaced: the same where no batch was delivered between the two.
        is_attack: whether some backward was one for the gradient of an input.
        cleared_by: the call that cleared gradients last, as it is shown.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew after a step, or a stretch that was not observed."""
        self.has = 0
        self.num_backwards = 0
        self.missing: list[int] = []
        self.replaced: list[int] = []
        self.is_attack = False
        self.cleared_by = ""
        # Shares of a loss that led to no step yet, by what they gave a gradient: there, or gone.
        self._there: list[int] = []
        self._gone: list[int] = []
        self._is_first_forward = True
        self._was_delivered = False
        self._num_delivered: dict[int, int] = {}
        # What each model was given, as far as it is known.
        self._given: dict[int, set[bytes]] = {}

    @property
    def is_calm(self) -> bool:
        """Whether nothing that happened bears on later steps."""
        return not (self.missing or self.replaced or self.is_attack or self._there or self._gone)

    @property
    def has_batch_for_each(self) -> bool:
        """Whether there is a batch for each backward.

        One loader delivered them, as before the first backward; or none delivers any, and one model
        was given as many.
        """
        if self._num_delivered:
            return max(self._num_delivered.values()) >= self.num_backwards
        most = max(map(len, self._given.values()), default=0)
        return most >= self.num_backwards >= MIN_BY_HAND

    def delivered(self, loader: int) -> None:
        self._was_delivered = True
        self._num_delivered[loader] = self._num_delivered.get(loader, 0) + 1

    def went_forward(self, model: int, inputs: bytes, *, takes_gradient: bool) -> None:
        if inputs and not takes_gradient:
            self._given.setdefault(model, set()).add(inputs)
        self.is_attack |= self._is_first_forward and takes_gradient
        self._is_first_forward = False

    def lost(self, without: int) -> bool:
        """Note what has no gradient; return whether nothing is left of some backward."""
        self.has &= ~without
        gone = [given for given in self._there if not given & self.has]
        self._gone += gone
        self._there = [given for given in self._there if given & self.has]
        return bool(gone)

    def began_backward(self) -> None:
        if self._was_delivered:
            self.missing += self._gone
        else:
            self.replaced += self._gone
        self._gone.clear()
        self._was_delivered = False

    def went_backward(self, with_gradient: int, *, is_share: bool) -> None:
        """Note what has a gradient at the end of a backward."""
        self.num_backwards += 1
        if is_share and with_gradient:
            # Where others have theirs already, these are no sign of this backward.
            self._there.append(with_gradient & ~self.has or with_gradient)
        self._is_first_forward = True
        self.has |= with_gradient


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
        judged = is_named(window, self._step)
        events = _Events.of(window)
        rows: list[int] = []
        start = 0
        if pending.is_calm and events.is_calm(window):
            # Nothing can be missing up to the last step, whatever was before.
            start = events.num_calm
            steps = events.rows[:start][events.what[:start] == _STEP]
            rows = steps[judged[steps]].tolist()
            self._num_missing.update(dict.fromkeys(window.calls.object[rows].tolist(), 0))
            pending.restart()
        holds, told = [True] * len(rows), [(1, 0, "")] * len(rows)
        following = events.since(window, start)
        keys = {one.row: one.key for one in inputs_of(window)} if following else {}
        for event in following:
            what, row = event.what, event.row
            if what == _DELIVERED:
                pending.delivered(int(window.calls.object[row]))
            elif what == _FORWARD:
                pending.went_forward(
                    int(window.calls.object[row]),
                    keys.get(row, b""),
                    takes_gradient=_takes_gradient(window, int(window.calls.inputs[row])),
                )
            elif what == _ATTEMPT:
                pending.restart()
            elif pending.lost(event.without) and what == _CLEARED:
                name = short(window.catalog.apis[int(window.calls.api[row])].name)
                pending.cleared_by = f"{name}{place(window, row)}"
            if what == _BACKWARD:
                pending.began_backward()
            elif what == _WENT_BACKWARD:
                is_share = _is_share(window, row)
                pending.went_backward(event.with_gradient, is_share=is_share)
            elif what == _STEP and judged[row]:
                if not event.held & pending.has or pending.is_attack:
                    continue
                lost = pending.missing + pending.replaced * pending.has_batch_for_each
                num_missing = sum(1 for given in lost if given & event.held)
                rows.append(row)
                holds.append(self._count(int(window.calls.object[row]), num_missing) < IN_A_ROW)
                told.append((pending.num_backwards, num_missing, pending.cleared_by))
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array(holds, np.bool_),
            lambda index: _explain(window, rows[index], *told[index]),
        )

    def _count(self, target: int, num_missing: int) -> int:
        """Return how many steps of an optimizer in a row, with this one, lack a batch."""
        missing = self._num_missing.get(target, 0) + 1 if num_missing else 0
        self._num_missing[target] = missing
        return missing


def _explain(window: Window, row: int, total: int, missing: int, cleared_by: str) -> Explanation:
    name = short(window.catalog.apis[int(window.calls.api[row])].name)
    by = f" by {cleared_by}" if cleared_by else ""
    return Explanation(
        message=f"{name} used the gradients of {total - missing} of {total} backwards",
        cause=Cause(
            fact="gradients cleared before the step",
            subjects=("gradients",),
            text=f"the gradients of the others were cleared{by} before the step",
        ),
    )


_DELIVERED, _FORWARD, _ATTEMPT = range(3)
_CLEARED, _BACKWARD, _WENT_BACKWARD, _STEP = range(3, 7)


class _Event(NamedTuple):
    """Something that matters for gradients.

    Attributes:
        what: a batch was delivered, a forward began, a step was made or skipped; or there is a
            frame of gradients, at a clearing, the begin or end of a backward, or a step.
        row: of the call.
        without, with_gradient: the parameters that a frame shows without, and with, a gradient.
        held: those that the optimizer of the call holds.
    """

    what: int
    row: int
    without: int = 0
    with_gradient: int = 0
    held: int = 0


_FRAMES: tuple[tuple[int, Role, bool], ...] = (
    (_CLEARED, "zero_grad", True),
    (_CLEARED, "zero_grad", False),
    (_BACKWARD, "backward", True),
    (_WENT_BACKWARD, "backward", False),
    # What a step leaves of gradients is what it met.
    (_STEP, "step", True),
)
"""Which frames are looked at: the role of the call, and whether they are of its begin."""


class _Events:
    """What matters in a window, in order of time.

    Attributes:
        what, rows, positions: of each event what it is, its call, and its frame where it is one.
        num_calm: how many there are up to the last step that was made or skipped.
    """

    def __init__(self, window: Window) -> None:
        calls = window.calls
        forwards = window.rows_of_role("forward")
        allowed = window.catalog.contexts.column("grad_enabled")[calls.context[forwards]]
        forwards = forwards[allowed == 1]
        found = [*_ends(window), (_FORWARD, forwards)]
        times = [calls.end[rows] for _, rows in found[:-1]]
        times.append(calls.begin[forwards])
        shown = [np.full(sum(map(len, times)), NONE)]
        for kind, role, is_begin in _FRAMES:
            rows = window.rows_of_role(role)
            frames = frames_at(window, rows, PARAMETER, ("grad",), is_begin=is_begin)
            is_there = frames != NONE
            found.append((kind, rows[is_there]))
            shown.append(frames[is_there])
            times.append(place_of(window, shown[-1])[2])
        rows = np.concatenate([rows for _, rows in found])
        order = np.argsort(times_of(window, rows, np.concatenate(times)))
        what = np.repeat([kind for kind, _ in found], [len(rows) for _, rows in found])
        self.what = what[order]
        self.rows = rows[order]
        self.positions = np.concatenate(shown)[order]
        attempts = np.flatnonzero(self.what == _ATTEMPT)
        self.num_calm = int(attempts[-1]) + 1 if len(attempts) else 0
        self._is_calm: bool | None = None
        self._made: dict[int, list[_Event]] = {}

    @classmethod
    def of(cls, window: Window) -> _Events:
        """Return those of *window*."""
        events: _Events | None = window.cache.get(cls)
        if events is None:
            events = window.cache[cls] = cls(window)
        return events

    def since(self, window: Window, start: int) -> list[_Event]:
        """Return those from one on."""
        events = self._made.get(start)
        if events is None:
            what, rows = self.what[start:].tolist(), self.rows[start:].tolist()
            events = self._made[start] = list(map(_Event, what, rows))
            for indexes, shown in by_stack(window, self.positions[start:]):
                sets = _sets(shown)
                for index, one in zip(indexes.tolist(), sets, strict=True):
                    events[index] = _Event(what[index], rows[index], *one)
        return events

    def is_calm(self, window: Window) -> bool:
        """Return whether every step that was made used what the backward before it left.

        Then no loss is a share of one, no input takes a gradient, and nothing happens to gradients
        between a backward and the step.
        """
        if self._is_calm is None:
            self._is_calm = (
                self.num_calm > 0
                and self._has_whole_losses(window)
                and self._uses_gradients(window)
            )
        return self._is_calm

    def _has_whole_losses(self, window: Window) -> bool:
        inputs = window.calls.inputs
        backwards = self.rows[self.what == _WENT_BACKWARD]
        forwards = self.rows[self.what == _FORWARD]
        # Many calls have the same inputs.
        of_inputs = dict(zip(inputs[backwards].tolist(), backwards.tolist(), strict=True))
        return not any(_is_share(window, row) for row in of_inputs.values()) and not any(
            _takes_gradient(window, code) for code in set(inputs[forwards].tolist())
        )

    def _uses_gradients(self, window: Window) -> bool:
        what, positions = self.what[: self.num_calm], self.positions[: self.num_calm]
        frames = np.flatnonzero(positions != NONE)
        is_step = what[frames] == _STEP
        steps, before = frames[is_step], np.concatenate([[NONE], frames[:-1]])[is_step]
        number = np.cumsum(what == _ATTEMPT)
        if (
            not len(steps)
            or before[0] == NONE
            or (what[before] != _WENT_BACKWARD).any()
            or (number[before] != number[steps]).any()
        ):
            return False
        for indexes, shown in by_stack(window, positions[steps]):
            held = shown.select(HELD)
            for some, left in by_stack(window, positions[before[indexes]]):
                if held is None or not np.array_equal(shown.variables, left.variables):
                    return False
                met = shown.matches("grad", "non_zero")[some] & left.matches("grad", "non_zero")
                if not (held[some] & met).any(axis=1).all():
                    return False
        return True


def _ends(window: Window) -> Iterator[tuple[int, Int64]]:
    """Yield the calls that matter because they end."""
    apis = window.catalog.apis
    for code in window.api_codes:
        if apis[code].role == "data" and apis[code].name.endswith("__next__"):
            yield _DELIVERED, window.rows_of_api(code)
    steps = completed(window, window.rows_of_role("step"))
    yield _ATTEMPT, steps
    yield _ATTEMPT, skipped_steps(window, steps)


def _is_share(window: Window, row: int) -> bool:
    """Return whether a backward may be that of one of several micro-batches."""
    return not factor(window, row) > LARGEST_SHARE


def _takes_gradient(window: Window, signature: int) -> bool:
    """Return whether a call with these inputs is given a tensor that requires a gradient."""
    return any(item.requires_grad for item in window.catalog.signature(signature))


def _sets(shown: Moments) -> Iterator[tuple[int, int, int]]:
    """Yield of each moment what shows no gradient, what shows one, and what is held."""
    has, held = shown.matches("grad", "non_zero"), shown.select(HELD)
    both = np.stack([~has, has, np.zeros_like(has) if held is None else held])
    bits = np.zeros((*both.shape[:2], int(shown.variables.max()) + 1), np.bool_)
    bits[:, :, shown.variables] = both
    packed = np.packbits(bits, axis=2, bitorder="little")
    numbers = [[int.from_bytes(row.tobytes(), "little") for row in rows] for rows in packed]
    return zip(*numbers, strict=True)
