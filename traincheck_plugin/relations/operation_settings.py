"""OperationSettingsRelation: operations take together, and leave out, what they did."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Frame, Window
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
    Loss,
    Settings,
    losses,
    settings_of,
    whose,
)
from traincheck_plugin.relations.params import api_plan
from traincheck_plugin.relations.passing import frames_of
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import VariableKind

MAX_UNMASKED = 2
"""Losses in a row without a mask that are excused: batches without padding need none."""

_SELF_ATTENTION, _HIDES = "self_attention.masked", "self_attention.hides"
_SIDE = "attention.side"
_MASKED, _HIDING = ".masked", ".hides"
_HIDDEN_FROM_ALL, _EARLIER = "keys", "earlier"
_MASKING = "no", "not every", "every"


class OperationSettingsRelation(Relation):
    """The operations of a loss are set to what they were in the reference.

    ``forall backwards b after a forward of C, in the first steps that have one, settings s of
    operations o in the autograd graph of both: values(b, o, s) in values(reference, o, s)``. The
    settings are the dimensions that an operation goes over, the target that it leaves out, and
    whether something hides elements from it. Of what is hidden, only that less is than in all
    losses of the reference, that it is what comes earlier, and that it is the other end of samples.
    The first failure in a row is
    excused, and `MAX_UNMASKED` without a mask; nothing is said once a state was loaded into an
    optimizer.

    Of all pipelines, ``forall backwards b of nll_loss, of which the targets come later in an input,
    with attention over as many positions as there are in the graph: one of b is masked``, by more
    than what hides the same from all positions, or only what comes earlier; and ``forall backwards
    b, attention a of what has gradients in its graph: a sums up values along the dimension along
    which their weights add up to one``; ``forall backwards b, reshapes r in its graph: r splits and
    merges axes``; ``forall backwards b, log_softmax l in its graph: classes are picked along the
    dimension over which l goes``; ``forall backwards b, two losses in its graph: they have other
    predictions or other targets``; ``forall backwards b: a way from it to a parameter has no
    operation whose gradient is 0``; and ``forall backwards b, attention a in its graph that hides
    one end of samples, and as many tokens that the model was given: they are padded at that end``.
    The first failure in a row of these six is excused.

    Catches an attention without its causal mask, or with an inverted one, an inverted mask of
    padding, a softmax over another dimension, a reshape in place of a permute, one direction of a
    contrast in place of both, outputs that are rounded, and padding that counts in the loss. Cannot
    see what is computed without operations that tell it: a loss that is masked by a product,
    padding in a convolution; nor a sum in place of a mean, since a sum may be divided elsewhere;
    nor a reshape of axes of which one is a multiple of the other.
    """

    name = "OperationSettingsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        if params == _LAW:
            return _Lawful()
        if params in _WRONG:
            return _Set(*_WRONG[params])
        after, known = _known(params)
        return _Monitor(after, [settings_of(text) for text in known])

    def describe(self, params: tuple[Param, ...]) -> str:
        if params == _LAW:
            return "attention that leads to predictions of what comes next in the input has a mask"
        if params in _WRONG:
            return _RIGHT[params]
        after, known = _known(params)
        settings = {(name, values) for text in known for name, values in settings_of(text).items()}
        told = ", ".join(sorted(f"{name} {_spelled(values)}" for name, values in settings))
        return f"the operations that compute {whose(after)} are set as they were: {told}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        plan = api_plan(BACKWARD)
        if params not in (_LAW, _PADDING):
            return plan
        # What models are given is kept for whoever asks what losses have to do with it.
        return plan.union(Plan(functions=frozenset(), attributes={"backward": _LAGS}))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


_LAW: tuple[Param, ...] = (BACKWARD,)
_SUMS: tuple[Param, ...] = (replace(BACKWARD, argument="summed"),)
_RESHAPES: tuple[Param, ...] = (replace(BACKWARD, argument="mixes"),)
_CLASSES: tuple[Param, ...] = (replace(BACKWARD, argument="picked"),)
_ONCE: tuple[Param, ...] = (replace(BACKWARD, argument="repeated"),)
_SLOPING: tuple[Param, ...] = (replace(BACKWARD, argument="flat"),)
_PADDING: tuple[Param, ...] = (replace(BACKWARD, argument="padding"),)
"""These speak of all pipelines."""

_WRONG = {
    _SUMS: ("attention.summed", "no"),
    _RESHAPES: ("reshape.mixes", "yes"),
    _CLASSES: ("log_softmax.picked", "no"),
    _ONCE: ("loss.repeated", "yes"),
    _SLOPING: ("loss.flat", "yes"),
    _PADDING: ("attention.padding", "shown"),
}
"""Settings, and which of their values are wrong everywhere."""

_RIGHT = {
    _SUMS: "attention sums up values along the dimension over which its softmax goes",
    _RESHAPES: "a reshape splits and merges axes, and exchanges none",
    _CLASSES: "classes are picked along the dimension over which their log_softmax goes",
    _ONCE: "no loss compares the same with the same twice",
    _SLOPING: "no loss is computed of what is rounded alone",
    _PADDING: "a mask of attention that hides one end of samples hides that with the padding",
}

_LAGS: frozenset[tuple[VariableKind, str]] = frozenset({("target", "value")})


def _known(params: tuple[Param, ...]) -> tuple[str, tuple[str, ...]]:
    """Return a class, and the settings of its losses.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    if len(params) == 2 and params[0] == BACKWARD and isinstance(params[1], ConstantParam):
        value = params[1].value
        if isinstance(value, tuple) and len(value) > 1 and all(isinstance(t, str) for t in value):
            return value[0], value[1:]
    raise InvariantError(
        f"{OperationSettingsRelation.name} expects the backward as APIParam, and where it is about "
        f"one model its class and the settings of its losses as ConstantParam, got {params}"
    )


def _spelled(values: frozenset[str]) -> str:
    return " and ".join(sorted(values))


def _how_masked(values: frozenset[str]) -> int:
    """Return the place in `_MASKING` of what is told of the masks of all operations of a name."""
    return ("yes" in values) * (2 - ("no" in values))


class _Monitor(Monitor):
    """Judges the settings of the losses after one class.

    Args:
        after: the class.
        known: the settings of its losses in the reference.
    """

    def __init__(self, after: str, known: list[Settings]) -> None:
        self._after = after
        self._allowed: dict[str, set[frozenset[str]]] = {}
        for settings in known:
            for name, values in settings.items():
                if name == _SELF_ATTENTION:
                    # Two sequences may happen to be as long.
                    continue
                self._allowed.setdefault(name, set()).add(values)
        self._early = PerRun(EarlyLosses)
        self._excuses = {False: Excuse(), True: Excuse(MAX_UNMASKED)}

    def observe(self, window: Window) -> Examples:
        rows, failing = [], []
        for loss in self._early.of(window.catalog).among(window):
            if loss.after != self._after or not loss.settings:
                continue
            others = self._others(settings_of(loss.settings))
            told: list[tuple[str, frozenset[str]]] = []
            is_excused = False
            for is_of_masks, excuse in self._excuses.items():
                alike = [one for one in others if one[0].endswith(_MASKED) == is_of_masks]
                if excuse.counts(not alike):
                    told += alike
                else:
                    is_excused = True
            if told or not is_excused:
                rows.append(loss.row)
                failing.append(told)
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array([not others for others in failing], np.bool_),
            lambda index: self._explain(*failing[index][0]),
        )

    def _others(self, settings: Settings) -> list[tuple[str, frozenset[str]]]:
        """Return those that are none of the reference, each with its values."""
        return [
            (name, values)
            for name, values in sorted(settings.items())
            if name in self._allowed and not self._is_allowed(name, values)
        ]

    def _is_allowed(self, name: str, values: frozenset[str]) -> bool:
        allowed = self._allowed[name]
        if name.endswith(_MASKED):
            return _how_masked(values) >= min(map(_how_masked, allowed))
        if name.endswith(_HIDING):
            # The rest depends on the padding of a batch.
            return _EARLIER not in values or any(_EARLIER in known for known in allowed)
        if name == _SIDE:
            # Both are hidden where samples are padded at both ends, or some keys at random.
            return any(values & known for known in allowed)
        return values in allowed

    def _explain(self, name: str, values: frozenset[str]) -> Explanation:
        operation, _, setting = name.rpartition(".")
        message, text = _EXPLAINED[setting]
        told = {"operation": operation}
        if setting == "masked":
            told["now"] = _MASKING[_how_masked(values)]
            told["before"] = _MASKING[min(map(_how_masked, self._allowed[name]))]
        else:
            told["now"] = _spelled(values)
            told["before"] = " or ".join(sorted(map(_spelled, self._allowed[name])))
        message = f"in {whose(self._after)}, {message.format(**told)}"
        cause = Cause(fact="another setting", subjects=(operation,), text=text.format(**told))
        return Explanation(message=message, cause=cause)


class _Lawful(Monitor):
    """Judges the attention of losses whose targets come later in an input."""

    def observe(self, window: Window) -> Examples:
        following = {row for row, frame in frames_of(window, "target") if _follows(window, frame)}
        judged = [
            (loss, _leak(settings))
            for loss in losses(window)
            if loss.row in following and _SELF_ATTENTION in (settings := settings_of(loss.settings))
        ]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([loss.row for loss, _ in judged], np.int64),
            np.array([not leak for _, leak in judged], np.bool_),
            lambda index: _explain_leak(*judged[index]),
        )


def _leak(settings: Settings) -> str:
    """Return why positions see what they should predict; "" where they do not."""
    if not _how_masked(settings[_SELF_ATTENTION]):
        return "no attention has a mask"
    hides = settings.get(_HIDES, frozenset())
    if hides and hides <= {_HIDDEN_FROM_ALL, _EARLIER}:
        if _EARLIER in hides:
            return "the mask of attention hides what comes earlier"
        return "no mask of attention hides what comes later"
    return ""


class _Set(Monitor):
    """Judges all losses by what an operation may not be set to.

    Args:
        name: of the operation and of its setting.
        wrong: value.
    """

    def __init__(self, name: str, wrong: str) -> None:
        self._name = name
        self._wrong = wrong
        self._excuses: PerRun[dict[str, Excuse]] = PerRun(dict)

    def observe(self, window: Window) -> Examples:
        excuses = self._excuses.of(window.catalog)
        judged = [
            (loss, self._wrong not in values)
            for loss in losses(window)
            if (values := settings_of(loss.settings).get(self._name)) is not None
            and excuses.setdefault(loss.after, Excuse()).counts(self._wrong not in values)
        ]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([loss.row for loss, _ in judged], np.int64),
            np.array([is_right for _, is_right in judged], np.bool_),
            lambda index: self._explain(judged[index][0]),
        )

    def _explain(self, loss: Loss) -> Explanation:
        operation, _, setting = self._name.rpartition(".")
        message, text = _EXPLAINED[setting]
        return Explanation(
            message=f"in {whose(loss.after)}, {message.format(operation=operation)}",
            cause=Cause(
                fact="another setting",
                subjects=(operation,),
                text=text.format(operation=operation),
            ),
        )


def _follows(window: Window, frame: Frame) -> bool:
    """Return whether classes that are to be predicted come later in an input."""
    return any(
        0 < lag < math.inf and window.catalog.variables[code].type.startswith("nll_loss")
        for code, lag in zip(frame.variables.tolist(), frame.columns["value"].tolist(), strict=True)
    )


def _explain_leak(loss: Loss, leak: str) -> Explanation:
    return Explanation(
        message=f"in {whose(loss.after)}, targets come later in the input, and {leak}",
        cause=Cause(
            fact="another setting",
            subjects=("attention",),
            text="positions see the targets that they should predict: the causal mask, or "
            "is_causal, is missing, or the mask is inverted",
        ),
    )


_EXPLAINED: dict[str, tuple[str, str]] = {
    "dimension": (
        "{operation} goes over dimension {now}; in the reference over {before}",
        "{operation} takes together what belongs to different samples, positions or classes: its "
        "dim is another one, or what it is given was transposed",
    ),
    "ignored": (
        "{operation} leaves out targets of {now}; in the reference of {before}",
        "ignore_index of {operation} is not what the targets are padded with: padding counts in "
        "the loss, or a class does not",
    ),
    "masked": (
        "{now} {operation} has a mask; in the reference {before} {operation} has",
        "nothing is hidden from {operation}: the mask, is_causal or the lengths of samples are "
        "missing, and positions see those that they should predict, or padding counts",
    ),
    "hides": (
        "the mask of {operation} hides {now}; in the reference {before}",
        "the mask of {operation} is inverted: it hides what comes earlier, and shows the rest",
    ),
    "side": (
        "{operation} hides the {now} keys of samples; in the reference the {before} ones",
        "the padding mask of {operation} is inverted, and shows the padding alone; or samples are "
        "padded at their other end",
    ),
    "padding": (
        "{operation} hides one end of samples, and these are padded at the other",
        "the padding mask of {operation} is inverted: it hides what counts, and shows the padding",
    ),
    "summed": (
        "{operation} sums up values along another dimension than its softmax goes over",
        "the weights with which attention sums up values do not add up to one: its softmax goes "
        "over another dim, or its result was transposed",
    ),
    "mixes": (
        "a {operation} takes elements of one axis for those of another",
        "a reshape or view keeps the order of elements, and exchanges no axes: where they should "
        "be, a permute or a transpose is missing before it",
    ),
    "picked": (
        "classes are picked along another dimension than their {operation} goes over",
        "{operation} goes over the samples or positions in place of the classes: its dim is "
        "another one, or what it returns was transposed",
    ),
    "repeated": (
        "a {operation} compares the same with the same twice",
        "two terms of the {operation} are given the same predictions and the same targets: one of "
        "them is meant for others, such as the transposed scores of the other direction",
    ),
    "flat": (
        "all gradients of the {operation} are zeros: it is computed of what is rounded alone",
        "what a round, floor, ceil, trunc or sign returns has a gradient of 0: nothing that comes "
        "before it learns",
    ),
}
"""What is told of each setting, and the cause."""


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._early = PerRun(EarlyLosses)
        self._settings: dict[str, dict[str, int]] = {}

    def observe(self, window: Window) -> None:
        for loss in self._early.of(window.catalog).among(window):
            if loss.settings:
                known = self._settings.setdefault(loss.after, {})
                known[loss.settings] = known.get(loss.settings, 0) + 1

    def hypotheses(self) -> Iterable[Hypothesis]:
        texts = [text for known in self._settings.values() for text in known]
        laws = {_LAW: _SELF_ATTENTION} | {law: name for law, (name, _) in _WRONG.items()}
        for law, name in laws.items():
            if any(name in text for text in texts):
                yield Hypothesis(relation=OperationSettingsRelation.name, params=law)
        for after, known in self._settings.items():
            if sum(known.values()) >= MIN_BACKWARDS and len(known) <= MAX_WAYS:
                value = ConstantParam(value=(after, *sorted(known)))
                yield Hypothesis(relation=OperationSettingsRelation.name, params=(BACKWARD, value))
