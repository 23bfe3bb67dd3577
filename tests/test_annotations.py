"""What a script says about itself."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from tests.recorder.recording import CALLS_ONLY, batches, make_model, record
from traincheck_plugin.annotations import META_VARS, annotate_stage, provide_upstream_names


@pytest.fixture(autouse=True)
def _nothing_said():
    META_VARS.clear()
    yield
    META_VARS.clear()


def test_an_annotated_stage_wins_over_the_detected_one():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters())
        annotate_stage("training")
        with torch.no_grad():
            model(batches(1)[0])
        with annotate_stage("testing"):
            model(batches(1)[0]).sum().backward()
        optimizer.step()
        model.state_dict()

    recording = record(train, CALLS_ONLY)

    stages = {call.role: call.context.stage for call in recording.calls}
    assert stages["construct"] == "init"
    assert stages["backward"] == "testing"
    assert stages["step"] == "training"
    assert stages["checkpoint"] == "training"
    assert recording.of_role("forward")[0].context.stage == "training"


def test_variables_of_the_script_become_annotations():
    def train():
        model = make_model()
        META_VARS["step"] = 7
        META_VARS.update(phase="warm", stage="training")
        model(batches(1)[0])
        del META_VARS["phase"]
        model(batches(1)[0])

    recording = record(train, CALLS_ONLY)

    first, second = (call.context for call in recording.of_role("forward"))
    assert first.annotations == (("phase", "warm"), ("step", "7"))
    assert first.step == 0
    assert first.stage == "training"
    assert second.annotations == (("step", "7"),)


def test_stages_nest_and_end_with_their_block():
    with annotate_stage("training"):
        with pytest.raises(KeyError), annotate_stage("validation"):
            raise KeyError(META_VARS["stage"])
        assert META_VARS["stage"] == "training"
    assert "stage" not in META_VARS


@pytest.mark.parametrize(
    "module",
    ["traincheck", "traincheck.instrumentor.tracer", "traincheck.instrumentor.control"],
)
def test_upstream_names_can_be_imported_where_it_is_not_installed(module):
    with provide_upstream_names():
        imported = importlib.import_module(module)
        assert imported.annotate_stage is annotate_stage
        assert imported.META_VARS is META_VARS
    assert not [name for name in sys.modules if name.partition(".")[0] == "traincheck"]


def test_an_upstream_that_is_there_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "traincheck.py").write_text("annotate_stage = 'upstream'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with provide_upstream_names():
        import traincheck

        assert traincheck.annotate_stage == "upstream"
    del sys.modules["traincheck"]
