"""A step finds what the step before left, against a naive reference that simulates the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.codec import decode_invariant, encode_invariant
from traincheck_plugin.invariants.model import Hypothesis, Invariant, VarTypeParam
from traincheck_plugin.relations.base import Explanation
from traincheck_plugin.relations.between_steps import AFTER_LOADS, FROZEN, HELD, SAME_OBJECT
from traincheck_plugin.relations.continuity import PARAMETER, RULES, SLOT, ContinuityRelation
from traincheck_plugin.vocabulary import Item

RELATION = ContinuityRelation()
NAMES = ("a", "b", "c")
CLASSES = "torch.optim.Adam"

PARAMETERS, SOME, FREEZES, SLOTS = (
    next(r for r in RULES if (r.var_type, r.quantifier, r.where) == key)
    for key in (
        (PARAMETER, "every", HELD),
        (PARAMETER, "some", HELD),
        (PARAMETER, "every", FROZEN),
        (SLOT, "every", HELD),
    )
)


UNDONE = next(r for r in RULES if AFTER_LOADS in r.where)


def _within(rule: VarTypeParam) -> VarTypeParam:
    return replace(rule, where=(*rule.where, SAME_OBJECT))


class Step(NamedTuple):
    """A step that changes every parameter and its state."""


class Meddle(NamedTuple):
    """Something changes one parameter, or its state."""

    name: str
    changes_state: bool = False


class Restart(NamedTuple):
    """New objects take the place of the old ones.

    Attributes:
        kept: the parameters that the new model begins with.
        loads: what the load of the model says of itself; "" where there is none.
        state: what becomes of the state of the optimizer: ``kept``, ``lost`` or ``exchanged``.
    """

    kept: frozenset[str] = frozenset(NAMES)
    loads: str = "all"
    state: str = "kept"


class Reload(NamedTuple):
    """Other values are loaded into the model, or those that the last step left."""

    restores: bool


Event = Step | Meddle | Restart | Reload


class Simulation:
    """Tells a run, and judges it as the formula says."""

    def __init__(self) -> None:
        self.run = RunBuilder()
        self._fresh = 0
        self._number = 0
        self._values = {name: self._value() for name in NAMES}
        self._state: dict[str, int] = {}
        self._left: dict[str, int] | None = None
        self._left_state: dict[str, int] = {}
        self._is_new = True
        self._loads = self._loads_state = ""
        self.expected: dict[VarTypeParam, list[bool]] = {
            rule: []
            for rule in (PARAMETERS, _within(PARAMETERS), SOME, SLOTS, _within(SLOTS), UNDONE)
        }

    def _value(self) -> int:
        self._fresh += 1
        return self._fresh

    def tell(self, event: Event) -> None:
        if isinstance(event, Meddle):
            if event.changes_state:
                if event.name in self._state:
                    self._state[event.name] = self._value()
            else:
                self._values[event.name] = self._value()
        elif isinstance(event, Restart):
            self._restart(event)
        elif isinstance(event, Reload):
            self._reload(event)
        else:
            self._judge()
            self._step()

    def _restart(self, event: Restart) -> None:
        self._number += 1
        self._is_new = True
        for name in NAMES:
            if name not in event.kept:
                self._values[name] = self._value()
        if self._loads not in ("all", "some"):
            self._loads = event.loads
        if event.loads:
            self._load(f"__main__.Net#{self._number}", "torch.nn.Module", event.loads)
        self._loads_state = "" if event.state == "lost" else "all"
        if event.state == "lost":
            self._state = {}
        elif event.state == "exchanged" and self._state:
            first, second = (self._state[name] for name in NAMES[:2])
            self._state |= dict(zip(NAMES, (second, first), strict=False))
        if self._loads_state:
            self._load(f"{CLASSES}#{self._number}", "torch.optim.Optimizer", "all")

    def _reload(self, event: Reload) -> None:
        values = self._left if event.restores else None
        self._values = dict(values or {name: self._value() for name in NAMES})
        self._loads = "all"
        self._load(f"__main__.Net#{self._number}", "torch.nn.Module", "all")

    def _load(self, target: str, cls: str, outcome: str) -> None:
        self.run.call(
            f"{cls}.load_state_dict",
            object=target,
            outputs=[Item(path="loaded", type="str", value=outcome)],
        )

    def _judge(self) -> None:
        if self._left is not None:
            same = {name: self._values[name] == self._left[name] for name in NAMES}
            is_excused = self._loads in ("all", "some")
            if not self._is_new:
                self.expected[UNDONE].append(all(same.values()))
            judged = [found for found in same.values() if found or not is_excused]
            if judged:
                self.expected[PARAMETERS].append(all(judged))
                self.expected[SOME].append(any(judged))
                if not self._is_new:
                    self.expected[_within(PARAMETERS)].append(all(judged))
        if self._left_state:
            for rule in (SLOTS, _within(SLOTS)):
                if self._is_new and rule != SLOTS:
                    continue
                held = self._judge_state()
                if held is not None:
                    self.expected[rule].append(held)

    def _judge_state(self) -> bool | None:
        if self._state == self._left_state:
            return True
        if not self._loads_state:
            return False
        differing = {n for n in NAMES if self._state[n] != self._left_state[n]}
        exchanged = {n for n in differing if self._state[n] in self._left_state.values()}
        return False if 2 * len(exchanged) > len(differing) else None

    def _step(self) -> None:
        model, optimizer = f"__main__.Net#{self._number}", f"{CLASSES}#{self._number}"
        parameters = self.run.parameters(*NAMES, owner=model)
        slots = self.run.parameters(*(f"{n}.m" for n in NAMES), owner=optimizer, kind="slot")
        held = {"optimizer": optimizer, "requires_grad": True, "in_model": True}
        with self.run.calling(f"{CLASSES}.step", object=optimizer):
            self.run.frame("begin", parameters, data=list(self._values.values()), **held)
            if self._state:
                self.run.frame("begin", slots, data=[self._state[name] for name in NAMES])
            self._values = {name: self._value() for name in NAMES}
            self._state = {name: self._value() for name in NAMES}
            self.run.frame("end", parameters, data=list(self._values.values()), **held)
            self.run.frame("end", slots, data=list(self._state.values()))
        self._left, self._left_state = dict(self._values), dict(self._state)
        self._is_new = False
        self._loads = self._loads_state = ""


given_events = st.lists(
    st.just(Step())
    | st.builds(Meddle, st.sampled_from(NAMES), st.booleans())
    | st.builds(Reload, st.booleans())
    | st.builds(
        Restart,
        st.frozensets(st.sampled_from(NAMES)),
        st.sampled_from(["all", "some", "none", ""]),
        st.sampled_from(["kept", "lost", "exchanged"]),
    ),
    max_size=14,
)


def _is_alike(event: Event, last: Event | None) -> bool:
    """Return whether two restarts follow each other: the model between them never trained."""
    return isinstance(event, Restart) and isinstance(last, Restart)


def _told(events: Sequence[Event], cuts: set[int] = frozenset()) -> tuple[Simulation, list[Window]]:  # type: ignore[assignment]
    simulation = Simulation()
    windows: list[Window] = []
    last: Event | None = None
    for position, event in enumerate(events):
        if position in cuts:
            windows.append(simulation.run.window())
        if not _is_alike(event, last):
            simulation.tell(event)
            last = last if isinstance(event, Meddle | Reload) else event
    windows.append(simulation.run.window())
    return simulation, windows


@given(given_events, st.sets(st.integers(0, 13), max_size=5))
def test_a_run_is_judged_as_the_formula_says(events: list[Event], cuts: set[int]) -> None:
    simulation, windows = _told(events, cuts)
    for rule, expected in simulation.expected.items():
        found = [holds for _, holds in labels(RELATION, (rule,), windows)]
        assert found == expected, rule


def _explained(rule: VarTypeParam, events: Sequence[Event]) -> Explanation:
    _, windows = _told(events)
    monitor = RELATION.monitor((rule,))
    for window in windows:
        examples = monitor.observe(window)
        for row in range(len(examples)):
            if not examples.holds[row]:
                return examples.explain(row)
    raise AssertionError("nothing failed")


def test_a_change_outside_steps_is_explained() -> None:
    explanation = _explained(PARAMETERS, [Step(), Meddle("b"), Step()])
    assert (
        explanation.message == "1 of 3 parameters were changed between two steps, before Adam.step"
    )
    assert explanation.cause is not None
    assert explanation.cause.subjects == ("b",)
    assert explanation.cause.text.endswith("outside any optimizer step")


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ("", "no load_state_dict gave it anything"),
        ("none", "loaded nothing, no name in the checkpoint matched"),
    ],
)
def test_a_model_that_began_anew_is_explained(loads: str, expected: str) -> None:
    restart = Restart(kept=frozenset(), loads=loads)
    explanation = _explained(PARAMETERS, [Step(), restart, Step()])
    assert explanation.message.startswith("3 of 3 parameters of the new Net#1")
    assert explanation.cause is not None
    assert explanation.cause.text.endswith(expected)


@pytest.mark.parametrize(
    ("state", "fact"),
    [
        ("lost", "optimizer state not loaded"),
        ("exchanged", "optimizer state of other parameters"),
    ],
)
def test_state_that_is_not_the_own_is_explained(state: str, fact: str) -> None:
    explanation = _explained(SLOTS, [Step(), Restart(state=state), Step()])
    assert explanation.cause is not None
    assert explanation.cause.fact == fact
    assert set(explanation.cause.subjects) <= set(NAMES)


def test_what_is_lent_by_another_model_is_named() -> None:
    run = RunBuilder()
    model = run.parameters("a", "b")
    average = run.parameters("module.a", "module.b", owner="__main__.Average#0")
    both = np.concatenate([model, average])
    columns = {
        "optimizer": [f"{CLASSES}#0"] * 2 + [""] * 2,
        "requires_grad": True,
        "in_model": True,
    }
    for begin, end in (([1, 2, 1, 2], [3, 4, 1, 2]), ([1, 2, 3, 4], [5, 6, 3, 4])):
        with run.calling(f"{CLASSES}.step", object=f"{CLASSES}#0"):
            run.frame("begin", both, data=begin, **columns)
            run.frame("end", both, data=end, **columns)
    monitor = RELATION.monitor((PARAMETERS,))
    examples = monitor.observe(run.window())
    assert examples.holds.tolist() == [False]
    cause = examples.explain(0).cause
    assert cause is not None
    assert "they hold what `module.a` of another model held" in cause.text


def _frozen_run(second: int, **columns: object) -> Window:
    run = RunBuilder()
    parameters = run.parameters("a", "b")
    told = {"optimizer": ["", f"{CLASSES}#0"], "requires_grad": [False, True], "in_model": True}
    told |= columns
    for value in (1, second):
        with run.calling(f"{CLASSES}.step", object=f"{CLASSES}#0"):
            run.frame("begin", parameters, data=[value, 1], **told)
            run.frame("end", parameters, data=[value, 1], **told)
    return run.window()


def test_frozen_parameters_are_judged_by_themselves() -> None:
    def found(window: Window) -> list[bool]:
        return [holds for _, holds in labels(RELATION, (FREEZES,), [window])]

    assert found(_frozen_run(1)) == [True]
    assert found(_frozen_run(2)) == [False]
    assert found(_frozen_run(2, in_model=False)) == []
    assert found(_frozen_run(2, requires_grad=True)) == []


def test_a_conversion_is_no_change() -> None:
    run = RunBuilder()
    parameters = run.parameters("a")
    for data, dtype in ((1, "torch.float32"), (2, "torch.float16"), (3, "torch.float16")):
        with run.calling(f"{CLASSES}.step", object=f"{CLASSES}#0"):
            run.frame("begin", parameters, data=data, dtype=dtype, optimizer=f"{CLASSES}#0")
            run.frame("end", parameters, data=data, dtype=dtype, optimizer=f"{CLASSES}#0")
    assert [holds for _, holds in labels(RELATION, (PARAMETERS,), [run.window()])] == [False]


def test_steps_that_were_left_out_are_not_judged() -> None:
    simulation = Simulation()
    monitor = RELATION.monitor((PARAMETERS,))
    found = []
    for observed in (True, True, False, True, True):
        simulation.tell(Step())
        if not observed:
            simulation.tell(Meddle("a"))
        found += monitor.observe(simulation.run.window(observed=observed)).holds.tolist()
    assert found == [True, True]


def test_models_that_train_side_by_side_are_not_one_after_the_other() -> None:
    run = RunBuilder()
    windows = []
    owners = [run.parameters("a", owner=f"__main__.Net#{n}") for n in (0, 1)]
    for step in range(3):
        for number in (0, 1):
            # The second model is tracked from its own first step on.
            shown = np.concatenate(owners) if step or number else owners[0]
            holders = [f"{CLASSES}#{n}" for n in range(len(shown))]
            with run.calling(f"{CLASSES}.step", object=f"{CLASSES}#{number}"):
                values = [10 * step + number + n for n in range(len(shown))]
                run.frame("begin", shown, data=values, optimizer=holders)
                run.frame("end", shown, data=values, optimizer=holders)
        windows.append(run.window())
    assert labels(RELATION, (SOME,), windows[:1]) == []


def _proposed(events: Sequence[Event]) -> set[VarTypeParam]:
    proposer = RELATION.proposer()
    for window in _told(events)[1]:
        proposer.observe(window)
    return {h.params[0] for h in proposer.hypotheses()}  # type: ignore[misc]


def test_without_a_restart_nothing_is_said_of_one() -> None:
    steady = _proposed([Step()] * 3)
    assert steady == {_within(PARAMETERS), _within(SOME), _within(SLOTS)}
    assert _proposed([Step(), Restart(kept=frozenset(), state="lost"), Step(), Step()]) == steady


def test_a_restart_that_goes_on_is_a_rule() -> None:
    assert {PARAMETERS, SOME, SLOTS} <= _proposed([Step(), Restart(), Step()])


def test_loads_that_were_undone_are_a_rule() -> None:
    swapped = [Step(), Reload(restores=False), Reload(restores=True), Step()]
    assert UNDONE in _proposed(swapped)
    # A single load may have found there what it loads.
    assert UNDONE not in _proposed([Step(), Reload(restores=True), Step()])
    assert UNDONE not in _proposed([Step(), Reload(restores=False), Step()])
    explanation = _explained(UNDONE, [Step(), Reload(restores=False), Step()])
    assert explanation.cause is not None
    assert explanation.cause.text.endswith("gave them other values, and nothing gave them back")


def test_the_stronger_rule_makes_the_weaker_superfluous() -> None:
    def implied(rule: VarTypeParam) -> VarTypeParam | None:
        found = RELATION.implied_by((rule,))
        assert found is None or isinstance(found, Hypothesis)
        return found.params[0] if found else None  # type: ignore[return-value]

    assert implied(_within(SOME)) == SOME
    assert implied(SOME) == PARAMETERS
    assert implied(PARAMETERS) is None


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_has_words_and_a_form_on_disk(rule: VarTypeParam) -> None:
    assert "between two steps" in RELATION.describe((rule,))
    invariant = Invariant(relation=RELATION.name, params=(rule,))
    assert decode_invariant(encode_invariant(invariant)).params == (rule,)


def test_another_rule_is_refused() -> None:
    with pytest.raises(InvariantError, match="speaks of the data of parameters"):
        RELATION.monitor((replace(PARAMETERS, attr_name="grad"),))
