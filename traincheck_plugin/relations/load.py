"""LoadRelation: what is loaded into a module is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Hypothesis, Param, Severity
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
from traincheck_plugin.relations.loads import (
    LOADED,
    MODULE_LOAD,
    OUTCOME,
    OWN,
    UNCHANGED,
    UNTIED,
    outcome_of,
    told_of,
)
from traincheck_plugin.relations.naming import place

LOADS = APIParam(api_full_name=MODULE_LOAD, argument=OUTCOME, role="checkpoint")
OTHER = APIParam(api_full_name=MODULE_LOAD, argument=OWN, role="checkpoint")
TIES = APIParam(api_full_name=MODULE_LOAD, argument=UNTIED, role="checkpoint")


class LoadRelation(Relation):
    """A load finds names of the module, loads something else, and what is one stays one.

    ``forall calls a of Module.load_state_dict that raise nothing: names(argument(a)) and
    names(object(a)) are not disjoint``; and ``exists a tensor in argument(a) of one of these names
    that is not the memory of that of object(a)``, unless the state dict was made in the same
    training step, and written to: checkpoints may be read into one in place.

    Catches names with a prefix that ``strict=False`` lets pass, so that nothing is loaded; the best
    weights that were kept by reference, and went on training; a state dict that should have been
    filled with that of another module, or with what is known of a checkpoint, and was not. Cannot
    see that another part than the one that was meant is loaded.
    """

    name = "LoadRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_claim(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        return _claim(params).sentence

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return Plan.nothing()

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "critical" if _claim(params) is _SOME else "warning"

    def regime(self, params: tuple[Param, ...]) -> tuple[str, ...]:
        # Whenever it is: checkpoints are loaded before the training and in the middle of it.
        return ()


class _Claim(NamedTuple):
    """What is claimed of loads.

    Attributes:
        sentence: the claim.
        fact: what is told of a call for which it does not hold; "" where nothing was loaded.
        explain: says of a target, a call, and what is told of it, what is wrong.
    """

    sentence: str
    fact: str
    explain: Callable[[str, str, str], Explanation]

    def holds(self, window: Window, row: int) -> bool:
        """Return whether the claim holds for a call."""
        if self.fact:
            return not told_of(window, row, self.fact)
        return outcome_of(window, row) != "none"


def _nothing(target: str, call: str, how: str) -> Explanation:
    return Explanation(
        message=f"load_state_dict loaded nothing into {target}",
        cause=Cause(
            fact="not loaded",
            subjects=(target,),
            text=f"no name in what {call} was given is one of {target}: all were "
            "unexpected, and all of its own are missing",
        ),
    )


_WHY = {
    UNCHANGED: "nothing else came into its state_dict() before it was loaded",
    LOADED: "so that what was loaded meanwhile is in it, too",
}


def _itself(target: str, call: str, how: str) -> Explanation:
    why = _WHY.get(how, "so that it went on with the training")
    if how != UNCHANGED:
        why = f"its state_dict() was kept and not copied, {why}"
    return Explanation(
        message=f"load_state_dict loaded what {target} holds anyway",
        cause=Cause(
            fact="not loaded",
            subjects=(target,),
            text=f"what {call} was given is the memory of {target} itself: {why}",
        ),
    )


def _apart(target: str, call: str, how: str) -> Explanation:
    return Explanation(
        message=f"load_state_dict loaded tied tensors into separate ones of {target}",
        cause=Cause(
            fact="weights are not tied",
            subjects=(target,),
            text=f"tensors that are one in what {call} was given are separate in {target}: it was "
            "built without tying them, and they drift apart",
        ),
    )


_SOME = _Claim(
    "Module.load_state_dict loads at least one parameter or buffer",
    "",
    _nothing,
)
_ANOTHER = _Claim(
    "Module.load_state_dict is given something else than the memory of the module",
    OWN,
    _itself,
)
_TIED = _Claim(
    "what is tied in what Module.load_state_dict is given is tied in the module",
    UNTIED,
    _apart,
)
_CLAIMS = {LOADS: _SOME, OTHER: _ANOTHER, TIES: _TIED}


def _claim(params: tuple[Param, ...]) -> _Claim:
    """Return what a hypothesis claims.

    Raises:
        InvariantError: it is none of this relation.
    """
    if len(params) == 1 and isinstance(params[0], APIParam) and params[0] in _CLAIMS:
        return _CLAIMS[params[0]]
    raise InvariantError(
        f"{LoadRelation.name} expects one of the parameters {', '.join(map(str, _CLAIMS))}, got "
        f"{params}"
    )


class _Monitor(Monitor):
    def __init__(self, claim: _Claim) -> None:
        self._claim = claim

    def observe(self, window: Window) -> Examples:
        rows = window.rows_of_name(MODULE_LOAD)
        known = np.array([outcome_of(window, row) != "" for row in rows.tolist()], np.bool_)
        if not known.any():
            return NO_EXAMPLES
        rows = rows[known]
        holds = np.array([self._claim.holds(window, row) for row in rows.tolist()], np.bool_)

        def explain(index: int) -> Explanation:
            code = int(window.calls.object[rows[index]])
            target = window.catalog.objects[code] if code >= 0 else "the module"
            row = int(rows[index])
            call = f"load_state_dict{place(window, row)}"
            return self._claim.explain(target, call, told_of(window, row, self._claim.fact))

        return Examples.of_calls(window, rows, holds, explain)


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._found: dict[APIParam, None] = {}

    def observe(self, window: Window) -> None:
        for param in _CLAIMS:
            if _Monitor(_claim((param,))).observe(window).holds.any():
                self._found[param] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [Hypothesis(relation=LoadRelation.name, params=(param,)) for param in self._found]
