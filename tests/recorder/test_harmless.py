"""A recording changes nothing, keeps nothing alive and leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import types
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from tests.recorder.recording import CALLS_ONLY, LIFECYCLE, batches, make_loader, make_model, record
from traincheck_plugin.errors import ConfigError
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import Recorder
from traincheck_plugin.recorder.recorder import _active


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.norm(self.convolution(x)).relu(), 2)
        return self.head(nn.functional.dropout(x.flatten(1), training=self.training))


def train_net(num_steps=4):
    torch.manual_seed(0)
    random.seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    data = torch.utils.data.TensorDataset(torch.randn(8, 1, 14, 14), torch.arange(8))
    losses = []
    for _ in range(num_steps):
        for images, labels in torch.utils.data.DataLoader(data, batch_size=4, shuffle=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
        net.eval()
        with torch.no_grad():
            losses.append(net(data.tensors[0]).sum().item())
        net.train()
    return losses, random.getstate(), np.random.rand(), torch.rand(3).tolist()


@pytest.mark.parametrize("plan", [Plan.full(), LIFECYCLE, CALLS_ONLY])
def test_losses_and_random_state_are_bit_identical(plan):
    np.random.seed(0)
    expected = train_net()
    got = []
    np.random.seed(0)
    record(lambda: got.append(train_net()), plan)

    assert got == [expected]


def test_fused_inference_of_attention_stays_fused():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = model(x)
    got = []

    def evaluate():
        with torch.no_grad():
            got.append(model(x))
            torch.relu(x)

    recording = record(evaluate, Plan.full())

    assert torch.equal(got[0], expected)
    assert len(recording.of_role("forward")) == 1
    assert [call.name for call in recording.of_role("function")] == ["torch.relu"]


FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def state_of_the_world():
    """Everything that a recording may replace, by identity."""
    names = {}
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType) and module.__name__.startswith(
            ("torch", "random", "numpy", "tests")
        ):
            for name, value in list(vars(module).items()):
                if type(value) in FUNCTIONS:
                    names[module.__name__, name] = id(value)
                elif issubclass(type(value), type):
                    for attribute, inner in list(vars(value).items()):
                        if type(inner) in FUNCTIONS:
                            names[module.__name__, name, attribute] = id(inner)
    hooks = torch.nn.modules.module
    optimizers = sys.modules["torch.optim.optimizer"]
    return names, [
        len(hooks._global_forward_hooks),
        len(hooks._global_forward_pre_hooks),
        len(hooks._global_forward_hooks_always_called),
        len(hooks._global_forward_hooks_with_kwargs),
        len(optimizers._global_optimizer_pre_hooks),
        len(optimizers._global_optimizer_post_hooks),
        torch._C._len_torch_function_stack(),
        len(sys.meta_path),
        len(_active),
        list(warnings.filters),
    ]


@pytest.mark.parametrize("is_failing", [False, True])
@pytest.mark.parametrize("is_in_device_context", [False, True])
def test_nothing_is_left_behind(is_failing, is_in_device_context):
    # What torch imports and sets up on first use is not ours.
    train_net(1)
    torch.optim.SGD(make_model().parameters())
    before = state_of_the_world()
    recorder = Recorder(Plan.full(), lambda window: None, modules_to_instrument=("json",))

    def train():
        with torch.device("cpu") if is_in_device_context else contextlib.nullcontext():
            train_net(1)
            if is_failing:
                model = make_model()
                optimizer = torch.optim.SGD(model.parameters())
                optimizer.step(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError) if is_failing else contextlib.nullcontext(), recorder:
        train()

    names, installed = state_of_the_world()
    assert [name for name, value in names.items() if before[0].get(name, value) != value] == []
    assert installed == before[1]
    assert recorder.problems == []
    recorder.stop()


def test_stopping_inside_a_device_context_leaves_that_context():
    recorder = Recorder(Plan.full(), lambda window: None)
    recorder.start()
    with torch.device("meta"):
        recorder.stop()
        assert torch.zeros(1).is_meta
    assert torch._C._len_torch_function_stack() == 0
    assert not torch.zeros(1).is_meta


def test_stopping_within_a_forward_and_a_step_is_clean():
    windows = []
    recorder = Recorder(Plan.full(), windows.append)

    class Stopping(nn.Linear):
        def forward(self, x):
            recorder.stop()
            return super().forward(x)

    recorder.start()
    model = Stopping(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step(lambda: model(batches(1)[0]).sum())

    assert torch._C._len_torch_function_stack() == 0
    assert recorder.problems == []
    assert len(windows) == 2


def test_two_recordings_in_one_process_agree():
    def train():
        np.random.seed(0)
        train_net(2)

    first, second = (record(train, Plan.full()) for _ in range(2))

    assert first.roles_by_window() == second.roles_by_window()
    assert [call.name for call in first.calls] == [call.name for call in second.calls]
    for one, other in zip(first.windows, second.windows, strict=True):
        for a, b in zip(one.frames, other.frames, strict=True):
            for name in a.columns:
                np.testing.assert_array_equal(a.columns[name], b.columns[name])


def test_a_second_recorder_at_once_is_refused():
    recorder = Recorder(CALLS_ONLY, lambda window: None)
    with recorder, pytest.raises(ConfigError, match="one is running; stop it first"):
        Recorder(CALLS_ONLY, lambda window: None).start()
    with Recorder(CALLS_ONLY, lambda window: None):
        assert len(_active) == 1
    assert not _active


def test_no_tensor_or_module_is_kept_alive():
    dead = []

    def train():
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters())
        for batch in batches(2):
            optimizer.zero_grad()
            output = model(batch)
            loss = output.sum()
            loss.backward()
            optimizer.step()
            dead.extend(weakref.ref(t) for t in (output, loss, model[0].weight.grad))
        dead.extend(weakref.ref(thing) for thing in (model, optimizer, *model.parameters()))
        with pytest.raises(ValueError, match="optimizer got an empty"):
            torch.optim.Adam([])
        with pytest.raises(RuntimeError):
            model(torch.ones(3))

    def train_and_look():
        train()
        gc.collect()
        assert [reference() for reference in dead] == [None] * len(dead)

    record(train_and_look, Plan.full())


def test_graphs_are_freed_at_once_without_the_garbage_collector():
    alive = []

    def train():
        model = make_model()
        for batch in batches(3):
            loss = model(batch).sum()
            loss.backward()
            alive.append(weakref.ref(loss))
            del loss
            assert alive[-1]() is None

    gc.disable()
    try:
        record(train, Plan.full())
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_of_a_loader_record_nothing():
    class Seeing(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.tensor(
                [torch._C._len_torch_function_stack(), any(r._tape.is_active for r in _active)]
            )

    def train():
        loader = torch.utils.data.DataLoader(Seeing(), num_workers=1, batch_size=2)
        for batch in loader:
            assert batch.sum() == 0

    recording = record(train, CALLS_ONLY)

    assert [call.name.rpartition(".")[2] for call in recording.of_role("data")] == [
        "__iter__",
        "__next__",
        "__next__",
    ]


def test_a_failing_sink_reaches_neither_training_nor_silence():
    def fail(window):
        raise ValueError("disk full")

    recorder = Recorder(CALLS_ONLY, fail)
    with recorder:
        train_net(1)

    assert len(recorder.problems) == 1
    assert recorder.problems[0].startswith("recorder error: ValueError: disk full")


def test_a_failing_frame_reaches_neither_training_nor_silence():
    class Odd(torch.optim.SGD):
        @property
        def state(self):
            return self._state

        @state.setter
        def state(self, value):
            self._state = value

    def train():
        model = make_model()
        optimizer = Odd(model.parameters(), lr=0.1)
        for batch in batches(2):
            model(batch).sum().backward()
            optimizer.step()
            optimizer._state = 7

    recording = record(train, problems=True)

    assert len(recording.of_role("step")) == 2
    assert any("recorder error" in text for text in recording.problems)


@pytest.mark.filterwarnings("ignore")
def test_compiled_models_and_steps_keep_working():
    torch._dynamo.reset()
    model = make_model()

    def train():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        compiled = torch.compile(model, backend="eager", fullgraph=True)

        @torch.compile(backend="eager")
        def step(batch):
            optimizer.zero_grad()
            loss = compiled(batch).sum()
            loss.backward()
            optimizer.step()
            return loss

        losses = [compiled(batch).sum().item() for batch in batches(2)]
        return losses + [step(batch).item() for batch in batches(2)]

    expected = train()
    torch._dynamo.reset()
    model.load_state_dict(make_model().state_dict())
    got = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        recording = record(lambda: got.append(train()), Plan.full())
    torch._dynamo.reset()

    assert not [warning for warning in warned if "global hooks" in str(warning.message)]
    assert got == [expected]
    forwards = recording.of_role("forward")
    assert forwards
    assert {call.object for call in forwards} == {"torch.nn.Sequential#0"}
    assert forwards[0].inputs[0].shape == (2, 4)


def test_deterministic_loaders_are_the_same():
    expected = [batch[0].tolist() for batch in make_loader(4)]
    got = []
    record(lambda: got.extend(batch[0].tolist() for batch in make_loader(4)), Plan.full())

    assert got == expected
