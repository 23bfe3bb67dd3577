"""LossFormulaRelation: the loss is computed as it is in a healthy run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Hypothesis, Param, Severity
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
from traincheck_plugin.relations.excuse import Excuse
from traincheck_plugin.relations.losses import (
    BACKWARD,
    MAX_WAYS,
    MIN_BACKWARDS,
    EarlyLosses,
    losses,
    whose,
)
from traincheck_plugin.relations.params import api_plan
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import BROADCAST, CONSTANT, LAYER

SIGNED = replace(BACKWARD, attribute="sign")
"""Speaks of losses that are like one of the reference but for signs and numbers of dimensions."""

FLOWING = replace(BACKWARD, attribute="requires_grad")
"""Speaks of those that are like one but for what gradients go to."""

LOGARITHMED = replace(BACKWARD, attribute="log")
"""Speaks of those that are like one but for the logarithms of probabilities."""

HIDING = replace(BACKWARD, attribute="mask")
"""Speaks of those that are like one but for masks and factors that it has and they have not."""

SHAPED = replace(BACKWARD, attribute="shape")
"""Speaks of all losses of a prediction and a target."""

LOGARITHMIC_INPUT = replace(BACKWARD, attribute="logarithm")
"""Speaks of all losses that expect the logarithms of probabilities."""

LOGITS = replace(BACKWARD, attribute="logits")
"""Speaks of all losses that expect logits."""

_DIFFERENCE = "sub"

_REVERSED = "rsub"

_NEGATION = "neg"

_PRODUCT = "mul"

PAIRED = frozenset({"mse_loss", "smooth_l1_loss", "huber_loss", _DIFFERENCE, _REVERSED, _PRODUCT})
"""Losses of a prediction and a target, differences and products that broadcast them."""

SQUASHED = frozenset({"softmax", "sigmoid"})
"""Functions that give probabilities: they leave no room for one of the next to tell them apart."""

LOGARITHMIC = frozenset({"nll_loss", "nll_loss2d", "ctc_loss"})
"""Losses that expect the logarithms of probabilities."""

UNBOUNDED = frozenset({LAYER, "elu", "gelu", "leaky_relu", "relu", "silu"})
"""What gives numbers of any size: no logarithms of probabilities."""

LOGISTIC = frozenset({"binary_cross_entropy_with_logits", "log_sigmoid", "log_softmax"})
"""Functions that expect numbers of either sign."""

RECTIFIED = frozenset({"hardtanh", "relu", "threshold"})
"""Functions that cut off what is below zero."""

SQUASHING = SQUASHED | {"log_softmax", "log_sigmoid", "binary_cross_entropy_with_logits"}

_ADDING = frozenset({_DIFFERENCE, _REVERSED})
_NORMALISER = "logsumexp"
_FILLING = frozenset({"masked_fill", "where"})
_SUMS = frozenset({"mean", "sum"})
_PROBABILITIES = {"log_softmax": "softmax", "log_sigmoid": "sigmoid"}

Formula = frozenset[tuple[str, tuple[str, ...]]]
"""Operations, each with all whose results it takes."""

Pairs = frozenset[tuple[str, str]]
"""Operations, each with one whose result it takes."""


class LossFormulaRelation(Relation):
    """The loss is computed by the operations of the reference, and squashes nothing twice.

    Of one pipeline, ``forall backwards b after a forward of C, in the first `FIRST` steps that have
    one: formula(b) in formulas``; the first failure in a row is excused, and nothing is said once a
    state was loaded into an optimizer. That is told as `info`, for losses are changed on purpose;
    as `warning` where b has the formula of the reference but for signs and the numbers of
    dimensions of what is summed up, but for what is a constant in one of them and something
    that gradients go to in the other, but for probabilities in place of their logarithms, or
    but for a mask or a constant factor that it has not. Of all pipelines, ``forall backwards b
    of a loss that squashes, forall p(.., q, ..) in formula(b): not (p squashes, or expects
    logarithms, and q is a softmax or a sigmoid)``, and ``forall backwards b of a loss with one
    of `PAIRED`: it does not take n predictions as n times n``, and ``forall backwards b, forall
    p(.., q, ..) in formula(b) where p expects logarithms: q is none of `UNBOUNDED` ``, and
    ``forall such b, p(.., q, ..) where p is one of `LOGISTIC`: q is none of `RECTIFIED` ``. A
    formula is the operations of the autograd graph, each with those whose results it takes, from
    the loss to the last layers; shapes, casts and numbers do not count.

    Catches a softmax or a ReLU before `cross_entropy`, an `nll_loss` of logits, a term with the
    wrong sign or a weight of 0, predictions and targets that are broadcast against each other, a
    term that is computed under `no_grad`, a target that is not detached, and a mask that is not
    applied. Cannot see another constant, nor a target that is wrong.
    """

    name = "LossFormulaRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        known = _known(params)
        if known is None:
            return _Lawful(_LAWS[params])
        return _Known(*known, about=params[0])

    def describe(self, params: tuple[Param, ...]) -> str:
        known = _known(params)
        if known is None:
            return _LAWS[params].sentence
        name, formulas = known
        shown = ", ".join(sorted(_operations(formulas[0])))
        after = f" after {name}" if name else ""
        ways = f", or in {len(formulas) - 1} other ways" if len(formulas) > 1 else ""
        if params[0] in _SENTENCES:
            return _SENTENCES[params[0]].format(
                f"the loss{after} that is computed by {shown}{ways}"
            )
        return f"the loss{after} is computed by {shown}{ways}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(BACKWARD)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "info" if params[0] == BACKWARD and len(params) == 2 else "warning"


_SENTENCES: dict[Param, str] = {
    SIGNED: "the terms of {} keep their signs",
    FLOWING: "gradients go to the same terms of {}",
    LOGARITHMED: "logarithms of probabilities stay such in {}",
    HIDING: "what masks and factors hide stays hidden in {}",
}


def _known(params: tuple[Param, ...]) -> tuple[str, tuple[Formula, ...]] | None:
    """Return a class and its formulas; None where a hypothesis is about all of them.

    Raises:
        InvariantError: it is none of this relation.
    """
    if params in _LAWS:
        return None
    is_known = len(params) == 2 and params[0] in (BACKWARD, *_SENTENCES)
    if is_known and isinstance(params[1], ConstantParam):
        texts = params[1].value
        if isinstance(texts, tuple) and len(texts) > 1 and all(isinstance(t, str) for t in texts):
            return texts[0], tuple(map(_parse, texts[1:]))
    raise InvariantError(
        f"{LossFormulaRelation.name} expects the backward as APIParam, and where it is about one "
        f"model its class and formulas as ConstantParam, got {params}"
    )


@lru_cache(maxsize=1024)
def _parse(formula: str) -> Formula:
    operations = (token.removesuffix(")").partition("(") for token in formula.split())
    return frozenset((outer, tuple(inputs.split(","))) for outer, _, inputs in operations)


@lru_cache(maxsize=1024)
def _pairs(formula: Formula) -> Pairs:
    return frozenset((outer, inner) for outer, inputs in formula for inner in inputs)


def _unsigned(pairs: Pairs) -> Pairs:
    """Return what is left of pairs without signs and numbers of dimensions."""
    plain = {(_plain(outer), _plain(inner)) for outer, inner in pairs if inner != BROADCAST}
    return _without(plain, {_NEGATION})


def _without(pairs: Set[tuple[str, str]], names: Set[str]) -> Pairs:
    """Return the pairs with what some operations take in place of these."""
    takers = {outer for outer, inner in pairs if inner in names} - names
    taken = {inner for outer, inner in pairs if outer in names} - names
    kept = {pair for pair in pairs if names.isdisjoint(pair)}
    return frozenset({*kept, *product(takers, taken)})


def _masks(formula: Formula) -> Formula:
    """Return the operations that hide elements, or weight by what is constant what is summed up.

    Other products with constants may be of dropout, which is switched off on purpose.
    """
    is_summed = any(_plain(outer) in _SUMS and _PRODUCT in inputs for outer, inputs in formula)
    return frozenset(
        (outer, inputs)
        for outer, inputs in formula
        if outer in _FILLING or (is_summed and outer == _PRODUCT and CONSTANT in inputs)
    )


def _unmasked(formula: Formula) -> Pairs:
    """Return the pairs without what masks, and without products if none is of two results."""
    products = [inputs for outer, inputs in formula if outer == _PRODUCT]
    is_scaling = all(len(inputs) - inputs.count(CONSTANT) < 2 for inputs in products)
    return _without(_varying(formula), {*_FILLING, _PRODUCT} if is_scaling else _FILLING)


def _without_logarithms(formula: Formula) -> Pairs:
    """Return the pairs with probabilities in place of their logarithms."""
    names = _PROBABILITIES
    return frozenset(
        (names.get(outer, outer), names.get(inner, inner)) for outer, inner in _pairs(formula)
    )


def _plain(name: str) -> str:
    return "add" if name in _ADDING else name.partition("[")[0]


def _varying(formula: Formula) -> Pairs:
    """Return the pairs of a formula without constants."""
    return frozenset(pair for pair in _pairs(formula) if pair[1] != CONSTANT)


def _cuts(whole: Formula, part: Formula, *, is_one_of_several: bool = False) -> list[str]:
    """Return operations of *part* with a constant, where *whole* takes something in its place.

    Empty where that is not all that *part* has and *whole* has not. Of several terms that *whole*
    computes alike *part* may have cut off one: then *part* goes on to have that operation, too.
    """
    rest = part - whole
    given = whole if is_one_of_several else whole - part
    is_cut = all(any(_is_cut(one, of) for of in given) for one in rest)
    return sorted(outer for outer, _ in rest) if is_cut else []


def _cuts_off(known: Formula, now: Formula) -> list[str]:
    """Return what gives no gradient in a loss, and does in one of the reference."""
    return _cuts(known, now, is_one_of_several=True)


def _is_cut(part: tuple[str, tuple[str, ...]], whole: tuple[str, tuple[str, ...]]) -> bool:
    """Return whether an operation is that of *whole* with constants in place of some inputs."""
    added = Counter(part[1]) - Counter(whole[1])
    is_constant = set(added) == {CONSTANT} and len(part[1]) == len(whole[1])
    return part[0] == whole[0] and is_constant


def _operations(formula: Formula) -> frozenset[str]:
    names = {name for outer, inputs in formula for name in (outer, *inputs)}
    return frozenset(names - {LAYER, CONSTANT, BROADCAST})


class _Known(Monitor):
    """Judges the formulas of the losses after one class, or those of them that are alike.

    Args:
        after: the class.
        formulas: of the reference.
        about: which of them.
    """

    def __init__(self, after: str, formulas: tuple[Formula, ...], about: Param) -> None:
        self._after = after
        self._about = about
        self._formulas = formulas
        self._known: frozenset[Formula | Pairs] = frozenset(map(self._told, formulas))
        self._alike = frozenset(_unsigned(_varying(formula)) for formula in formulas)
        self._squashed = frozenset(map(_without_logarithms, formulas))
        self._early = PerRun(EarlyLosses)
        self._excuse = Excuse()

    def observe(self, window: Window) -> Examples:
        rows, holds, failing = [], [], []
        for loss in self._early.of(window.catalog).among(window):
            if loss.after != self._after or not loss.formula:
                continue
            formula = _parse(loss.formula)
            held = self._told(formula) in self._known
            if not held and not self._is_alike(formula):
                continue
            if self._excuse.counts(held):
                rows.append(loss.row)
                holds.append(held)
                failing.append(formula)
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array(holds, np.bool_),
            lambda index: self._explain(failing[index]),
        )

    def _told(self, formula: Formula) -> Formula | Pairs:
        """Return what the rule is about."""
        return _varying(formula) if self._about == SIGNED else formula

    def _is_alike(self, formula: Formula) -> bool:
        """Return whether the rule is about a formula that is none of the reference."""
        if self._about == SIGNED:
            return _unsigned(_varying(formula)) in self._alike
        if self._about == FLOWING:
            return any(
                _cuts_off(known, formula) or _cuts(formula, known) for known in self._formulas
            )
        if self._about == LOGARITHMED:
            return _without_logarithms(formula) in self._squashed
        if self._about == HIDING:
            return any(
                len(_masks(formula)) < len(_masks(known)) and _unmasked(formula) == _unmasked(known)
                for known in self._formulas
            )
        return True

    def _explain(self, formula: Formula) -> Explanation:
        if self._about == FLOWING:
            return _explain_flow(self._after, formula, self._formulas)
        why = ": what a mask hid, or a factor weighted, counts in full"
        return _explain_known(
            self._after, formula, self._formulas, why if self._about == HIDING else ""
        )


def _explain_flow(after: str, formula: Formula, formulas: tuple[Formula, ...]) -> Explanation:
    cut = next((found for known in formulas if (found := _cuts_off(known, formula))), None)
    if cut is not None:
        message = (
            f"a term of {whose(after)} gives no gradient, in {cut[0]}, and does in the reference"
        )
        text = (
            f"something that {cut[0]} takes in the loss is computed under no_grad, was "
            "detached, or has a weight of 0: nothing learns from it"
        )
    else:
        added = next(found for known in formulas if (found := _cuts(formula, known)))
        message = (
            f"a term of {whose(after)} gives a gradient, in {added[0]}, and does not in the "
            "reference"
        )
        text = (
            f"something that {added[0]} takes in the loss, such as a target or a weight, is not "
            "detached, or not computed under no_grad: what computes it learns, too"
        )
    return Explanation(
        message=message, cause=Cause(fact="another loss", subjects=("loss",), text=text)
    )


def _explain_known(
    after: str, formula: Formula, formulas: tuple[Formula, ...], why: str
) -> Explanation:
    nearest = min(formulas, key=lambda known: (len(known ^ formula), sorted(known)))
    now, then = _operations(formula), _operations(nearest)
    more, fewer = sorted(now - then), sorted(then - now)
    if not more and not fewer:
        more, fewer = _spelled(formula - nearest), _spelled(nearest - formula)
    parts = [f"with {', '.join(more)}"] * bool(more) + [f"without {', '.join(fewer)}"] * bool(fewer)
    told = " and ".join(parts)
    return Explanation(
        message=f"{whose(after)} is not computed as in the reference: {told}",
        cause=Cause(
            fact="another loss",
            subjects=("loss",),
            text="what goes backward is another loss than in the reference: it is computed "
            f"{told}{why}",
        ),
    )


def _spelled(formula: Formula) -> list[str]:
    return [f"{outer} of {' and '.join(inputs)}" for outer, inputs in sorted(formula)]


class _Law(NamedTuple):
    """What is true of the losses of all pipelines.

    Attributes:
        sentence: the rule.
        faults: returns what is wrong with a loss; None where the law says nothing of one.
        explain: says it of the first fault.
    """

    sentence: str
    faults: Callable[[Formula], Sequence[tuple[str, str]] | None]
    explain: Callable[[str, str], Explanation]


class _Lawful(Monitor):
    """Judges all losses by a law."""

    def __init__(self, law: _Law) -> None:
        self._law = law

    def observe(self, window: Window) -> Examples:
        judged = [
            (loss.row, faults)
            for loss in losses(window)
            if (faults := self._law.faults(_parse(loss.formula))) is not None
        ]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([row for row, _ in judged], np.int64),
            np.array([not faults for _, faults in judged], np.bool_),
            lambda index: self._law.explain(*judged[index][1][0]),
        )


def _squashed_twice(formula: Formula) -> Sequence[tuple[str, str]] | None:
    if not _operations(formula) & SQUASHING:
        return None
    takers = SQUASHING | LOGARITHMIC
    pairs = _pairs(formula) | _normalised(formula)
    return sorted(p for p in pairs if p[0] in takers and p[1] in SQUASHED)


def _normalised(formula: Formula) -> Pairs:
    """Return what a log_softmax by hand is made of, as distributions do: ``x - logsumexp(x)``."""
    summed = {inner for outer, inputs in formula if outer == _NORMALISER for inner in inputs}
    return frozenset(
        ("log_softmax", inner)
        for outer, inputs in formula
        if outer == _DIFFERENCE and _NORMALISER in inputs
        for inner in summed.intersection(inputs)
    )


def _explain_squashing(outer: str, inner: str) -> Explanation:
    text = (
        f"{outer} expects the logarithms of probabilities and is given what {inner} returns: a "
        "log_softmax is missing"
        if outer in LOGARITHMIC
        else f"what {inner} returns goes through {outer}, too, as in a loss that expects logits "
        "and is given probabilities: gradients are small, and the loss cannot reach 0"
    )
    return Explanation(
        message=f"the loss applies {outer} to the result of {inner}",
        cause=Cause(fact="another loss", subjects=("loss",), text=text),
    )


def _broadcast(formula: Formula) -> Sequence[tuple[str, str]] | None:
    if not _operations(formula) & PAIRED:
        return None
    return sorted(p for p in _pairs(formula) if p[0] in PAIRED and p[1] == BROADCAST)


def _explain_broadcast(loss: str, _: str) -> Explanation:
    if loss == _PRODUCT:
        message = "the loss multiplies each prediction with the label or weight of each sample"
        text = (
            "what is multiplied in the loss has other shapes, such as (n, 1) and (n,), and is "
            "broadcast to n times n: each prediction counts with the labels, weights or returns of "
            "all samples"
        )
    else:
        loss = "the difference" if loss in _ADDING else loss
        message = f"{loss} compares each prediction with each target"
        text = (
            f"the predictions and the targets of {loss} have other shapes, such as (n, 1) and "
            "(n,), and are broadcast to n times n: the model learns the mean of the targets"
        )
    return Explanation(
        message=message, cause=Cause(fact="another loss", subjects=("loss",), text=text)
    )


def _unbounded(formula: Formula) -> Sequence[tuple[str, str]] | None:
    if not _operations(formula) & LOGARITHMIC:
        return None
    return sorted(p for p in _pairs(formula) if p[0] in LOGARITHMIC and p[1] in UNBOUNDED)


def _explain_unbounded(loss: str, given: str) -> Explanation:
    given = "a layer" if given == LAYER else given
    return Explanation(
        message=f"the loss applies {loss} to the result of {given}",
        cause=Cause(
            fact="another loss",
            subjects=("loss",),
            text=f"{loss} expects the logarithms of probabilities and is given what {given} "
            "returns: a log_softmax is missing, and the loss has no lower bound",
        ),
    )


def _rectified(formula: Formula) -> Sequence[tuple[str, str]] | None:
    if not _operations(formula) & LOGISTIC:
        return None
    return sorted(p for p in _pairs(formula) if p[0] in LOGISTIC and p[1] in RECTIFIED)


def _explain_rectified(loss: str, given: str) -> Explanation:
    return Explanation(
        message=f"the loss applies {loss} to the result of {given}",
        cause=Cause(
            fact="another loss",
            subjects=("loss",),
            text=f"{loss} expects logits of either sign, and {given} cuts off those below zero: no "
            "class can be ruled out, and no gradient goes to what was cut off",
        ),
    )


_LAWS: dict[tuple[Param, ...], _Law] = {
    (BACKWARD,): _Law(
        "no loss applies softmax, sigmoid, nll_loss or the like to what one of the first returns",
        _squashed_twice,
        _explain_squashing,
    ),
    (SHAPED,): _Law(
        "no loss broadcasts predictions and targets against each other",
        _broadcast,
        _explain_broadcast,
    ),
    (LOGARITHMIC_INPUT,): _Law(
        "no loss applies nll_loss or ctc_loss to what a layer returns",
        _unbounded,
        _explain_unbounded,
    ),
    (LOGITS,): _Law("no loss takes what a ReLU returns for logits", _rectified, _explain_rectified),
}


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._early = PerRun(EarlyLosses)
        self._formulas: dict[str, dict[str, None]] = {}
        self._num_seen: dict[str, int] = {}

    def observe(self, window: Window) -> None:
        for loss in self._early.of(window.catalog).among(window):
            if loss.formula:
                self._formulas.setdefault(loss.after, {})[loss.formula] = None
                self._num_seen[loss.after] = self._num_seen.get(loss.after, 0) + 1

    def hypotheses(self) -> Iterable[Hypothesis]:
        name = LossFormulaRelation.name
        every = {_parse(formula) for formulas in self._formulas.values() for formula in formulas}
        for params, law in _LAWS.items():
            if any(law.faults(formula) is not None for formula in every):
                yield Hypothesis(relation=name, params=params)
        for after, formulas in self._formulas.items():
            if self._num_seen[after] >= MIN_BACKWARDS and len(formulas) <= MAX_WAYS:
                value = ConstantParam(value=(after, *sorted(formulas)))
                for backward in (BACKWARD, *_SENTENCES):
                    yield Hypothesis(relation=name, params=(backward, value))
