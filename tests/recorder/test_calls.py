"""Which calls are recorded, under which names, once each."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import lr_scheduler as schedulers

from tests.recorder.recording import CALLS_ONLY, batches, make_loader, make_model, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import Recorder


def one_step(model, optimizer, batch):
    optimizer.zero_grad()
    loss = model(batch).sum()
    loss.backward()
    optimizer.step()


def test_names_speak_of_the_class_and_its_bases():
    def train():
        model = make_model()
        one_step(model, torch.optim.Adadelta(model.parameters()), batches(1)[0])

    recording = record(train, CALLS_ONLY)

    (step,) = recording.of_role("step")
    assert step.name == "torch.optim.Adadelta.step"
    assert step.names == (
        "torch.optim.Adadelta.step",
        "torch.optim.adadelta.Adadelta.step",
        "torch.optim.Optimizer.step",
        "torch.optim.optimizer.Optimizer.step",
    )
    assert step.object == "torch.optim.Adadelta#0"
    (forward,) = recording.of_role("forward")
    assert forward.names == (
        "torch.nn.Sequential.forward",
        "torch.nn.modules.container.Sequential.forward",
        "torch.nn.Module.forward",
        "torch.nn.modules.module.Module.forward",
    )
    (clear,) = recording.of_role("zero_grad")
    assert "torch.optim.Optimizer.zero_grad" in clear.names
    (build,) = recording.of_role("construct")
    assert build.name == "torch.optim.Adadelta.__init__"
    assert build.object == step.object


def test_source_is_the_users_line():
    recording = record(lambda: one_step_here(), CALLS_ONLY)

    sources = {call.role: call.source for call in recording.calls}
    for role in ("construct", "zero_grad", "forward", "backward", "step"):
        path, _, rest = sources[role].partition(":")
        assert path.endswith("test_calls.py")
        assert rest.endswith(" in one_step_here" if role == "construct" else " in one_step")
    lines = [int(sources[r].split(":")[1].split()[0]) for r in ("zero_grad", "forward", "step")]
    assert lines == sorted(lines)
    assert len(set(lines)) == 3


def one_step_here():
    model = make_model()
    one_step(model, torch.optim.SGD(model.parameters()), batches(1)[0])


def test_objects_are_numbered_by_class():
    def train():
        for _ in range(2):
            model = make_model()
            one_step(model, torch.optim.SGD(model.parameters()), batches(1)[0])

    recording = record(train, CALLS_ONLY)

    assert [c.object for c in recording.of_role("step")] == [
        "torch.optim.SGD#0",
        "torch.optim.SGD#1",
    ]


def test_a_backward_is_one_call_by_the_name_it_was_entered():
    def train():
        weight = nn.Parameter(torch.ones(2))
        weight.sum().backward()
        torch.autograd.backward([weight.sum()])
        torch.autograd.grad(weight.sum(), [weight])

    recording = record(train, CALLS_ONLY)

    backwards = recording.of_role("backward")
    assert [call.name for call in backwards] == [
        "torch.Tensor.backward",
        "torch.autograd.backward",
        "torch.autograd.grad",
    ]
    assert len(recording.named("torch.autograd.backward")) == 2
    assert backwards[0].inputs[0].requires_grad is True
    # autograd.grad accumulates nothing: it is no micro-batch.
    assert [call.context.micro_step for call in backwards] == [0, 1, 2]


def test_a_subclass_that_calls_super_step_steps_once():
    class Wrapping(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    def train():
        model = make_model()
        optimizer = Wrapping(model.parameters(), lr=0.1)
        for batch in batches(2):
            one_step(model, optimizer, batch)

    recording = record(train)

    steps = recording.of_role("step")
    assert [call.object.rpartition(".")[2] for call in steps] == ["Wrapping#0"] * 2
    assert "torch.optim.SGD.step" in steps[0].names
    assert [len(recording.frames(step, "parameter")) for step in steps] == [2, 2]
    assert [step.context.step for step in steps] == [0, 1]


def test_an_overridden_zero_grad_is_seen_once():
    class Before(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            super().zero_grad(set_to_none)

    model = make_model()

    def train():
        class After(torch.optim.SGD):
            def zero_grad(self, set_to_none=True):
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None

        for cls in (Before, After):
            cls(model.parameters()).zero_grad()

    recording = record(train)

    clears = recording.of_role("zero_grad")
    assert [call.object.rpartition(".")[2] for call in clears] == ["Before#0", "After#0"]


def test_a_wrapper_of_an_optimizer_does_not_double_calls():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer
            self.is_syncing = True

        def zero_grad(self, set_to_none=True):
            if self.is_syncing:
                self.optimizer.zero_grad(set_to_none)

        def step(self, closure=None):
            if self.is_syncing:
                self.optimizer.step(closure)

    def train():
        model = make_model()
        wrapper = Wrapper(torch.optim.Adam(model.parameters()))
        one_step(model, wrapper, batches(1)[0])
        wrapper.is_syncing = False
        one_step(model, wrapper, batches(1)[0])

    recording = record(train, CALLS_ONLY)

    assert [c.object for c in recording.of_role("step")] == ["torch.optim.Adam#0"]
    assert [c.object for c in recording.of_role("zero_grad")] == ["torch.optim.Adam#0"]


def test_schedulers_count_from_their_second_step_on():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        one_step(model, optimizer, batches(1)[0])
        first = torch.optim.lr_scheduler.ConstantLR(optimizer, total_iters=1)
        second = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[1])
        both.step()
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer).step(1.0)

    recording = record(train)

    steps = recording.of_role("scheduler")
    assert [call.name for call in steps] == [
        "torch.optim.lr_scheduler.SequentialLR.step",
        "torch.optim.lr_scheduler.ReduceLROnPlateau.step",
    ]
    assert all("torch.optim.lr_scheduler.LRScheduler.step" in call.names for call in steps)
    before, after = (recording.frames(steps[0], "group")[p] for p in ("begin", "end"))
    assert recording.rows(before)["0.lr"]["value"] != recording.rows(after)["0.lr"]["value"]


def test_module_modes_are_outermost():
    def train():
        model = make_model()
        model.eval()
        model.train()

    recording = record(train)

    modes = recording.of_role("mode")
    assert [call.name for call in modes] == ["torch.nn.Module.eval", "torch.nn.Module.train"]


def test_only_root_forwards_are_recorded_also_of_an_exception():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    def train():
        make_model()(batches(1)[0])
        with pytest.raises(ValueError, match="no"):
            nn.Sequential(nn.Identity(), Failing())(batches(1)[0])
        make_model()(batches(1)[0])

    recording = record(train)

    forwards = recording.of_role("forward")
    assert [call.exception for call in forwards] == ["", "ValueError", ""]
    assert [call.parent for call in forwards] == [-1, -1, -1]
    assert forwards[0].inputs[0].shape == (2, 4)
    assert forwards[0].outputs[0].requires_grad is True


def test_an_interrupted_forward_does_not_hide_the_next_ones():
    class Interrupted(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    def train():
        with pytest.raises(KeyboardInterrupt):
            nn.Sequential(Interrupted())(batches(1)[0])
        model = make_model()
        one_step(model, torch.optim.SGD(model.parameters()), batches(1)[0])

    recording = record(train)

    assert [call.exception for call in recording.of_role("forward")] == ["BaseException", ""]
    assert {call.parent for call in recording.calls} == {-1}


def test_a_step_that_raises_ends_at_once():
    class Failing(torch.optim.SGD):
        is_failing = True

        @torch.no_grad()
        def step(self, closure=None):
            if self.is_failing:
                raise RuntimeError("out of luck")
            return super().step(closure)

    def train():
        model = make_model()
        optimizer = Failing(model.parameters(), lr=0.1)
        with pytest.raises(RuntimeError, match="out of luck"):
            one_step(model, optimizer, batches(1)[0])
        torch.relu(batches(1)[0])
        optimizer.is_failing = False
        one_step(model, optimizer, batches(1)[0])

    recording = record(train, Plan.full())

    steps = recording.of_role("step")
    assert [call.exception for call in steps] == ["RuntimeError", ""]
    assert [call.parent for call in recording.named("torch.relu")] == [-1]
    assert [call.context.step for call in steps] == [0, 0]


def test_clipping_is_seen_through_earlier_imports():
    def train():
        model = make_model()
        model(batches(1)[0]).sum().backward()
        clip_grad_norm_(model.parameters(), 0.1)
        nn.utils.clip_grad_value_(model.parameters(), 0.1)

    original = clip_grad_norm_
    recording = record(train)

    clips = recording.of_role("clip")
    assert [call.name for call in clips] == [
        "torch.nn.utils.clip_grad_norm_",
        "torch.nn.utils.clip_grad_value_",
    ]
    assert recording.changed(clips[0], "grad_norm") != []
    assert clip_grad_norm_ is original
    assert nn.utils.clip_grad_norm_ is original


def test_a_norm_that_is_measured_is_told_from_one_that_is_clipped():
    def train():
        model = make_model()
        model(batches(1)[0]).sum().backward()
        clip_grad_norm_(model.parameters(), float("inf"))
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=math.inf)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1)

    clips = record(train).of_role("clip")
    assert [call.name for call in clips] == ["torch.nn.utils.clip_grad_norm_"] * 3
    limits = [[item.value for item in call.inputs if item.path == "limit"] for call in clips]
    assert limits == [["inf"], ["inf"], []]


def test_seeds_are_recorded():
    def train():
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)

    recording = record(train)

    assert [call.name for call in recording.of_role("seed")] == [
        "torch.manual_seed",
        "random.seed",
        "numpy.random.seed",
    ]


def test_autocast_is_context_of_what_it_covers():
    def train():
        model = make_model()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(batches(1)[0])
        model(batches(1)[0])

    recording = record(train)

    assert len(recording.of_role("autocast")) == 1
    inside, outside = recording.of_role("forward")
    assert inside.context.autocast == "torch.bfloat16"
    assert inside.outputs[0].dtype == "torch.bfloat16"
    assert outside.context.autocast == ""


def test_a_step_skipped_by_the_scaler_is_not_a_step():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for factor in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(model(batches(1)[0]).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()

    recording = record(train)

    scalers = [c for c in recording.of_role("scaler") if c.name == "torch.amp.GradScaler.step"]
    assert len(scalers) == 3
    steps = recording.of_role("step")
    assert [step.parent for step in steps] == [scalers[0].number, scalers[2].number]
    assert [scaler.context.step for scaler in scalers] == [0, 1, 1]
    assert recording.changed(scalers[1], "grad_norm") == []
    assert recording.rows(recording.frames(scalers[1], "parameter")["end"])["0.weight"]["grad"] == 3


@pytest.mark.parametrize(
    ("make", "args", "expected"),
    [
        (lambda o: schedulers.OneCycleLR(o, 1.0, total_steps=30), (), {"length": "30"}),
        (lambda o: schedulers.CosineAnnealingLR(o, 12), (), {"length": "12"}),
        (lambda o: schedulers.LinearLR(o, total_iters=7), (), {"length": "7"}),
        (lambda o: schedulers.StepLR(o, 3), (), {}),
        (schedulers.ReduceLROnPlateau, (0.5,), {"mode": "min", "metric": "0.5"}),
        (
            lambda o: schedulers.ReduceLROnPlateau(o, "max"),
            (torch.tensor(2),),
            {"mode": "max", "metric": "2.0"},
        ),
    ],
)
def test_a_scheduler_tells_its_length_or_its_metric_and_its_first_move(make, args, expected):
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = make(optimizer)
        for _ in range(2):
            model(batches(1)[0]).sum().backward()
            optimizer.step()
            scheduler.step(*args)

    first, second = record(train).of_role("scheduler")
    is_first = {} if "metric" in expected else {"first": "yes"}
    assert {item.path: item.value for item in first.outputs} == expected | is_first
    assert {item.path: item.value for item in second.outputs} == expected


def test_data_loaders_are_named_and_the_end_is_no_call():
    class Own(torch.utils.data.DataLoader):
        pass

    def train():
        loader = make_loader(2)
        assert len(list(loader)) == 2
        assert len(list(Own(loader.dataset, batch_size=None))) == 4

    recording = record(train)

    data = recording.of_role("data")
    loader = [call for call in data if call.object == "torch.utils.data.DataLoader#0"]
    assert [call.name.rpartition(".")[2] for call in loader] == [
        "__iter__",
        "__next__",
        "__next__",
    ]
    assert {call.exception for call in data} == {""}
    assert loader[1].outputs[0].shape == (2, 4)
    assert len(recording.named("torch.utils.data.DataLoader.__next__")) == 6
    assert len({call.name for call in data}) == 4


def test_packages_named_by_the_user_are_recorded():
    import json

    recording = record(
        lambda: json.loads(json.dumps({"a": 1})), CALLS_ONLY, modules_to_instrument=("json",)
    )

    names = [call.name for call in recording.of_role("instrumented")]
    assert "json.dumps" in names
    assert "json.loads" in names
    (decode,) = [c for c in recording.calls if c.name == "json.decoder.JSONDecoder.decode"]
    (loads,) = [c for c in recording.calls if c.name == "json.loads"]
    assert decode.parent == loads.number
    assert json.loads.__module__ == "json"
    assert not hasattr(json.loads, "__wrapped__")


def test_packages_are_recorded_when_imported_later(tmp_path, monkeypatch):
    (tmp_path / "imported_later.py").write_text("def act():\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)

    def train():
        import imported_later

        assert imported_later.act() == 7

    recording = record(train, CALLS_ONLY, modules_to_instrument=("imported_later",))

    assert [call.name for call in recording.of_role("instrumented")] == ["imported_later.act"]


def test_a_framework_call_contains_what_it_does():
    class Framework:
        def backward(self, loss):
            loss.backward()

    def train():
        Framework().backward(make_model()(batches(1)[0]).sum())

    windows = []
    recorder = Recorder(CALLS_ONLY, windows.append)
    with recorder:
        recorder.observe(Framework, "backward", name="framework.Framework.backward")
        train()

    assert not hasattr(Framework.backward, "__wrapped__")
    from tests.recorder.recording import Recording

    recording = Recording(windows, recorder.problems)
    (outer,) = recording.of_role("framework")
    (inner,) = recording.of_role("backward")
    assert inner.parent == outer.number
