"""Which runs are taken for runs of one pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.invariants.model import Pipeline
from traincheck_plugin.invariants.similarity import SAME_PIPELINE, pipeline_of, similarity
from traincheck_plugin.vocabulary import Variable

Shapes = dict[str, tuple[int, ...]]

NET: Shapes = {
    "layers.0.weight": (8, 4),
    "layers.0.bias": (8,),
    "layers.1.weight": (8, 8),
    "layers.1.bias": (8,),
    "head.weight": (3, 8),
}


def _pipeline(
    shapes: Shapes, script: str = "train.py", owner: str = "__main__.Net#0", **others: Shapes
) -> Pipeline:
    catalog = Catalog()
    for label, found in {owner: shapes, **others}.items():
        for name, shape in found.items():
            catalog.variables.code(
                Variable(
                    kind="parameter", name=name, owner=label, type="torch.nn.Parameter", shape=shape
                )
            )
    return pipeline_of(catalog, script)


def _is_same(first: Pipeline, second: Pipeline) -> bool:
    return similarity(first, second) >= SAME_PIPELINE


WIDER = _pipeline({name: tuple(16 if n == 8 else n for n in s) for name, s in NET.items()})
IN_A_LIST = _pipeline(
    {"head.weight": (3, 8)},
    Layer0={"weight": (8, 4), "bias": (8,)},
    Layer1={"weight": (8, 8), "bias": (8,)},
)


@pytest.mark.parametrize("run", [WIDER, IN_A_LIST], ids=["wider", "layers in a list"])
def test_of_one_script_names_or_shapes_are_enough(run: Pipeline) -> None:
    reference = _pipeline(NET)
    assert _is_same(reference, run)
    assert _is_same(run, reference)
    assert not _is_same(reference, replace(run, script="other.py"))
    assert not _is_same(replace(reference, script=""), replace(run, script=""))


def test_of_other_scripts_both_have_to_agree() -> None:
    assert _is_same(_pipeline(NET), _pipeline(NET, "other.py", "lib.Net#0"))
    one_more = {**NET, "extra.weight": (2, 2)}
    assert _is_same(_pipeline(NET), _pipeline(one_more, "other.py"))


def test_models_without_a_class_in_common_are_others() -> None:
    assert not _is_same(_pipeline(NET), _pipeline(NET, owner="__main__.Other#0"))


def test_nothing_in_common_is_another_program_whatever_its_script() -> None:
    other: Shapes = {"conv.weight": (8, 1, 3, 3), "conv.bias": (16,), "out.weight": (10, 16)}
    assert not _is_same(_pipeline(NET), _pipeline(other))


def test_files_of_earlier_versions_have_one_sketch() -> None:
    old = replace(_pipeline(NET), names=(), shapes=())
    assert _is_same(old, _pipeline(NET))
    assert not _is_same(old, WIDER)
