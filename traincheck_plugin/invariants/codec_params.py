"""Parameters of invariants as JSON objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from traincheck_plugin.invariants.json_fields import (
    MalformedError,
    UnsupportedError,
    expect,
    frozen,
    take,
    take_one_of,
)
from traincheck_plugin.invariants.model import (
    ANY,
    APIParam,
    ConstantParam,
    Param,
    VarNameParam,
    VarTypeParam,
)
from traincheck_plugin.vocabulary import Role

UPSTREAM_VALUES = {"anything": ANY, "non_none": "not_null"}
"""TrainCheck's names of values that are called otherwise here."""

UPSTREAM_ONLY_VALUES = ("above_zero", "below_zero", "non_positive", "non_negative")

UPSTREAM_ONLY_PARAMS = ("InputOutputParam",)


def encode_param(param: Param) -> dict[str, Any]:
    """Return the JSON object of a parameter; fields of ours only where they say something."""
    obj: dict[str, Any] = {"param_type": type(param).__name__}
    if isinstance(param, APIParam):
        obj["api_full_name"] = param.api_full_name
        if param.span != "call":
            obj["span"] = param.span
        if param.argument is not None:
            obj["argument"] = param.argument
        if param.attribute is not None:
            obj["attribute"] = param.attribute
        if param.role is not None:
            obj["role"] = param.role
    elif isinstance(param, VarTypeParam):
        obj |= {"var_type": param.var_type, "attr_name": param.attr_name}
        # Absent means any value; null means None, as in TrainCheck's files.
        if param.pre_value != ANY:
            obj["pre_value"] = param.pre_value
        if param.post_value != ANY:
            obj["post_value"] = param.post_value
        if param.quantifier != "some":
            obj["quantifier"] = param.quantifier
        if param.where:
            obj["where"] = [list(pair) for pair in param.where]
    elif isinstance(param, VarNameParam):
        obj["var_type"] = param.var_type
        obj["var_name"] = param.var_name
        obj["attr_name"] = param.attr_name
    else:
        obj["value"] = param.value
    return obj


def decode_param(value: object) -> Param:
    """Return the parameter of a JSON object.

    Raises:
        MalformedError: it is no parameter.
        UnsupportedError: it is one of TrainCheck that has no counterpart here.
    """
    obj = expect(value, dict, "an element of params")
    param_type = take(obj, "param_type", str)
    if param_type in UPSTREAM_ONLY_PARAMS:
        raise UnsupportedError(f"param_type {param_type} has no counterpart")
    decode = _DECODERS.get(param_type)
    if decode is None:
        raise MalformedError(
            f"expected a known param_type, got {param_type!r}; use one of {', '.join(_DECODERS)}"
        )
    param = decode(obj)
    unknown = obj.keys() - {"param_type", *type(param).__dataclass_fields__}
    if unknown:
        raise UnsupportedError(
            f"the field {', '.join(sorted(unknown))} of {param_type} has no counterpart"
        )
    return param


def _decode_api(obj: Mapping[str, Any]) -> Param:
    is_given = obj.get("role") is not None
    return APIParam(
        api_full_name=take(obj, "api_full_name", str),
        span=take_one_of(obj, "span", ("call", "cycle"), "call"),
        argument=take(obj, "argument", str, None),
        attribute=take(obj, "attribute", str, None),
        role=take_one_of(obj, "role", get_args(Role), "function") if is_given else None,
    )


def _decode_var_type(obj: Mapping[str, Any]) -> Param:
    where = []
    for pair in take(obj, "where", list, []):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise MalformedError(f"expected pairs [attribute, value] in where, got {pair!r}")
        where.append((expect(pair[0], str, "an attribute in where"), frozen(pair[1])))
    return VarTypeParam(
        var_type=take(obj, "var_type", str),
        attr_name=take(obj, "attr_name", str),
        pre_value=_decode_state(obj.get("pre_value", ANY)),
        post_value=_decode_state(obj.get("post_value", ANY)),
        quantifier=take_one_of(obj, "quantifier", ("some", "every"), "some"),
        where=tuple(where),
    )


def _decode_var_name(obj: Mapping[str, Any]) -> Param:
    return VarNameParam(
        var_name=take(obj, "var_name", str),
        var_type=take(obj, "var_type", str),
        attr_name=take(obj, "attr_name", str),
    )


def _decode_constant(obj: Mapping[str, Any]) -> Param:
    if "value" not in obj:
        raise MalformedError("expected the field 'value' of ConstantParam, got none; add it")
    return ConstantParam(value=frozen(obj["value"]))


_DECODERS: Mapping[str, Callable[[Mapping[str, Any]], Param]] = {
    "APIParam": _decode_api,
    "VarTypeParam": _decode_var_type,
    "VarNameParam": _decode_var_name,
    "ConstantParam": _decode_constant,
}


def _decode_state(value: object) -> Any:
    if not isinstance(value, str):
        return frozen(value)
    if value in UPSTREAM_ONLY_VALUES:
        raise UnsupportedError(f"the value {value} of a variable has no counterpart")
    return UPSTREAM_VALUES.get(value, value)
