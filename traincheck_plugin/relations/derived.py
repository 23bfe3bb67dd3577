"""Attributes of variables that follow from recorded ones.

A rule may name them like any other. Each is a column over the variables of some moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.events import RUN_WITHOUT_GRADIENTS, Window
from traincheck_plugin.invariants.model import VAR_TYPES
from traincheck_plugin.relations.frames import frames_at
from traincheck_plugin.relations.moments import Moments, by_stack
from traincheck_plugin.vocabulary import NONE, Array, Bool, GradState, Int64, Variable, VariableKind

_NULL = int(GradState.NULL)

NARROW = frozenset({"torch.bfloat16", "torch.float16"})
"""Dtypes in which small updates of a parameter are lost."""

_LAYERS = "torch.nn."
_TRAINED = ("optimizer", "requires_grad")


@dataclass(frozen=True, slots=True)
class _Derived:
    """How a column follows.

    Attributes:
        kind: of the variables.
        needs: recorded attributes of parameters that it follows from.
        column: gives it for moments of a window; None where they do not tell.
        also: what else has to be recorded.
    """

    kind: VariableKind
    needs: tuple[str, ...]
    column: Callable[[Window, Moments], Array | None]
    also: tuple[tuple[VariableKind, str], ...] = ()


def _used(window: Window, shown: Moments) -> Array:
    return np.asarray(shown.column("in_model") | (shown.column("grad") > _NULL))


def _accounted(window: Window, shown: Moments) -> Array:
    return np.asarray(
        (shown.column("grad") <= _NULL)
        | shown.column("in_model")
        | (shown.column("optimizer") != NONE)
    )


def owners_taking_part(window: Window, shown: Moments) -> Bool:
    """Return of which owners an optimizer holds a parameter, or one has a gradient, in each moment.

    The others only run to be looked at, as an average of the weights does in an evaluation.
    """
    owners, size = window.catalog.owners.of(shown.variables), len(window.catalog.owners)
    takes_part = (shown.column("optimizer") != NONE) | (shown.column("grad") > _NULL)
    return _any_of(takes_part, owners, size)


def _takes_part(window: Window, shown: Moments) -> Array:
    return owners_taking_part(window, shown)[:, window.catalog.owners.of(shown.variables)]


def _module_held(window: Window, shown: Moments) -> Array:
    module_of = window.catalog.modules.of(shown.variables)
    held = shown.column("optimizer") != NONE
    return _any_of(held, module_of, len(window.catalog.modules))[:, module_of]


def _gets(shown: Moments) -> Bool:
    """Return which parameters have a gradient that is not left over from what is done by now."""
    gets: Bool = (shown.column("grad") > _NULL) & (shown.column("ran") >= 0)
    return gets


def _beside_frozen(window: Window, shown: Moments) -> Array:
    owners, size = window.catalog.owners.of(shown.variables), len(window.catalog.owners)
    held, frozen = shown.column("optimizer") != NONE, ~shown.column("requires_grad")
    # What is on either side of a scale, for each model: a frozen parameter is as heavy as it is.
    weights = np.zeros((len(owners), size))
    weights[np.arange(len(owners)), owners] = window.catalog.num_elements(shown.variables)
    is_frozen = np.where(frozen, 1, -1) @ weights > 0
    meant = _any_of(held & frozen, owners, size) | (is_frozen & _any_of(held, owners, size))
    beside: Bool = meant[:, owners]
    return beside & _gets(shown)


def _woven(window: Window, shown: Moments) -> Array:
    catalog, holders = window.catalog, shown.column("optimizer")
    codes = [code for code in np.unique(holders).tolist() if _has_groups(window, code)]
    learns = shown.column("requires_grad") & _gets(shown)
    if not codes:
        return np.zeros_like(learns)
    held = np.isin(holders, codes) & learns
    owners, parts = catalog.owners.of(shown.variables), catalog.parts.of(shown.variables)
    of_owner = _table(owners, len(catalog.owners))
    is_majority = 2 * (held @ of_owner) > learns @ of_owner
    has_held = _any_of(held, parts, len(catalog.parts))
    owner_of = np.zeros(len(catalog.parts), np.int64)
    owner_of[parts] = owners
    has_several = has_held @ _table(owner_of, len(catalog.owners)) > 1
    woven: Bool = learns & is_majority[:, owners] & (has_held[:, parts] | has_several[:, owners])
    return woven


def _table(numbers: Int64, size: int) -> Int64:
    """Return a table that is 1 where a column is the number of a row."""
    table: Int64 = (numbers[:, None] == np.arange(size)).astype(np.int64)
    return table


def _has_groups(window: Window, optimizer: int) -> bool:
    """Return whether an optimizer has several groups of parameters."""
    if optimizer == NONE:
        return False
    catalog = window.catalog
    label = catalog.objects[optimizer]
    second = Variable(kind="group", name="1.lr", owner=label, type="float")
    return catalog.variables.find(second) != NONE


def _any_of(mask: Bool, numbers: Int64, size: int) -> Bool:
    """Return in each row which of the numbers 0 to *size* have a column that is set."""
    found = np.zeros((len(mask), size), np.bool_)
    rows, columns = mask.nonzero()
    found[rows, numbers[columns]] = True
    return found


def _is_first(window: Window, shown: Moments) -> Array:
    ran = shown.column("ran")
    held = shown.select((("held", True),))
    candidates = held & shown.column("requires_grad") & (ran >= 0)
    least = np.where(candidates, ran, np.iinfo(ran.dtype).max).min(axis=1, keepdims=True)
    return np.asarray(candidates & (ran == least))


def _ran_with_gradients(window: Window, shown: Moments) -> Array:
    return np.asarray(shown.column("ran") != RUN_WITHOUT_GRADIENTS)


def _learns(window: Window, shown: Moments) -> Array | None:
    """Tell of modules whether they are part of a model that an optimizer trains."""
    positions = frames_at(window, shown.calls, VAR_TYPES["parameter"], _TRAINED, is_begin=True)
    if (positions == NONE).all():
        return None
    owners = window.catalog.owners.of(shown.variables)
    learns = np.zeros((len(shown), len(owners)), np.bool_)
    for rows, parameters in by_stack(window, positions):
        trained = (parameters.column("optimizer") != NONE) & parameters.column("requires_grad")
        of_parameters = window.catalog.owners.of(parameters.variables)
        learns[rows] = _any_of(trained, of_parameters, len(window.catalog.owners))[:, owners]
    return learns


def _wide(window: Window, shown: Moments) -> Array:
    dtypes = shown.column("dtype")
    strings = window.catalog.strings
    narrow = [code for code in np.unique(dtypes).tolist() if strings[code] in NARROW]
    return ~np.isin(dtypes, narrow)


def _of_layer(window: Window, shown: Moments) -> Array:
    variables = window.catalog.variables
    types = [variables[code].module_type for code in shown.variables.tolist()]
    of_layer = np.array([name.startswith(_LAYERS) for name in types], np.bool_)
    return np.broadcast_to(of_layer, (len(shown), len(of_layer)))


DERIVED: Mapping[str, _Derived] = {
    "used": _Derived("parameter", ("in_model", "grad"), _used),
    "accounted": _Derived("parameter", ("in_model", "grad", "optimizer"), _accounted),
    "takes_part": _Derived("parameter", ("optimizer", "grad"), _takes_part),
    "module_held": _Derived("parameter", ("optimizer",), _module_held),
    "beside_frozen": _Derived(
        "parameter", ("requires_grad", "grad", "ran", "optimizer"), _beside_frozen
    ),
    "woven": _Derived(
        "parameter",
        ("requires_grad", "grad", "ran", "optimizer"),
        _woven,
        also=(("group", "value"),),
    ),
    "is_first": _Derived("parameter", ("ran", "requires_grad", "optimizer"), _is_first),
    "ran_with_gradients": _Derived("parameter", ("ran",), _ran_with_gradients),
    "wide": _Derived("parameter", ("dtype",), _wide),
    "of_layer": _Derived("parameter", ("alike",), _of_layer),
    "learns": _Derived("module", ("requires_grad", "optimizer"), _learns),
}
"""By name.

used: a model that ran has the parameter, or it has a gradient. accounted: it has no gradient, or
belongs to a model that ran or to an optimizer. takes_part: an optimizer holds a parameter of its
model, or one has a gradient. module_held: an optimizer holds it or another
parameter of its module. beside_frozen: its module ran and it has a gradient, and an optimizer holds
parameters of its model that are frozen, or trains a model that is frozen for the greater part.
woven: its module ran and it has a gradient, in a model of which an optimizer with several groups
holds most of those that have one, and some of its part or of several others. is_first: its module
ran first of all that the optimizer trains. ran_with_gradients: its module did not run under
`no_grad` only. wide: its dtype is none of `NARROW`. of_layer: its module is one of torch,
whose weights have a row for each unit. learns: the module is part of a model of which
an optimizer trains something.
"""


def has(window: Window, shown: Moments, name: str) -> bool:
    """Return whether moments have an attribute, deriving it where they can.

    Args:
        window: where they are.
        shown: of calls that begin.
        name: of the attribute, recorded or derived.
    """
    if shown.has(name):
        return True
    derived = DERIVED.get(name)
    if derived is None or (derived.kind == "parameter" and not all(map(shown.has, derived.needs))):
        return False
    column = derived.column(window, shown)
    if column is None:
        return False
    shown.add(name, column)
    return True


def needed(names: Iterable[str]) -> set[tuple[VariableKind, str]]:
    """Return the recorded attributes that the derived ones among *names* follow from."""
    several = [DERIVED[name] for name in names if name in DERIVED]
    found: set[tuple[VariableKind, str]] = {pair for one in several for pair in one.also}
    return found | {("parameter", attribute) for one in several for attribute in one.needs}
