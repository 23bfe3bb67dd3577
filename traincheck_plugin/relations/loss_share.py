"""LossShareRelation: the backwards of a step are shares of one loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    APIParam,
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
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
from traincheck_plugin.relations.lifecycle import (
    AUTOGRAD_GRAD,
    accumulates,
    completed,
    factor,
    rows_of_role,
    skipped_steps,
)
from traincheck_plugin.relations.losses import BACKWARD
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair

AT_MOST, ONCE = "at most 1", "divided once"
"""What the shares of a step add up to, in place of a number: `ONCE` says no more than that it is
not 1/n for n shares."""

BY_TENSOR = "divided by a tensor"
"""Of several micro-batches each loss is divided by a tensor, as by a number of tokens."""

SPREAD = "as many as the framework divides by"
"""Of how many shares a step is, where a framework divides each."""

MIN_SHARES = 3
"""So many of 1/n each are no coincidence: a half of a half may be one, that of two losses."""

MAX_PENDING = 1 << 12
"""Backwards before the first step that are kept."""

_TOLERANCE = 1e-6
_DIGITS = 6


class LossShareRelation(Relation):
    """The constants that the losses of one step are multiplied with add up to what they did.

    ``forall consecutive steps s, t of one optimizer: sum of factor(b) = c`` over the backwards b
    between s and t whose gradients were not cleared. The factor is what divides a loss by the
    number of its micro-batches, read off the graph: 1/4 for each of four, so that c is 1, or what
    else the loss itself is multiplied by. A smaller sum is healthy
    once, as that of the last, shorter window of an epoch, but not twice in a row; with ``at most
    1`` only the sums of several backwards are judged. Of all pipelines, whatever part of the loss
    they mean, ``not (factor(b) = 1 / n^2 for each of the n backwards b)`` twice in a row, for n of
    at least `MIN_SHARES`; and where what calls each b says that it divides by N, ``n >= N``, but
    for single steps.

    Catches a loss that is divided by the number of micro-batches twice, and one that a framework
    divides, though each micro-batch leads to a step. Cannot see a factor that is
    a tensor, as a number of tokens may be, or that is within the loss function: where no loss is
    divided, nothing is said.
    """

    name = "LossShareRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_claim(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        step, total = _claim(params)
        name = short(step.api_full_name)
        if total == ONCE:
            return f"no loss that leads to a {name} is divided by its micro-batches twice"
        if total == SPREAD:
            return f"as many micro-batches lead to a {name} as the framework divides the loss by"
        if total == BY_TENSOR:
            return f"each loss of several that lead to a {name} is divided by a tensor"
        return f"the shares of the loss that lead to a {name} are {total}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(_claim(params)[0])

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _claim(params: tuple[Param, ...]) -> tuple[APIParam, str]:
    """Return what steps, and what the shares add up to.

    Raises:
        InvariantError: it is no hypothesis of this relation.
    """
    if len(params) == 1 and isinstance(params[0], APIParam):
        return params[0], ONCE
    if len(params) == 2 and isinstance(params[0], APIParam) and params[1] == BACKWARD:
        return params[0], SPREAD
    step, total = pair(LossShareRelation.name, params, APIParam, ConstantParam)
    if total.value not in (AT_MOST, BY_TENSOR) and not 0 < _number(total.value) <= 1:
        raise InvariantError(f"{LossShareRelation.name} knows no sum {total.value!r}")
    return step, str(total.value)


def _number(total: object) -> float:
    """Return what shares add up to; 0 where it is no number."""
    try:
        return float(total) if isinstance(total, str) else 0.0
    except ValueError:
        return 0.0


class _Share(NamedTuple):
    """What a backward adds to a step.

    Attributes:
        factor: that its loss was multiplied by.
        spread: over how many micro-batches what calls it spreads a step; 0 where that is not known.
    """

    factor: float
    spread: int


class _Shares:
    """Collects the shares of the backwards that lead to each step."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._pending: list[_Share] = []
        self._taken: dict[int, int] = {}
        self._is_begin = True

    def forget(self) -> None:
        """Start anew after a stretch that was not observed."""
        self._pending.clear()
        self._taken.clear()
        self._is_begin = False

    def observe(self, window: Window, start: int = 0) -> list[tuple[int, list[_Share]]]:
        """Return the rows of the steps that end a cycle, with the shares of its backwards.

        A cycle without a backward is left out. A factor that is not known is NaN.

        Args:
            window: the next one.
            start: row of the first call that counts.
        """
        calls, apis = window.calls, window.catalog.apis
        steps = completed(window, rows_of_role(window, "step"))
        skipped = skipped_steps(window, steps)
        rows = np.union1d(rows_of_role(window, "backward", "zero_grad", "step"), skipped)
        rows = rows[np.searchsorted(rows, start) :]
        is_skipped = set(skipped.tolist())
        found = []
        # In the order in which calls end: few for each step.
        of_rows = zip(
            rows.tolist(), calls.api[rows].tolist(), calls.object[rows].tolist(), strict=True
        )
        for row, code, target in of_rows:
            api = apis[code]
            if row in is_skipped:
                self._clear()
            elif api.role == "backward":
                if api.name != AUTOGRAD_GRAD:
                    self._pending.append(_Share(factor(window, row), accumulates(window, row)))
            elif api.role == "zero_grad":
                self._clear(target)
            else:
                # What led to the first step of all is all there was.
                is_known = self._is_begin or target in self._taken
                self._is_begin = False
                if is_known and self._step in api.names:
                    found.append((row, self._pending[self._taken.get(target, 0) :]))
                self._taken[target] = len(self._pending)
        self._trim()
        return [(row, shares) for row, shares in found if shares]

    def _clear(self, target: int = -1) -> None:
        """Forget what was meant for one optimizer, or (of a module) for all."""
        if self._is_begin:
            self._pending.clear()
        for known in [target] if target in self._taken else list(self._taken):
            self._taken[known] = len(self._pending)

    def _trim(self) -> None:
        """Drop the backwards that no optimizer waits for."""
        if self._is_begin and len(self._pending) < MAX_PENDING:
            return
        self._is_begin = False
        done = min(self._taken.values(), default=len(self._pending))
        if done:
            del self._pending[:done]
            self._taken = {target: taken - done for target, taken in self._taken.items()}


class _Monitor(Monitor):
    def __init__(self, step: APIParam, total: str) -> None:
        self._total = total
        self._sum = _number(total)
        self._shares = _Shares(step.api_full_name)
        self._was_less: dict[int, bool] = {}

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._shares.forget()
            self._was_less.clear()
            return NO_EXAMPLES
        found = [one for one in self._shares.observe(window) if self._judges(one[1])]
        if not found:
            return NO_EXAMPLES
        holds = [self._holds(int(window.calls.object[row]), shares) for row, shares in found]

        def explain(index: int) -> Explanation:
            row, shares = found[index]
            name = short(window.catalog.apis[int(window.calls.api[row])].name)
            spread = shares[0].spread if self._total == SPREAD else 0
            if self._total == BY_TENSOR:
                return _explain_whole(name, len(shares))
            return _explain(name, [share.factor for share in shares], spread, self._sum or 1.0)

        rows = np.array([row for row, _ in found], np.int64)
        return Examples.of_calls(window, rows, np.array(holds, np.bool_), explain)

    def _judges(self, shares: Sequence[_Share]) -> bool:
        """Return whether the claim says anything of a step of these shares."""
        if self._total == BY_TENSOR:
            return len(shares) > 1 and (_are_whole(shares) or _is_by_tensor(shares))
        if not _is_known(shares):
            return False
        if self._total == SPREAD:
            return _is_spread(shares)
        is_shared = _is_shared([share.factor for share in shares])
        return is_shared and (self._total != ONCE or len(shares) >= MIN_SHARES)

    def _holds(self, target: int, shares: Sequence[_Share]) -> bool:
        factors = [share.factor for share in shares]
        total = sum(factors)
        if self._total == AT_MOST:
            return len(factors) == 1 or total <= 1 + _TOLERANCE
        if self._total == SPREAD:
            is_less = len(shares) < shares[0].spread
        elif self._total == BY_TENSOR:
            is_less = _are_whole(shares)
        elif self._total == ONCE:
            is_less = _is_divided_twice(factors)
        else:
            is_less = total < self._sum - _TOLERANCE
        was_less, self._was_less[target] = self._was_less.get(target, False), is_less
        if is_less:
            return not was_less
        return self._sum == 0 or total <= self._sum + _TOLERANCE


def _is_known(shares: Sequence[_Share]) -> bool:
    return not any(math.isnan(share.factor) for share in shares)


def _is_by_tensor(shares: Sequence[_Share]) -> bool:
    return all(math.isnan(share.factor) for share in shares)


def _are_whole(shares: Sequence[_Share]) -> bool:
    return all(share.factor == 1 for share in shares)


def _is_spread(shares: Sequence[_Share]) -> bool:
    """Return whether a framework tells by how many it divides all of the losses, and does."""
    spread = shares[0].spread
    return all(
        share.spread == spread > 0 and share.factor * spread <= 1 + _TOLERANCE for share in shares
    )


def _is_divided_twice(factors: Sequence[float]) -> bool:
    square = 1 / len(factors) ** 2
    return all(math.isclose(factor, square, rel_tol=_TOLERANCE) for factor in factors)


def _is_shared(factors: Sequence[float]) -> bool:
    """Return whether the graph tells how a loss is shared: several whole ones are shared elsewhere.

    Trainers of transformers divide by a number of tokens that they count beforehand, and multiply
    by the number of processes, for DistributedDataParallel takes the mean.
    """
    return max(factors) <= 1 and (len(factors) == 1 or min(factors) < 1)


def _explain(name: str, factors: Sequence[float], spread: int, expected: float) -> Explanation:
    number = len(factors)
    backwards = "one backward leads" if number == 1 else f"{number} backwards lead"
    if len(set(factors)) == 1:
        twice = ", twice by their number" * (number >= MIN_SHARES and _is_divided_twice(factors))
        how = f"the loss of each is divided by {1 / factors[0]:g}{twice}"
        if spread:
            how += f", since {spread} micro-batches are set to be accumulated, and are not"
    else:
        how = f"their losses are multiplied by {', '.join(f'{f:g}' for f in factors[:8])}"
    short_of = "too small" if sum(factors) < expected else "too large"
    return Explanation(
        message=f"{name} used gradients of {sum(factors):g} times the mean loss of its "
        f"micro-batches, expected {expected:g}",
        cause=Cause(
            fact="share of the loss",
            subjects=("loss",),
            text=f"{backwards} to a step, and {how}: the gradients are {short_of}",
        ),
    )


def _explain_whole(name: str, number: int) -> Explanation:
    return Explanation(
        message=f"{name} used the sum of {number} losses that nothing divides; in the reference a "
        "tensor divides each",
        cause=Cause(
            fact="share of the loss",
            subjects=("loss",),
            text=f"{number} backwards lead to a step, and their losses are not divided by the "
            "number of tokens, labels or samples in all of them: the gradients are too large",
        ),
    )


class _Proposer(Proposer):
    """Proposes what the shares of every step of the reference add up to.

    A reference without accumulation shows nothing of how losses are shared.
    """

    def __init__(self) -> None:
        self._steps: dict[APIParam, _Shares] = {}
        self._sums: dict[APIParam, dict[float, set[bool]]] = {}
        self._with_many: dict[APIParam, None] = {}
        self._spread: dict[APIParam, None] = {}
        self._by_tensor: dict[APIParam, bool] = {}

    def observe(self, window: Window) -> None:
        # What is new counts from the window on in which it is called first.
        starts: dict[APIParam, int] = {}
        for code in window.api_codes:
            api = window.catalog.apis[code]
            param = APIParam(api_full_name=api.general, role=api.role)
            if api.role == "step" and param not in self._steps:
                self._steps[param] = _Shares(api.general)
                starts[param] = window.start_of(window.rows_of_name(api.general)[0])
        for param, shares in self._steps.items():
            if not window.observed:
                shares.forget()
                continue
            sums = self._sums.setdefault(param, {})
            for _, told in shares.observe(window, starts.get(param, 0)):
                factors = [share.factor for share in told]
                if len(told) > 1:
                    self._by_tensor[param] = self._by_tensor.get(param, True) & _is_by_tensor(told)
                if not _is_known(told):
                    continue
                if _is_spread(told):
                    self._spread[param] = None
                if not _is_shared(factors):
                    continue
                if len(factors) >= MIN_SHARES:
                    self._with_many[param] = None
                sums.setdefault(round(sum(factors), _DIGITS), set()).add(len(factors) > 1)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for step in self._with_many:
            yield Hypothesis(relation=LossShareRelation.name, params=(step,))
        for step in self._spread:
            yield Hypothesis(relation=LossShareRelation.name, params=(step, BACKWARD))
        for step, sums in self._sums.items():
            totals = [BY_TENSOR] if self._by_tensor.get(step) else []
            # The largest is that of a whole window.
            whole = max(sums, default=0.0)
            if True in sums.get(whole, ()) and whole <= 1:
                totals += [AT_MOST] * (whole == 1) + [f"{whole:g}"]
            for total in totals:
                params = (step, ConstantParam(value=total))
                yield Hypothesis(relation=LossShareRelation.name, params=params)
