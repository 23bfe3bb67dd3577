from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

import traincheck_plugin
from traincheck_plugin.cli.tracebacks import remove_own_frames
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.recorder import Recorder

OWN = Path(traincheck_plugin.__file__).parent / "recorder" / "probes" / "imagined.py"


def function(name: str, body: str, file: object = __file__, **names: object):
    """Return a function called *name*, of no arguments, as if it stood in *file*."""
    code = compile(f"def {name}():\n" + body, str(file), "exec")
    namespace = dict(names)
    exec(code, namespace)  # noqa: S102 frames of files that do not exist are what is needed
    return namespace[name]


def names_after_removal(raising) -> list[str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011 any
        raising()
    remove_own_frames(caught.value)
    frames = traceback.extract_tb(caught.value.__traceback__)
    return [frame.name for frame in frames if frame.name != "names_after_removal"]


def fail():
    raise ValueError("here")


def test_own_frames_go_wherever_they_are():
    observe = function("observe", "    return call()\n", OWN, call=fail)
    user = function("user", "    return call()\n", call=observe)
    outermost = function("outermost", "    return call()\n", OWN, call=user)
    assert names_after_removal(outermost) == ["user", "fail"]


def test_an_error_whose_innermost_frame_is_ours_ends_where_the_user_called():
    observe = function("observe", "    return [][1]\n", OWN)
    user = function("user", "    return call()\n", call=observe)
    assert names_after_removal(user) == ["user"]


def test_the_way_over_an_observer_of_torch_functions_goes_too():
    # As torch does it: relu asks for an observer, which calls relu again.
    is_observed = iter([True, False])
    relu = function(
        "relu",
        "    return handle() if next(is_observed) else fail()\n",
        is_observed=is_observed,
        fail=fail,
    )
    observer = function("observer", "    return call()\n", OWN, call=relu)
    relu.__globals__["handle"] = function(
        "handle_torch_function", "    return call()\n", "overrides.py", call=observer
    )
    user = function("user", "    return call()\n", call=relu)
    assert names_after_removal(user) == ["user", "relu", "fail"]


def test_a_user_function_that_calls_itself_through_an_observer_is_kept_twice():
    depth = iter([True, False])
    user = function(
        "user", "    return observe() if next(depth) else fail()\n", depth=depth, fail=fail
    )
    user.__globals__["observe"] = function("observe", "    return call()\n", OWN, call=user)
    assert names_after_removal(user) == ["user", "user", "fail"]


def test_causes_contexts_and_groups_are_cleaned():
    observe = function("observe", "    return call()\n", OWN, call=fail)

    def chained():
        try:
            observe()
        except ValueError as cause:
            group = ExceptionGroup("group", [cause])
            try:
                raise KeyError("context")
            except KeyError:
                raise RuntimeError("last") from group

    with pytest.raises(RuntimeError) as caught:
        chained()
    remove_own_frames(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert "in observe" not in shown
    assert shown.count("in fail") == 1


def test_chains_that_bite_their_tail_end():
    first, second = ValueError(1), ValueError(2)
    first.__context__, second.__context__ = second, first
    remove_own_frames(first)
    assert first.__traceback__ is None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def forward(self, x):
        return self.inner(x)


def text_of_error(failing: str) -> str:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    names = {"torch": torch, "nn": nn, "model": model, "optimizer": optimizer}
    with pytest.raises(Exception) as caught:  # noqa: PT011 any
        eval(failing, names)  # noqa: S307 the lines below
    remove_own_frames(caught.value)
    return "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "failing",
    [
        "torch.add(torch.ones(2), torch.ones(3))",
        "torch.ones(2) + torch.ones(3)",
        "torch.ones(2).requires_grad_().backward()",
        "torch.autograd.backward(torch.ones(1))",
        "nn.functional.cross_entropy(torch.ones(2, 3), torch.ones(3, 3))",
        "nn.utils.clip_grad_norm_(model.parameters(), 'none')",
        "optimizer.step(closure=lambda: 1 / 0)",
        "optimizer.zero_grad(wrong=1)",
        "torch.optim.SGD([])",
        "model(torch.ones(3))",
        "model(torch.ones(2), 1)",
        "model.load_state_dict({})",
        "list(torch.utils.data.DataLoader([object()]))",
        "torch.save(1, '/no/such/directory/file')",
    ],
)
def test_errors_of_observed_calls_read_as_ever(failing):
    expected = text_of_error(failing)
    with Recorder(Plan.full(), lambda window: None):
        got = text_of_error(failing)
    assert got == expected
