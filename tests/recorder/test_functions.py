"""Torch functions: at the boundary, by public names, nothing of what calls them in turn."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from tests.recorder.recording import batches, make_loader, make_model, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.probes.functions import public_name

EVERYTHING = Plan(functions=None, attributes={})


def functions(train, plan=EVERYTHING, **options):
    return [call.name for call in record(train, plan, **options).of_role("function")]


def test_only_the_outermost_function_is_recorded():
    x = torch.ones(2, 3)

    assert functions(lambda: nn.functional.cross_entropy(x, torch.tensor([0, 1]))) == [
        "torch.tensor",
        "torch.nn.functional.cross_entropy",
    ]


def test_operators_go_by_their_methods_and_attributes_are_left_out():
    x = torch.ones(2, 3)

    def compute():
        y = x + 1
        y += 2
        x @ x.T
        assert (x == 1).all()
        return x.shape, x.grad, x.device, x[0], y

    assert functions(compute) == [
        "torch.Tensor.add",
        "torch.Tensor.add_",
        "torch.Tensor.matmul",
        "torch.Tensor.eq",
        "torch.Tensor.all",
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_size_of_a_nested_tensor_may_be_unknown():
    parts = [torch.ones(2, 3), torch.ones(4, 3)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)

    [call] = record(lambda: torch.relu(nested), EVERYTHING).of_role("function")

    assert call.inputs[0].shape == call.outputs[0].shape == (2, -1, 3)


def test_private_functions_have_no_public_name():
    assert public_name(torch._C._set_grad_enabled) is None
    assert public_name(torch.Tensor.grad.__get__) is None
    assert public_name(torch.Tensor.__len__) is None
    assert public_name(torch.relu) == "torch.relu"


def test_what_lifecycle_calls_do_inside_is_left_out(tmp_path):
    def train():
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        for (batch,) in make_loader(2):
            optimizer.zero_grad(set_to_none=False)
            loss = torch.sigmoid(model(batch)).sum()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
        torch.save(model.state_dict(), tmp_path / "model.pt")

    recording = record(train, EVERYTHING)

    def of_step(step):
        return [call.name for call in recording.of_role("function") if call.window == step + 1]

    step = [
        "torch.nn.functional.linear",
        "torch.nn.functional.relu",
        "torch.nn.functional.linear",
        "torch.sigmoid",
        "torch.Tensor.sum",
    ]
    assert of_step(0) == step
    assert of_step(1) == step


def test_a_closure_of_a_step_is_listened_to():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters())

        def closure():
            loss = torch.sigmoid(model(batches(1)[0])).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        torch.relu(torch.ones(1))

    recording = record(train, EVERYTHING)

    (step,) = recording.of_role("step")
    (sigmoid,) = recording.named("torch.sigmoid")
    (relu,) = recording.named("torch.relu")
    assert sigmoid.parent == step.number
    assert relu.parent == -1
    assert relu.begin > step.end


def test_functions_have_parents_sources_and_signatures():
    def train():
        make_model()(batches(1)[0])

    recording = record(train, EVERYTHING)

    (forward,) = recording.of_role("forward")
    (relu,) = recording.named("torch.nn.functional.relu")
    assert relu.parent == forward.number
    assert forward.begin < relu.begin < relu.end < forward.end
    assert relu.source.endswith(" in train")
    items = {item.path: item for item in relu.inputs}
    assert items["0"].type == "torch.Tensor"
    assert items["0"].dtype == "torch.float32"
    assert items["0"].shape == (2, 8)
    assert items["inplace"].value is False
    (result,) = relu.outputs
    assert result.path == ""
    assert result.requires_grad is True


def test_values_of_arguments_are_kept_but_numbers_are_not():
    def compute():
        torch.stack([torch.ones(1), torch.zeros(1)], dim=0)
        torch.nn.functional.interpolate(torch.ones(1, 1, 2), scale_factor=2.0, mode="nearest")

    recording = record(compute, EVERYTHING)

    (stack,) = recording.named("torch.stack")
    assert [item.path for item in stack.inputs] == ["0.0", "0.1", "dim"]
    assert stack.inputs[2].type == "int"
    assert stack.inputs[2].value is None
    (interpolate,) = recording.named("torch.nn.functional.interpolate")
    items = {item.path: item for item in interpolate.inputs}
    assert items["mode"].value == "nearest"
    assert items["scale_factor"].type == "float"
    assert items["scale_factor"].value is None


def test_a_function_that_raises_is_recorded_with_its_exception():
    def compute():
        with pytest.raises(RuntimeError):
            torch.matmul(torch.ones(2, 3), torch.ones(2, 3))
        torch.relu(torch.ones(1))

    recording = record(compute, EVERYTHING)

    (matmul,) = recording.named("torch.matmul")
    assert matmul.exception == "RuntimeError"
    assert matmul.outputs == ()
    assert recording.named("torch.relu")[0].exception == ""


def test_only_the_functions_of_the_plan_are_recorded():
    plan = Plan(functions=frozenset({"torch.relu"}), attributes={})

    assert functions(lambda: torch.sigmoid(torch.relu(torch.ones(1))), plan) == ["torch.relu"]


def test_without_functions_in_the_plan_none_is_intercepted():
    depths = []
    plan = Plan(functions=frozenset(), attributes={})
    record(lambda: depths.append(torch._C._len_torch_function_stack()), plan)
    assert depths == [0]


def test_modes_of_the_user_keep_working():
    def compute():
        with torch.device("meta"):
            assert torch.zeros(2).is_meta
            optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
            optimizer.step()
            assert torch.ones(2).is_meta
        assert not torch.zeros(2).is_meta

    names = functions(compute)

    assert names.count("torch.zeros") == 2
    assert names.count("torch.ones") == 2


def test_functions_of_other_threads_are_not_mixed_in():
    def train():
        thread = threading.Thread(target=lambda: torch.sigmoid(torch.ones(1)))
        thread.start()
        thread.join()
        torch.relu(torch.ones(1))

    assert functions(train) == ["torch.ones", "torch.relu"]
