"""Unpacks the parameters of a hypothesis and says what went wrong where they do not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import VAR_TYPES, APIParam, Param, VarTypeParam
from traincheck_plugin.plan import FULL_ATTRIBUTES, Plan
from traincheck_plugin.vocabulary import Role, VariableKind

P = TypeVar("P", bound=Param)
Q = TypeVar("Q", bound=Param)
R = TypeVar("R", bound=Param)


def single(relation: str, params: tuple[Param, ...], first: type[P]) -> P:
    """Return the only parameter of a relation that takes one; see `pair`.

    Raises:
        InvariantError: there is another number, or it is of another type.
    """
    if len(params) == 1 and isinstance(params[0], first):
        return params[0]
    raise InvariantError(
        f"{relation} expects one {first.__name__}, "
        f"got {', '.join(type(p).__name__ for p in params) or 'none'}"
    )


def pair(relation: str, params: tuple[Param, ...], first: type[P], second: type[Q]) -> tuple[P, Q]:
    """Return the two parameters of a relation that takes a *first* and a *second*.

    Raises:
        InvariantError: there are not two, or they are of other types.
    """
    if len(params) == 2 and isinstance(params[0], first) and isinstance(params[1], second):
        return params[0], params[1]
    raise InvariantError(
        f"{relation} expects the parameters {first.__name__} and {second.__name__}, "
        f"got {', '.join(type(p).__name__ for p in params) or 'none'}"
    )


def three(
    relation: str, params: tuple[Param, ...], first: type[P], second: type[Q], third: type[R]
) -> tuple[P, Q, R]:
    """Return the three parameters of a relation that takes so many; see `pair`.

    Raises:
        InvariantError: there are not three, or they are of other types.
    """
    if len(params) == 3 and isinstance(params[2], third):
        return *pair(relation, params[:2], first, second), params[2]
    raise InvariantError(
        f"{relation} expects the parameters {first.__name__}, {second.__name__} and "
        f"{third.__name__}, got {', '.join(type(p).__name__ for p in params) or 'none'}"
    )


def api_plan(*apis: APIParam) -> Plan:
    """Return the plan that records calls of these APIs: only functions have to be asked for."""
    functions = {a.api_full_name for a in apis if a.role in (None, "function")}
    return Plan(functions=frozenset(functions), attributes={})


_CAUSES = ("requires_grad", "in_model", "optimizer", "lr", "grad")
"""What tells why a parameter failed."""

_MOBILITY = ("data_norm", "grad_norm", "dtype")
"""What tells, with that, whether an update can move a parameter at all."""


def variable_plan(api: APIParam, variables: VarTypeParam) -> Plan:
    """Return the plan that shows these variables at calls of *api*.

    The state that tells the cause of a failure is part of it. A cycle is made of the frames of
    other calls too.
    """
    roles: tuple[Role, ...] = tuple(FULL_ATTRIBUTES)
    if api.role is not None and api.span == "call":
        roles = (api.role,)
    plan = attribute_plan(variables, roles, functions=api_plan(api).functions)
    if roles == ("step",) and variables.post_value == "changed":
        return plan.telling_changes()
    return plan


def attribute_plan(
    variables: VarTypeParam,
    roles: Iterable[Role],
    *,
    functions: frozenset[str] | None = frozenset(),
) -> Plan:
    """Return the plan that shows what *variables* speaks of at calls of these roles, and why."""
    kind = next(kind for kind, name in VAR_TYPES.items() if name == variables.var_type)
    names = {variables.attr_name, *(name for name, _ in variables.where)}
    if kind == "parameter":
        names.update(_CAUSES)
        if variables.attr_name == "data":
            names.update(_MOBILITY)
    wanted = {(kind, name) for name in names}
    attributes = {role: FULL_ATTRIBUTES.get(role, frozenset()) & wanted for role in roles}
    return Plan(
        functions=functions,
        attributes={role: found for role, found in attributes.items() if found},
    )


def gradient_plan(*roles: Role) -> Plan:
    """Return the plan that shows at calls of these roles who holds which gradients."""
    wanted: frozenset[tuple[VariableKind, str]] = frozenset(
        {("parameter", "grad"), ("parameter", "optimizer")}
    )
    return Plan(functions=frozenset(), attributes=dict.fromkeys(roles, wanted))


def passing_plan(*kinds: VariableKind, tensors: tuple[str, ...] = ("data", "value")) -> Plan:
    """Return the plan that shows variables of these kinds, which pass through the training.

    Args:
        kinds: of the variables.
        tensors: attributes of batches and inputs that are shown.
    """
    attributes: dict[Role, frozenset[tuple[VariableKind, str]]] = {}
    for role in PASSING_ROLES:
        wanted = {
            (kind, name)
            for kind, name in FULL_ATTRIBUTES[role]
            if kind in kinds and (kind not in ("batch", "input") or name in tensors)
        }
        if wanted:
            attributes[role] = frozenset(wanted)
    return Plan(functions=frozenset(), attributes=attributes)


PASSING_ROLES: tuple[Role, ...] = ("forward", "data")
"""Roles of the calls at which it shows what passes through the training."""
