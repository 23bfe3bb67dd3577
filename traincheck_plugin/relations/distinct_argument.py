"""DistinctArgumentRelation: what has to be new each time is not the same again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    Hypothesis,
    Param,
    Severity,
    VarNameParam,
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
    no_explanation,
)
from traincheck_plugin.relations.frames import place, positions_of, times_of
from traincheck_plugin.relations.moments import CHANCE, by_stack
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import passing_plan
from traincheck_plugin.relations.passing import (
    MIN_ELEMENTS,
    Beginnings,
    Deliveries,
    Delivery,
    Input,
    passing,
)
from traincheck_plugin.vocabulary import NONE, VariableKind

MAX_STATES = 1 << 14
"""Random states that are kept for each model: the first ones, where a repetition would begin."""

MAX_BATCHES = 16
"""Batches of each start of a loader that are compared with those of earlier starts."""

MAX_STARTS = 8

MIN_BATCHES = 2
MIN_DRAWN = 8
"""So many batches, of so many samples, that are the same in the same order are none by chance,
where it is not known of how many samples they are drawn."""


_BATCH, _INPUT = VAR_TYPES["batch"], VAR_TYPES["input"]


def _of(kind: VariableKind, between: str) -> VarTypeParam:
    return VarTypeParam(
        var_type=VAR_TYPES[kind],
        attr_name="data",
        quantifier="every",
        where=(("between", between),),
    )


FOLLOWING = _of("input", "batches")
"""What models are given follows what the loader delivers."""

ORDERS = _of("batch", "starts")
"""A loader that shuffles never delivers in an order that it had before."""

STATES = _of("generator", "steps")
"""A random generator never goes back to where it was in an earlier step."""

_SENTENCES = {
    FOLLOWING: "the inputs of models change when the data loader delivers another batch",
    ORDERS: "a data loader that shuffles delivers in another order each time",
    STATES: "random generators never return to the state of an earlier step",
}


class DistinctArgumentRelation(Relation):
    """What has to be new each time is not the same again.

    ``forall consecutive steps s, t: inputs(s) != inputs(t)``, where a loader delivered another
    batch between them, or for the models of one class, within an epoch;
    ``forall starts e < f of a loader that shuffles: batches(e) != batches(f)``, and the same of one
    with a sampler of its own where it was so in the reference;
    ``forall steps s < t of a model: random state(s) != random state(t)``, once it was another.

    Catches a loop that trains on the first batch all the time, and a seed that is set anew in each
    epoch. Cannot see batches that are new and wrong. Says nothing of batches so small that they may
    be equal by chance, nor of what follows when another optimizer is made or its state loaded:
    another fit in the same process may be meant to see the same.
    """

    name = "DistinctArgumentRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        param = _the(params)
        if isinstance(param, VarNameParam):
            name = param.var_name
            return _Orders(name) if param.var_type == _BATCH else _OfClass(name)
        if param == STATES:
            return _States()
        return _Orders(None) if param == ORDERS else _Following()

    def describe(self, params: tuple[Param, ...]) -> str:
        param = _the(params)
        if isinstance(param, VarNameParam):
            if param.var_type == _BATCH:
                return f"`{param.var_name}` delivers in another order each time"
            return f"{short(param.var_name)} is given another input in each step of an epoch"
        return _SENTENCES[param]

    def needs(self, params: tuple[Param, ...]) -> Plan:
        param = _the(params)
        kinds: set[VariableKind] = {"generator"} if param == STATES else {"input"}
        if param in (FOLLOWING, ORDERS) or param.var_type == _BATCH:
            kinds |= {"batch", "loader"}
        return passing_plan(*kinds)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _the(params: tuple[Param, ...]) -> VarTypeParam | VarNameParam:
    """Return the one parameter of a hypothesis.

    Raises:
        InvariantError: there is another number of them, or it is none that can be checked.
    """
    if len(params) == 1:
        [param] = params
        if isinstance(param, VarTypeParam) and param in _SENTENCES:
            return param
        if isinstance(param, VarNameParam) and param.var_type in (_BATCH, _INPUT):
            return param
    raise InvariantError(
        f"{DistinctArgumentRelation.name} expects one VarTypeParam about what passes through "
        f"training, or the class of a model or a data loader as VarNameParam, got {params}"
    )


_Why = Callable[[], Explanation]


def _examples(window: Window, judged: list[tuple[int, _Why | None]]) -> Examples:
    """Build examples of rows of calls, and why those that failed did."""
    if not judged:
        return NO_EXAMPLES
    return Examples.of_calls(
        window,
        np.array([row for row, _ in judged], np.int64),
        np.array([why is None for _, why in judged], np.bool_),
        lambda index: why() if (why := judged[index][1]) else no_explanation(index),
    )


def _repeated(roots: Iterable[str], why: str) -> Explanation:
    names = tuple(sorted({short(root.partition("#")[0]) for root in roots}))
    who = " and ".join(names)
    return Explanation(
        message=f"{who} was given the same input as in the step before",
        cause=Cause(
            fact="the same input in each step",
            subjects=names,
            text=f"{who} sees the same input in each step{why}",
        ),
    )


class _Following(Monitor):
    """Judges a step when the loader went on in the same start, and delivered what the input is of.

    Full batches, closures and several steps with one batch are none; neither is a model that is
    given the whole graph each time, and a loader that gives the nodes.
    """

    def __init__(self) -> None:
        self._deliveries = Deliveries()
        self._batches: list[Delivery] = []
        self._keys: frozenset[bytes] = frozenset()

    def observe(self, window: Window) -> Examples:
        judged: list[tuple[int, _Why | None]] = []
        for passed in passing(window):
            delivered = self._deliveries.observe(passed)
            if delivered and window.observed:
                held = self._judge(passed.inputs, [b for _, several in delivered for b in several])
                if held is not None:
                    roots = [one.root for one in passed.inputs]
                    why = None if held else partial(_repeated, roots, _UNDELIVERED)
                    judged.append((delivered[-1][0].row, why))
        if not window.observed:
            self._batches = []
        return _examples(window, judged)

    def _judge(self, inputs: list[Input], batches: list[Delivery]) -> bool | None:
        """Return whether the inputs of a window are new; None where they need not be."""
        before, keys_before = self._batches, self._keys
        self._batches, self._keys = batches, frozenset(one.key for one in inputs)
        kinds = frozenset().union(*(batch.kinds for batch in batches))
        if (
            b"" in self._keys
            or sum(one.num_elements for one in inputs) < MIN_ELEMENTS
            or not _went_on(before, batches)
            or not any(one.kinds & kinds for one in inputs)
        ):
            return None
        return not self._keys <= keys_before


_UNDELIVERED = ", although the data loader delivers new batches: they do not get there"


def _went_on(before: list[Delivery], now: list[Delivery]) -> bool:
    """Return whether a loader delivered something else than before, in the same start."""
    old = {(b.loader, b.facts["start"]): b.facts["batch"] for b in before}
    went_on = any(old.get((b.loader, b.facts["start"]), math.inf) < b.facts["batch"] for b in now)
    return went_on and {b.key for b in before}.isdisjoint(b.key for b in now)


class _OfClass(Monitor):
    """Judges the inputs of the models of one class against those of the step before."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._epoch = NONE
        self._keys: frozenset[bytes] = frozenset()

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._epoch = NONE
            return NO_EXAMPLES
        with_step = _with_step(window)
        epochs = window.catalog.contexts.column("epoch")
        context = window.calls.context
        judged: list[tuple[int, _Why | None]] = []
        for passed in passing(window):
            inputs = [one for one in passed.inputs if one.root.partition("#")[0] == self._root]
            if not inputs or passed.position not in with_step:
                continue
            row = inputs[-1].row
            before, keys_before = self._epoch, self._keys
            self._epoch = int(epochs[context[row]])
            self._keys = frozenset(one.key for one in inputs)
            if (
                self._epoch == before
                and b"" not in self._keys
                and sum(one.num_elements for one in inputs) >= MIN_ELEMENTS
            ):
                held = not self._keys <= keys_before
                judged.append((row, None if held else partial(_repeated, [self._root], "")))
        return _examples(window, judged)


def _with_step(window: Window) -> set[int]:
    """Return the positions of the windows in which an optimizer steps."""
    return set(window.position_of(window.rows_of_role("step")).tolist())


_Key = bytes | float
"""What stands for a batch: that of its tensors, or that of the indices of its samples."""


class _Orders(Monitor):
    """Judges each of the first batches of a loader's start against those of earlier starts.

    Only batches for training count, of one model each: an evaluation may want the same order. Where
    the indices of their samples are known, these stand for the batches, since samples may be
    changed at random.

    Args:
        loader: label of the loader, of which it is not known whether it shuffles; None for all that
            do.
    """

    def __init__(self, loader: str | None) -> None:
        self._loader = loader
        self._deliveries = Deliveries()
        self._beginnings = Beginnings()
        self._starts: dict[tuple[str, str], dict[int, dict[int, _Key]]] = {}

    def observe(self, window: Window) -> Examples:
        resets = self._beginnings.observe(window)
        judged: list[tuple[int, _Why | None]] = []
        for passed in passing(window):
            for use, batches in self._deliveries.observe(passed):
                if resets and resets[0] < use.time:
                    resets = [one for one in resets if one > use.time]
                    self._starts.clear()
                for batch in batches:
                    if self._is_about(batch):
                        held = self._judge(use.root, batch)
                        if held is not None:
                            judged.append((use.row, None if held else partial(_same_order, batch)))
        if resets:
            self._starts.clear()
        return _examples(window, judged)

    def _is_about(self, batch: Delivery) -> bool:
        shuffles = batch.facts["shuffles"]
        if self._loader is None:
            return shuffles == 1
        return batch.loader == self._loader and math.isnan(shuffles)

    def _judge(self, root: str, batch: Delivery) -> bool | None:
        """Return whether the order is new; None where that is not known yet."""
        start, number = int(batch.facts["start"]), int(batch.facts["batch"])
        indices = batch.facts["indices"]
        is_known = not math.isnan(indices)
        is_told = is_known or (batch.key and batch.num_elements >= MIN_ELEMENTS)
        if number >= MAX_BATCHES or not is_told:
            return None
        starts = self._starts.setdefault((batch.loader, root), {})
        own = starts.setdefault(start, {})
        own[number] = indices if is_known else batch.key
        held = None
        # A loader may be started for each step, and be compared with several starts each time.
        chance = CHANCE / (MAX_STARTS * (start + 1))
        for other, keys in starts.items():
            if other == start:
                continue
            both = own.keys() & keys.keys()
            if any(own[one] != keys[one] for one in both):
                held = True if held is None else held
            elif both and _chance(batch, len(both)) < chance and (is_known or _are_distinct(keys)):
                return False
        if len(starts) > MAX_STARTS:
            # The first ones are kept: what comes again begins with them.
            del starts[sorted(starts)[MAX_STARTS // 2]]
        return held


def _chance(batch: Delivery, number: int) -> float:
    """Return how likely it is that as many batches are the same in two random orders."""
    samples, size = batch.facts["samples"], batch.facts["batch_size"]
    if not (samples >= 1 and size >= 1):
        rows = max((shape[0] for _, shape in batch.kinds), default=0)
        return 0.0 if number >= MIN_BATCHES and number * rows >= MIN_DRAWN else 1.0
    drawn = min(samples, size * number)
    return math.exp(math.lgamma(samples - drawn + 1) - math.lgamma(samples + 1))


def _are_distinct(keys: dict[int, _Key]) -> bool:
    """Return whether no batch is there twice; where one is, samples may be all alike."""
    return len(keys) > 1 and len(set(keys.values())) == len(keys)


def _same_order(batch: Delivery) -> Explanation:
    epoch = batch.facts["epoch"]
    why = (
        "a random generator was seeded anew, or its state was put back"
        if math.isnan(epoch)
        else f"its sampler is at epoch {epoch:.0f} still or again: set_epoch was not called"
    )
    loader = short(batch.loader.partition("#")[0])
    does = "shuffles, and " if batch.facts["shuffles"] == 1 else ""
    return Explanation(
        message=f"{loader} {does}delivers its batches in the same order as before",
        cause=Cause(
            fact="the same order in each epoch",
            subjects=(loader,),
            text=f"{loader} delivers the same batches in the same order in each epoch: {why}",
        ),
    )


LOADERS = frozenset({"cpu", "cuda"})
"""Names of the generators that data loaders draw from, once in an epoch."""


class _States(Monitor):
    """Judges the state in which random generators are when a forward in training begins.

    A state that nobody has left since is nothing new. Within a step a model may be meant to draw
    the same again. Of generators that loaders do not draw from once in an epoch, only those are
    judged that move from one forward to the next mostly: others may be seeded for evaluations.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], dict[int, int]] = {}
        self._left: dict[int, int] = {}
        self._num_moves: Counter[int] = Counter()
        self._num_looks: Counter[int] = Counter()
        self._beginnings = Beginnings()

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._left.clear()
            return NO_EXAMPLES
        resets = self._beginnings.observe(window)
        judged: list[tuple[int, _Why | None]] = []
        for row, time, step, is_begin, states in _states(window):
            if resets and resets[0] < time:
                resets = [one for one in resets if one > time]
                self._seen.clear()
            for code, state in states:
                self._num_looks[code] += is_begin
                self._num_moves[code] += self._left.get(code, state) != state
                if is_begin:
                    held = self._judge((int(window.calls.object[row]), code), state, step)
                    draws_rarely = 2 * self._num_moves[code] < self._num_looks[code]
                    if draws_rarely and window.catalog.variables[code].name not in LOADERS:
                        held = None
                    if held is not None:
                        why = None if held else partial(self._explain, *window.at(row))
                        judged.append((row, why))
                self._left[code] = state
        if resets:
            self._seen.clear()
        return _examples(window, judged)

    def _judge(self, who: tuple[int, int], state: int, step: int) -> bool | None:
        seen = self._seen.setdefault(who, {})
        first = seen.get(state)
        if first is None:
            is_new = bool(seen)
            if len(seen) < MAX_STATES:
                seen[state] = step
            return True if is_new else None
        left = self._left.get(who[1])
        if first >= step or left is None or left == state:
            return None
        return False

    def _explain(self, window: Window, row: int) -> Explanation:
        calls, catalog = window.calls, window.catalog
        name = short(catalog.apis[int(calls.api[row])].name)
        seeds = [
            int(one)
            for code in window.api_codes
            if catalog.apis[code].role == "seed"
            for one in window.rows_of_api(code)
            if calls.end[one] < calls.begin[row]
        ]
        why = "its state is put back each time"
        if seeds:
            last = max(seeds)
            seed = short(catalog.apis[int(calls.api[last])].name)
            source = int(calls.source[last])
            where = f" at {catalog.sources[source]}" if source != NONE else ""
            why = f"{seed}{where} seeds it anew"
        return Explanation(
            message=f"{name} began with the random state of an earlier step",
            cause=Cause(
                fact="random numbers repeat",
                subjects=("torch.Generator",),
                text=f"the random generator gives the same numbers again and again: {why}",
            ),
        )


_State = tuple[int, int, int, bool, list[tuple[int, int]]]


def _states(window: Window) -> Iterator[_State]:
    """Yield when generators were in which states.

    That is the row of a call, a time, the training step, whether the call begins, and by variable
    the state.
    """
    positions = positions_of(window, VAR_TYPES["generator"])
    rows, contexts, sequence = place(window, positions)
    steps = window.catalog.contexts.column("step")[contexts].tolist()
    times = times_of(window, rows, sequence).tolist()
    found: dict[int, _State] = {}
    for indexes, shown in by_stack(window, positions):
        codes = shown.variables.tolist()
        states = shown.column("data").tolist()
        for index, state, is_begin in zip(
            indexes.tolist(), states, shown.is_begin.tolist(), strict=True
        ):
            pairs = list(zip(codes, state, strict=True))
            found[index] = int(rows[index]), times[index], steps[index], is_begin, pairs
    return (found[index] for index in sorted(found) if found[index][0] != NONE)


def _loader(label: str) -> VarNameParam:
    return VarNameParam(var_name=label, var_type=_BATCH, attr_name="data")


class _Proposer(Proposer):
    """Proposes what there is something to see of."""

    def __init__(self) -> None:
        self._params: dict[Param, None] = {}

    def observe(self, window: Window) -> None:
        if len(positions_of(window, VAR_TYPES["generator"])):
            self._params[STATES] = None
        if _showing(window, "batch") & _showing(window, "loader"):
            self._params[ORDERS] = self._params[FOLLOWING] = None
            for passed in passing(window):
                for batch in passed.delivered:
                    if math.isnan(batch.facts["shuffles"]):
                        self._params[_loader(batch.loader)] = None
        with_step = list(_with_step(window))
        for _, shown in by_stack(window, positions_of(window, VAR_TYPES["input"])):
            calls = shown.calls[shown.calls != NONE]
            if shown.has("data") and np.isin(window.position_of(calls), with_step).any():
                owner = window.catalog.variables[int(shown.variables[0])].owner
                root = VarNameParam(
                    var_name=owner.partition("#")[0],
                    var_type=_INPUT,
                    attr_name="data",
                )
                self._params[root] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(relation=DistinctArgumentRelation.name, params=(param,))
            for param in self._params
        ]


def _showing(window: Window, kind: VariableKind) -> set[int]:
    """Return the positions of the windows that show variables of a kind."""
    positions = positions_of(window, VAR_TYPES[kind])
    if window.joint is None:
        return {0} if len(positions) else set()
    return set((np.searchsorted(window.joint.frames, positions, side="right") - 1).tolist())
