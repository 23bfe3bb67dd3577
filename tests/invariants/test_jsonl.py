from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.codec import SCHEMA_VERSION, decode_invariant, encode_invariant
from traincheck_plugin.invariants.jsonl import dump_invariants, load_invariants
from traincheck_plugin.invariants.model import (
    ANY,
    SEVERITIES,
    APIParam,
    ConstantParam,
    Evidence,
    Invariant,
    Pipeline,
    VarNameParam,
    VarTypeParam,
)
from traincheck_plugin.invariants.precondition import ALWAYS, Clause, Precondition
from traincheck_plugin.vocabulary import Role

UPSTREAM = (
    '{"relation": "APIContainRelation", "params": [{"param_type": "APIParam", "api_full_name": '
    '"torch.optim.optimizer.Optimizer.zero_grad"}, {"param_type": "VarTypeParam", "var_type": '
    '"torch.nn.Parameter", "attr_name": "grad", "pre_value": "non_zero", "post_value": null}], '
    '"precondition": {"parent_func_call_pre": {"inverted": true, "preconditions": [{"clauses": '
    '[{"type": "constant", "prop_name": "meta_vars.step", "additional_path": "None", '
    '"prop_dtype": "int", "values": [0]}]}, {"clauses": [{"type": "constant", "prop_name": '
    '"meta_vars.stage", "additional_path": "None", "prop_dtype": "str", "values": ["testing", '
    '"init"]}]}]}}, "num_positive_examples": 20, "num_negative_examples": 1}'
)

texts = st.text(max_size=12)
counts = st.integers(min_value=0, max_value=2**63)
literals = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
literals = literals.filter(lambda v: v not in (float("inf"), float("-inf")))
values = literals | st.tuples(literals, literals)
# What TrainCheck calls otherwise, or cannot be said here, is never written.
states = values.filter(
    lambda v: (
        v
        not in ("anything", "non_none", "above_zero", "below_zero", "non_positive", "non_negative")
    )
)
params = st.one_of(
    st.builds(
        APIParam,
        api_full_name=texts,
        span=st.sampled_from(["call", "cycle"]),
        argument=st.none() | texts,
        attribute=st.none() | texts,
        role=st.none() | st.sampled_from(get_args(Role)),
    ),
    st.builds(
        VarTypeParam,
        var_type=texts,
        attr_name=texts,
        pre_value=st.just(ANY) | states,
        post_value=st.just(ANY) | states,
        quantifier=st.sampled_from(["some", "every"]),
        where=st.lists(st.tuples(texts, values), max_size=3).map(tuple),
    ),
    st.builds(VarNameParam, var_name=texts, var_type=texts, attr_name=texts),
    st.builds(ConstantParam, value=values),
)
clauses = st.builds(
    Clause,
    type=st.sampled_from(["constant", "consistent", "unequal", "exist"]),
    prop_name=texts,
    prop_dtype=st.sampled_from([None, "str", "int", "bool"]),
    values=st.lists(values, max_size=3).map(tuple),
)
preconditions = st.builds(
    Precondition,
    alternatives=st.lists(st.lists(clauses, max_size=3).map(tuple), max_size=3).map(tuple),
    inverted=st.booleans(),
)
invariants = st.builds(
    Invariant,
    relation=texts,
    params=st.lists(params, max_size=3).map(tuple),
    precondition=preconditions,
    severity=st.sampled_from(SEVERITIES),
    scope=st.sampled_from(["pipeline", "universal"]),
    evidence=st.builds(
        Evidence,
        num_positive_examples=counts,
        num_negative_examples=counts,
        num_occurrences=counts,
        num_held_out=counts,
        num_runs=counts,
    ),
    pipelines=st.lists(
        st.builds(
            Pipeline,
            script=texts,
            roots=st.lists(texts, max_size=2).map(tuple),
            parameters=st.lists(counts, max_size=4).map(tuple),
            names=st.lists(counts, max_size=4).map(tuple),
            shapes=st.lists(counts, max_size=4).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
    text_description=texts,
)


@given(st.lists(invariants, max_size=4))
def test_writing_then_reading_is_identity(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("invariants") / "invariants.json"
    dump_invariants(written, path)
    assert load_invariants(path) == tuple(written)
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(written)


def test_loads_a_line_of_traincheck(tmp_path):
    path = tmp_path / "upstream.json"
    path.write_text(UPSTREAM + "\n\n", encoding="utf-8")
    (invariant,) = load_invariants(path, known_relations={"APIContainRelation"})
    assert invariant == Invariant(
        relation="APIContainRelation",
        params=(
            APIParam(api_full_name="torch.optim.optimizer.Optimizer.zero_grad"),
            VarTypeParam(
                var_type="torch.nn.Parameter",
                attr_name="grad",
                pre_value="non_zero",
                post_value=None,
            ),
        ),
        precondition=Precondition(
            alternatives=(
                (
                    Clause(
                        type="constant",
                        prop_name="meta_vars.step",
                        prop_dtype="int",
                        values=(0,),
                    ),
                ),
                (
                    Clause(
                        type="constant",
                        prop_name="meta_vars.stage",
                        prop_dtype="str",
                        values=("testing", "init"),
                    ),
                ),
            ),
            inverted=True,
        ),
        severity="warning",
        evidence=Evidence(num_positive_examples=20, num_negative_examples=1),
    )


def test_keeps_the_fields_of_traincheck():
    """What TrainCheck wrote comes back from reading and writing it, plus fields of ours."""
    upstream = json.loads(UPSTREAM)
    encoded = encode_invariant(decode_invariant(upstream))
    assert {name: encoded[name] for name in upstream} == upstream
    assert encoded["schema_version"] == SCHEMA_VERSION


def test_null_is_none_and_absence_is_any():
    param = VarTypeParam(var_type="torch.nn.Parameter", attr_name="grad", post_value=None)
    invariant = Invariant(relation="R", params=(param,))
    (encoded,) = encode_invariant(invariant)["params"]
    assert encoded == {
        "param_type": "VarTypeParam",
        "var_type": "torch.nn.Parameter",
        "attr_name": "grad",
        "post_value": None,
    }
    assert decode_invariant(encode_invariant(invariant)).params == (param,)


def upstream_with(**changes):
    obj = json.loads(UPSTREAM)
    obj.update(changes)
    return {name: value for name, value in obj.items() if value != "ABSENT"}


def test_unconditional_groups_add_nothing():
    unconditional = {"inverted": False, "preconditions": [{"clauses": "Unconditional"}]}
    conditional = json.loads(UPSTREAM)["precondition"]["parent_func_call_pre"]
    assert decode_invariant(upstream_with(precondition={"var": unconditional})).precondition == (
        ALWAYS
    )
    both = decode_invariant(upstream_with(precondition={"a": unconditional, "b": conditional}))
    assert both.precondition == decode_invariant(json.loads(UPSTREAM)).precondition


def test_values_are_translated_from_traincheck():
    param = {
        "param_type": "VarTypeParam",
        "var_type": "torch.nn.Parameter",
        "attr_name": "grad",
        "pre_value": "anything",
        "post_value": "non_none",
    }
    (decoded,) = decode_invariant(upstream_with(params=[param])).params
    assert isinstance(decoded, VarTypeParam)
    assert (decoded.pre_value, decoded.post_value) == (ANY, "not_null")


@pytest.mark.parametrize(
    ("given", "role"), [({}, None), ({"role": None}, None), ({"role": "step"}, "step")]
)
def test_a_role_that_is_null_is_as_unknown_as_one_that_is_absent(given, role):
    param = {"param_type": "APIParam", "api_full_name": "f"} | given
    (decoded,) = decode_invariant(upstream_with(params=[param])).params
    assert decoded == APIParam(api_full_name="f", role=role)


UNSUPPORTED = {
    "param_type InputOutputParam has no counterpart": {
        "params": [{"param_type": "InputOutputParam", "index": 0}]
    },
    "the field arguments of APIParam has no counterpart": {
        "params": [{"param_type": "APIParam", "api_full_name": "f", "arguments": {"args": {}}}]
    },
    "the value above_zero of a variable has no counterpart": {
        "params": [
            {"param_type": "VarTypeParam", "var_type": "t", "attr_name": "a", "pre_value": v}
            for v in ["above_zero"]
        ]
    },
    "a precondition with the groups a, b": {
        "precondition": {
            name: {"inverted": True, "preconditions": [{"clauses": []}]} for name in "ab"
        }
    },
    "a clause with the additional_path ['x']": {
        "precondition": {
            "a": {
                "inverted": False,
                "preconditions": [
                    {"clauses": [{"type": "exist", "prop_name": "p", "additional_path": ["x"]}]}
                ],
            }
        }
    },
    'a value that is an object cannot be checked: {"a": 1}': {
        "params": [{"param_type": "ConstantParam", "value": {"a": 1}}]
    },
}


@pytest.mark.parametrize(("message", "changes"), UNSUPPORTED.items())
def test_what_only_traincheck_has_is_an_error_or_left_out_and_told(tmp_path, message, changes):
    path = tmp_path / "upstream.json"
    path.write_text(f"{json.dumps(upstream_with(**changes))}\n{UPSTREAM}\n", encoding="utf-8")
    told = f"{path}:1: {message}; infer it again with traincheck-infer"
    with pytest.raises(InvariantError) as caught:
        load_invariants(path)
    assert str(caught.value) == told
    messages: list[str] = []
    assert len(load_invariants(path, on_unsupported=messages.append)) == 1
    assert messages == [told]


def clause_with(**changes):
    clause = {"type": "exist", "prop_name": "p", "prop_dtype": "None"} | changes
    return {"precondition": {"g": {"inverted": False, "preconditions": [{"clauses": [clause]}]}}}


MALFORMED = [
    (
        {"relation": "ABSENT"},
        "expected the field 'relation', got only [\"num_negative_examples\", "
        '"num_positive_examples", "param...; add it or delete the line',
    ),
    ({"relation": 3}, "expected a text as relation, got 3; correct it"),
    (
        {"relation": "Surprise"},
        "expected a known relation, got 'Surprise'; use one of APIContainRelation, Other",
    ),
    ({"params": {}}, "expected a list as params, got {}; correct it"),
    ({"params": [1]}, "expected an object as an element of params, got 1; correct it"),
    (
        {"params": [{"param_type": "Magic"}]},
        "expected a known param_type, got 'Magic'; use one of APIParam, VarTypeParam, "
        "VarNameParam, ConstantParam",
    ),
    (
        {"params": [{"param_type": "APIParam"}]},
        "expected the field 'api_full_name', got only [\"param_type\"]; add it or delete the line",
    ),
    (
        {"params": [{"param_type": "APIParam", "api_full_name": "f", "span": "life"}]},
        "expected span to be one of call, cycle, got 'life'",
    ),
    (
        {"params": [{"param_type": "ConstantParam"}]},
        "expected the field 'value' of ConstantParam, got none; add it",
    ),
    (
        {
            "params": [
                {"param_type": "VarTypeParam", "var_type": "t", "attr_name": "a", "where": ["x"]}
            ]
        },
        "expected pairs [attribute, value] in where, got 'x'",
    ),
    (
        {"precondition": {}},
        "expected a group such as 'parent_func_call_pre' in precondition, got none",
    ),
    (
        {"precondition": {"g": {"inverted": False, "preconditions": []}}},
        'expected preconditions to hold something, got []; write {"clauses": "Unconditional"} '
        "for always",
    ),
    (
        {"precondition": {"g": {"inverted": 1, "preconditions": [{"clauses": []}]}}},
        "expected true or false as inverted, got 1; correct it",
    ),
    (
        clause_with(type="maybe"),
        "expected type to be one of constant, consistent, unequal, exist, got 'maybe'",
    ),
    (clause_with(values="x"), 'expected a list as values, got "x"; correct it'),
    ({"severity": "fatal"}, "expected severity to be one of info, warning, critical, got 'fatal'"),
    ({"scope": "all"}, "expected scope to be one of pipeline, universal, got 'all'"),
    (
        {"num_positive_examples": True},
        "expected an integer as num_positive_examples, got true; correct it",
    ),
    (
        {"evidence": {"num_runs": -1}},
        "expected num_runs to be at least 0, got -1; correct it",
    ),
    ({"pipelines": [{"roots": [1]}]}, "expected a text as a root, got 1; correct it"),
    (
        {"schema_version": 2},
        "expected schema_version 1 or older, got 2; upgrade traincheck-plugin to read this file",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MALFORMED)
def test_a_malformed_line_is_named_with_what_came(tmp_path, changes, message):
    path = tmp_path / "bad.json"
    path.write_text(f"{UPSTREAM}\n{json.dumps(upstream_with(**changes))}\n", encoding="utf-8")
    with pytest.raises(InvariantError) as caught:
        load_invariants(path, known_relations={"APIContainRelation", "Other"})
    assert str(caught.value) == f"{path}:2: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"{",
            "expected one JSON object on the line, got '{' (Expecting property name enclosed "
            "in double quotes, column 2); correct or delete the line",
        ),
        (b"[1]\n", "expected an object as an invariant, got [1]; correct it"),
        (b'{"a": NaN}\n', "expected a JSON value, got NaN; correct or delete the line"),
        (b"[" * 100_000, "expected an invariant, got JSON nested too deep; delete the line"),
    ],
)
def test_broken_json_is_an_error_with_its_line(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(InvariantError) as caught:
        load_invariants(path)
    assert str(caught.value).startswith(f"{path}:1: ")
    assert str(caught.value).endswith(message)


def test_files_that_cannot_be_read_are_one_clear_line(tmp_path):
    with pytest.raises(InvariantError, match=r"missing\.json: expected a file .* traincheck-infer"):
        load_invariants(tmp_path / "missing.json")
    with pytest.raises(InvariantError, match="expected a readable file of invariants, got: Is a"):
        load_invariants(tmp_path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\x80\x00")
    with pytest.raises(InvariantError, match="expected JSON lines in UTF-8, got a byte 0x80; give"):
        load_invariants(binary)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "invariants.json"
    good = Invariant(relation="R", params=())
    dump_invariants([good], path)
    bad = Invariant(relation="R", params=(ConstantParam(value=float("nan")),))
    with pytest.raises(InvariantError, match=r"cannot write R \(\): expected literals"):
        dump_invariants([good, bad], path)
    assert load_invariants(path) == (good,)
    assert list(tmp_path.iterdir()) == [path]
