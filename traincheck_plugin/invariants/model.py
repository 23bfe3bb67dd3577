"""What an invariant is: a relation with parameters, when it must hold, and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from traincheck_plugin.invariants.precondition import ALWAYS, Precondition
from traincheck_plugin.vocabulary import Role, VariableKind

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
"""In rising order."""

Scope = Literal["pipeline", "universal"]

VAR_TYPES: Mapping[VariableKind, str] = {
    "parameter": "torch.nn.Parameter",
    "buffer": "torch.nn.Buffer",
    "slot": "torch.optim.Optimizer.state",
    "group": "torch.optim.Optimizer.param_groups",
    "module": "torch.nn.Module",
    "batch": "torch.utils.data.DataLoader.batch",
    "loader": "torch.utils.data.DataLoader",
    "stored": "torch.utils.data.Dataset",
    "input": "torch.nn.Module.input",
    "generator": "torch.Generator",
    "target": "torch.nn.Module.target",
    "padding": "torch.nn.Module.padding",
    "sample": "torch.nn.Module.sample",
    "sequence": "torch.nn.Module.sequence",
    "alias": "torch.nn.Module.alias",
    "evaluation": "torch.nn.Module.evaluation",
}
"""How each kind of variable is named in an invariant."""

ANY = "any"
"""A `pre_value` or `post_value` that is not constrained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class APIParam:
    """An API as a parameter of a relation.

    Attributes:
        api_full_name: a call matches if its API answers to this name, so that
            ``torch.optim.Optimizer.step`` speaks of every optimizer.
        span: ``call``: from begin to end of one call. ``cycle``: from the end of the previous call
            on the same object to the end of this one.
        argument: path of an argument or result, where the relation speaks of one.
        attribute: attribute of that argument or result.
        role: what a call of it means for training; None where unknown, as in files of upstream.
    """

    api_full_name: str
    span: Literal["call", "cycle"] = "call"
    argument: str | None = None
    attribute: str | None = None
    role: Role | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VarTypeParam:
    """Variables of one type and an attribute of them.

    Attributes:
        var_type: one of `VAR_TYPES`: ``torch.nn.Parameter``, ``torch.nn.Module``, ...
        attr_name: attribute of a frame.
        pre_value, post_value: what it is before and after: a literal, None (for ``grad``: None or
            all zero), ``non_zero``, ``not_null``, ``changed`` (post only), or `ANY`.
        quantifier: how many of the variables.
        where: which variables, as (attribute, value) pairs that must hold before:
            ``("held", True)``: the optimizer that is called holds them;
            ``("requires_grad", True)``; ``("grad", "non_zero")``.
    """

    var_type: str
    attr_name: str
    pre_value: Any = ANY
    post_value: Any = ANY
    quantifier: Literal["some", "every"] = "some"
    where: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VarNameParam:
    """One variable, by name, and an attribute of it."""

    var_name: str
    var_type: str
    attr_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantParam:
    """A value that a relation compares with."""

    value: Any


Param = APIParam | VarTypeParam | VarNameParam | ConstantParam


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A relation with parameters, not yet proven."""

    relation: str
    params: tuple[Param, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why an invariant is believed.

    Attributes:
        num_positive_examples, num_negative_examples: over all the reference, before the
            precondition.
        num_occurrences: independent occurrences that met the precondition: distinct steps.
        num_held_out: of these, occurrences in the part of the reference that was kept aside.
        num_runs: reference runs that showed it.
        failure_bound: upper end of the 95 % confidence interval of the rate at which a healthy
            occurrence fails, given that none of the occurrences did: ``1 - 0.05 ** (1 / n)``.
    """

    num_positive_examples: int = 0
    num_negative_examples: int = 0
    num_occurrences: int = 0
    num_held_out: int = 0
    num_runs: int = 0

    @property
    def failure_bound(self) -> float:
        n = self.num_occurrences
        return 1.0 if n == 0 else float(1.0 - 0.05 ** (1.0 / n))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What is recognisable about the training program that showed an invariant.

    Attributes:
        script: file name of the entry script.
        roots: public paths of the classes of the trained root modules.
        parameters: a MinHash sketch of the names and shapes of the parameters (see
            `traincheck_plugin.invariants.similarity`).
        names, shapes: sketches of their names alone, and of the shapes with the last part of the
            name.
    """

    script: str = ""
    roots: tuple[str, ...] = ()
    parameters: tuple[int, ...] = ()
    names: tuple[int, ...] = ()
    shapes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """A hypothesis with a precondition and the evidence for it.

    Attributes:
        relation, params: the rule.
        precondition: when it must hold.
        severity: how much a violation matters.
        scope: ``universal``: believed of every pipeline. ``pipeline``: only of runs that are
            recognisably one of *pipelines*.
        text_description: the rule in one sentence.
    """

    relation: str
    params: tuple[Param, ...]
    precondition: Precondition = ALWAYS
    severity: Severity = "info"
    scope: Scope = "universal"
    evidence: Evidence = field(default_factory=Evidence)
    pipelines: tuple[Pipeline, ...] = ()
    text_description: str = ""

    @property
    def hypothesis(self) -> Hypothesis:
        return Hypothesis(relation=self.relation, params=self.params)
