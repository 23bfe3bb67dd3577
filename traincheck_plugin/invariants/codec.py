"""Invariants as JSON objects: field names are those of TrainCheck, so that its files load.

What TrainCheck has and this package has no counterpart for (constraints on arguments,
`InputOutputParam`) is refused by name instead of being read as something weaker.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, get_args

from traincheck_plugin.invariants.codec_params import decode_param, encode_param
from traincheck_plugin.invariants.codec_preconditions import (
    decode_precondition,
    encode_precondition,
)
from traincheck_plugin.invariants.json_fields import (
    MalformedError,
    expect,
    take,
    take_count,
    take_one_of,
)
from traincheck_plugin.invariants.model import SEVERITIES, Evidence, Invariant, Pipeline, Scope

SCHEMA_VERSION = 1


_SKETCHES = ("parameters", "names", "shapes")
"""Of a pipeline; files of earlier versions have the first alone."""


def encode_invariant(invariant: Invariant) -> dict[str, Any]:
    """Return the JSON object of an invariant."""
    evidence = invariant.evidence
    return {
        "schema_version": SCHEMA_VERSION,
        "text_description": invariant.text_description,
        "relation": invariant.relation,
        "params": [encode_param(param) for param in invariant.params],
        "precondition": encode_precondition(invariant.precondition),
        "num_positive_examples": evidence.num_positive_examples,
        "num_negative_examples": evidence.num_negative_examples,
        "severity": invariant.severity,
        "scope": invariant.scope,
        "evidence": {
            "num_occurrences": evidence.num_occurrences,
            "num_held_out": evidence.num_held_out,
            "num_runs": evidence.num_runs,
        },
        "pipelines": [
            {
                "script": p.script,
                "roots": list(p.roots),
                **{name: list(getattr(p, name)) for name in _SKETCHES},
            }
            for p in invariant.pipelines
        ],
    }


def decode_invariant(value: object, known_relations: Set[str] | None = None) -> Invariant:
    """Return the invariant of a JSON object.

    Args:
        value: what the JSON text parsed to.
        known_relations: names of the relations that exist; None to accept every name.

    Raises:
        MalformedError: it is not an invariant.
        UnsupportedError: it is one of TrainCheck that has no counterpart here.
    """
    obj = expect(value, dict, "an invariant")
    version = take(obj, "schema_version", int, SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        raise MalformedError(
            f"expected schema_version {SCHEMA_VERSION} or older, got {version}; "
            "upgrade traincheck-plugin to read this file"
        )
    relation = take(obj, "relation", str)
    if known_relations is not None and relation not in known_relations:
        raise MalformedError(
            f"expected a known relation, got {relation!r}; "
            f"use one of {', '.join(sorted(known_relations))}"
        )
    evidence = take(obj, "evidence", dict, {})
    return Invariant(
        relation=relation,
        params=tuple(decode_param(param) for param in take(obj, "params", list)),
        precondition=decode_precondition(take(obj, "precondition", dict)),
        # Files of TrainCheck know no severity; whoever checks with one wants to hear of it.
        severity=take_one_of(obj, "severity", SEVERITIES, "warning"),
        scope=take_one_of(obj, "scope", get_args(Scope), "universal"),
        evidence=Evidence(
            num_positive_examples=take_count(obj, "num_positive_examples"),
            num_negative_examples=take_count(obj, "num_negative_examples"),
            num_occurrences=take_count(evidence, "num_occurrences"),
            num_held_out=take_count(evidence, "num_held_out"),
            num_runs=take_count(evidence, "num_runs"),
        ),
        pipelines=tuple(_decode_pipeline(item) for item in take(obj, "pipelines", list, [])),
        text_description=take(obj, "text_description", str, ""),
    )


def _decode_pipeline(value: object) -> Pipeline:
    obj = expect(value, dict, "an element of pipelines")
    return Pipeline(
        script=take(obj, "script", str, ""),
        roots=tuple(expect(root, str, "a root") for root in take(obj, "roots", list, [])),
        **{
            name: tuple(
                expect(code, int, f"a number in {name}") for code in take(obj, name, list, [])
            )
            for name in _SKETCHES
        },
    )
