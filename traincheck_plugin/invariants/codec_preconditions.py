"""Preconditions as JSON objects: TrainCheck's groups of disjunctions of conjunctions."""

from __future__ import annotations

from typing import Any, get_args

from traincheck_plugin.invariants.json_fields import (
    MalformedError,
    UnsupportedError,
    expect,
    frozen,
    take,
    take_one_of,
)
from traincheck_plugin.invariants.precondition import ALWAYS, Clause, ClauseType, Precondition

GROUP = "parent_func_call_pre"
"""Whose context the preconditions speak about: that of the call, in TrainCheck's words."""

UNCONDITIONAL = "Unconditional"

ABSENT = "None"
"""How TrainCheck writes a dtype or a path that is not there."""


def encode_precondition(precondition: Precondition) -> dict[str, Any]:
    """Return the JSON object of a precondition: one group."""
    alternatives: list[dict[str, Any]] = [
        {"clauses": [_encode_clause(clause) for clause in alternative]}
        for alternative in precondition.alternatives
    ]
    return {
        GROUP: {
            "inverted": precondition.inverted,
            "preconditions": alternatives or [{"clauses": UNCONDITIONAL}],
        }
    }


def decode_precondition(value: object) -> Precondition:
    """Return the precondition of a JSON object.

    Groups that always hold add nothing; TrainCheck verifies each of the others against other
    records, so at most one of them can be read.

    Raises:
        MalformedError: it is no precondition.
        UnsupportedError: it is one of TrainCheck that has no counterpart here.
    """
    groups = expect(value, dict, "precondition")
    if not groups:
        raise MalformedError(f"expected a group such as {GROUP!r} in precondition, got none")
    found = [_decode_group(group, name) for name, group in groups.items()]
    conditional = [p for p in found if p != ALWAYS] or [ALWAYS]
    if len(conditional) > 1:
        raise UnsupportedError(f"a precondition with the groups {', '.join(groups)}")
    return conditional[0]


def _encode_clause(clause: Clause) -> dict[str, Any]:
    obj: dict[str, Any] = {
        "type": clause.type,
        "prop_name": clause.prop_name,
        "additional_path": ABSENT,
        "prop_dtype": ABSENT if clause.prop_dtype is None else clause.prop_dtype,
    }
    if clause.values or clause.type == "constant":
        obj["values"] = list(clause.values)
    return obj


def _decode_group(value: object, name: str) -> Precondition:
    group = expect(value, dict, f"the group {name}")
    alternatives: list[tuple[Clause, ...]] = []
    for element in take(group, "preconditions", list):
        clauses = expect(element, dict, "an element of preconditions").get("clauses")
        if clauses == UNCONDITIONAL:
            alternatives = []
            break
        alternatives.append(
            tuple(_decode_clause(clause) for clause in expect(clauses, list, "clauses"))
        )
    else:
        if not alternatives:
            raise MalformedError(
                f'expected preconditions to hold something, got []; write {{"clauses": '
                f'"{UNCONDITIONAL}"}} for always'
            )
    return Precondition(
        alternatives=tuple(alternatives), inverted=take(group, "inverted", bool, False)
    )


def _decode_clause(value: object) -> Clause:
    obj = expect(value, dict, "an element of clauses")
    path = obj.get("additional_path")
    if path not in (None, ABSENT):
        raise UnsupportedError(f"a clause with the additional_path {path!r}")
    dtype = take(obj, "prop_dtype", str, ABSENT)
    return Clause(
        type=take_one_of(obj, "type", get_args(ClauseType), None),
        prop_name=take(obj, "prop_name", str),
        prop_dtype=None if dtype == ABSENT else dtype,
        values=tuple(frozen(v) for v in take(obj, "values", list, [])),
    )
