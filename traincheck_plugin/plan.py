"""What to observe: handed to the recorder, which knows nothing of invariants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from traincheck_plugin.events import ATTRIBUTES
from traincheck_plugin.vocabulary import Role, VariableKind

CHANGE = "change"
"""In place of ``data``: whether it is another one at the end of a call than at its begin.

That takes less reading. The column ``data`` then holds numbers of which nothing else is to be
asked, and of optimizer slots a few may be shown, as long as these change.
"""

LIFECYCLE: frozenset[Role] = frozenset(
    {
        "construct",
        "step",
        "zero_grad",
        "backward",
        "clip",
        "scaler",
        "scheduler",
        "mode",
        "forward",
        "data",
        "checkpoint",
        "seed",
        "autocast",
        "framework",
        "instrumented",
    }
)
"""Roles whose calls are always recorded: they are few and place everything else in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which functions and attributes of variables to observe.

    Attributes:
        functions: public names of torch functions to record at the boundary; None for all of them,
            an empty set for none (then no function is intercepted at all).
        attributes: for each role whose calls get frames, the (kind of variable, attribute) pairs.
    """

    functions: frozenset[str] | None
    attributes: dict[Role, frozenset[tuple[VariableKind, str]]]

    @classmethod
    def full(cls) -> Plan:
        """Observe everything: what a reference needs."""
        return cls(functions=None, attributes=dict(FULL_ATTRIBUTES))

    @classmethod
    def nothing(cls) -> Plan:
        """Observe only the lifecycle, without any state: where unions begin."""
        return cls(functions=frozenset(), attributes={})

    def union(self, other: Plan) -> Plan:
        """Return the plan that observes whatever this or *other* does."""
        functions = None
        if self.functions is not None and other.functions is not None:
            functions = self.functions | other.functions
        nothing: frozenset[tuple[VariableKind, str]] = frozenset()
        attributes = {
            role: self.attributes.get(role, nothing) | other.attributes.get(role, nothing)
            for role in {**self.attributes, **other.attributes}
        }
        return Plan(functions=functions, attributes=attributes)

    def telling_changes(self) -> Plan:
        """Return the plan that tells what changes in a call, and asks for no more of hashes."""
        attributes = {
            role: frozenset((kind, CHANGE if name == "data" else name) for kind, name in pairs)
            for role, pairs in self.attributes.items()
        }
        return Plan(functions=self.functions, attributes=attributes)

    def covers(self, other: Plan) -> bool:
        """Return whether this observes all that *other* does."""
        functions = self.functions is None or (
            other.functions is not None and other.functions <= self.functions
        )
        nothing: frozenset[tuple[VariableKind, str]] = frozenset()
        return functions and all(
            wanted <= _with_changes(self.attributes.get(role, nothing))
            for role, wanted in other.attributes.items()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as an object that JSON can hold."""
        return {
            "functions": None if self.functions is None else sorted(self.functions),
            "attributes": {
                role: sorted(map(list, pairs)) for role, pairs in sorted(self.attributes.items())
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan of an object made by `to_json`.

        Raises:
            ValueError: it is something else.
        """
        try:
            functions, attributes = data["functions"], data["attributes"]
            return cls(
                functions=None if functions is None else frozenset(map(str, functions)),
                attributes={
                    role: frozenset((kind, name) for kind, name in pairs)
                    for role, pairs in attributes.items()
                },
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"expected the plan of a recording, got {data!r}") from error

    def wants(self, role: Role, kind: VariableKind) -> frozenset[str]:
        """Return the attributes of variables of *kind* that calls of *role* need."""
        return frozenset(a for k, a in self.attributes.get(role, ()) if k == kind)


def _with_changes(
    pairs: frozenset[tuple[VariableKind, str]],
) -> frozenset[tuple[VariableKind, str]]:
    return pairs | {(kind, CHANGE) for kind, name in pairs if name == "data"}


def _pairs(**kinds: str) -> frozenset[tuple[VariableKind, str]]:
    pairs = {(kind, name) for kind, names in kinds.items() for name in names.split()}
    unknown = {name for _, name in pairs} - set(ATTRIBUTES)
    if unknown:
        raise ValueError(f"unknown attributes {sorted(unknown)}")
    return frozenset(pairs)  # type: ignore[arg-type]


_MEMBERSHIP = "requires_grad in_model optimizer lr"

FULL_ATTRIBUTES: dict[Role, frozenset[tuple[VariableKind, str]]] = {
    "step": _pairs(
        parameter="data data_norm grad grad_norm dtype grad_dtype placement ran copy alike "
        f"shared module_requires_grad {_MEMBERSHIP}",
        slot="data",
        group="value",
    ),
    "zero_grad": _pairs(parameter=f"grad {_MEMBERSHIP}"),
    "backward": _pairs(
        parameter=f"grad grad_norm {_MEMBERSHIP}",
        module="value number",
        target="value",
        padding="value",
        sample="data value",
    ),
    "clip": _pairs(parameter=f"grad grad_norm {_MEMBERSHIP}"),
    "scaler": _pairs(parameter=f"grad grad_norm {_MEMBERSHIP}"),
    "scheduler": _pairs(group="value"),
    "forward": _pairs(
        module="value",
        buffer="data",
        input="data value lowest highest negative",
        generator="data",
        sample="data",
        sequence="length number",
        alias="value",
        evaluation="value number",
    ),
    "data": _pairs(batch="data value lowest highest negative", loader="value", stored="data value"),
    "mode": _pairs(module="value"),
    "checkpoint": _pairs(parameter="data", buffer="data", slot="data", group="value"),
}
