"""Runs some training under a recorder and makes what was recorded easy to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from traincheck_plugin.events import Frame, Window
from traincheck_plugin.plan import FULL_ATTRIBUTES, Plan
from traincheck_plugin.recorder import Recorder
from traincheck_plugin.vocabulary import NONE, Context

LIFECYCLE = Plan(functions=frozenset(), attributes=dict(FULL_ATTRIBUTES))
"""Everything but functions."""

CALLS_ONLY = Plan(functions=frozenset(), attributes={})


@dataclass(frozen=True, kw_only=True)
class Call:
    """A recorded call with its codes looked up."""

    number: int
    parent: int
    name: str
    names: tuple[str, ...]
    role: str
    object: str
    begin: int
    end: int
    context: Context
    source: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    exception: str
    thread: int
    window: int


class Recording:
    """The windows of a run."""

    def __init__(self, windows: Sequence[Window], problems: Sequence[str]) -> None:
        self.windows = list(windows)
        self.problems = list(problems)

    @property
    def calls(self) -> list[Call]:
        return [call for window in self.windows for call in calls_of(window)]

    def named(self, name: str) -> list[Call]:
        """Return the calls whose API answers to *name*."""
        return [call for call in self.calls if name in call.names]

    def of_role(self, *roles: str) -> list[Call]:
        return [call for call in self.calls if call.role in roles]

    def roles_by_window(self, *left_out: str) -> list[str]:
        """Return the roles of the calls of each window, in order of their begin, as one text."""
        return [
            " ".join(
                call.role
                for call in sorted(calls_of(window), key=lambda call: call.begin)
                if call.role not in left_out
            )
            for window in self.windows
        ]

    def frames(self, call: Call, kind: str) -> dict[str, Frame]:
        """Return the frames of *call* about variables of *kind*, by phase."""
        window = self.windows[call.window]
        found = {}
        for frame in window.frames_of_call.get(call.number, ()):
            kinds = {window.catalog.variables[int(code)].kind for code in frame.variables}
            # Copies have a frame of their own.
            if kinds == {kind} and "copy" not in frame.columns:
                assert frame.phase not in found
                found[frame.phase] = frame
        return found

    def copies(self, call: Call) -> dict[str, Frame]:
        """Return the frames of *call* about copies, by phase."""
        frames = self.windows[call.window].frames_of_call.get(call.number, ())
        return {frame.phase: frame for frame in frames if "copy" in frame.columns}

    def rows(self, frame: Frame) -> dict[str, dict[str, Any]]:
        """Return the rows of *frame* by the name of the variable."""
        catalog = self.windows[0].catalog
        rows = {}
        for row, code in enumerate(frame.variables):
            variable = catalog.variables[int(code)]
            rows[variable.name] = {
                "owner": variable.owner,
                **{name: column[row].item() for name, column in frame.columns.items()},
            }
        return rows

    def changed(self, call: Call, attribute: str, kind: str = "parameter") -> list[str]:
        """Return the names of the variables whose *attribute* differs after *call*."""
        frames = self.frames(call, kind)
        before, after = self.rows(frames["begin"]), self.rows(frames["end"])
        assert before.keys() == after.keys()
        return [
            name
            for name in before
            if not np.array_equal(before[name][attribute], after[name][attribute], equal_nan=True)
        ]


def calls_of(window: Window) -> list[Call]:
    catalog, calls = window.catalog, window.calls

    def look_up(values: Any, code: int) -> str:
        return "" if code == NONE else values[int(code)]

    return [
        Call(
            number=int(calls.call[row]),
            parent=int(calls.parent[row]),
            name=catalog.apis[int(calls.api[row])].name,
            names=catalog.apis[int(calls.api[row])].names,
            role=catalog.apis[int(calls.api[row])].role,
            object=look_up(catalog.objects, calls.object[row]),
            begin=int(calls.begin[row]),
            end=int(calls.end[row]),
            context=catalog.contexts[int(calls.context[row])],
            source=look_up(catalog.sources, calls.source[row]),
            inputs=catalog.signature(int(calls.inputs[row])),
            outputs=catalog.signature(int(calls.outputs[row])),
            exception=look_up(catalog.strings, calls.exception[row]),
            thread=int(calls.thread[row]),
            window=window.index,
        )
        for row in range(len(calls))
    ]


def record(train: Callable[[], object], plan: Plan = LIFECYCLE, **options: Any) -> Recording:
    """Record what *train* does; no problem of any kind may come up unless the test expects one."""
    expected = options.pop("problems", None)
    windows: list[Window] = []
    recorder = Recorder(plan, windows.append, **options)
    with recorder:
        train()
    if expected is None:
        assert recorder.problems == [], recorder.problems
    check_order(windows)
    return Recording(windows, recorder.problems)


def check_order(windows: Sequence[Window]) -> None:
    """What must hold of every recording."""
    last = NONE
    for index, window in enumerate(windows):
        assert window.index == index
        assert list(window.calls.end) == sorted(window.calls.end)
        assert (window.calls.begin < window.calls.end).all()
        assert (window.calls.begin_ns <= window.calls.end_ns).all()
        sequences = [frame.sequence for frame in window.frames]
        assert sequences == sorted(sequences)
        events = [*sequences, *window.calls.end.tolist()]
        if events:
            assert min(events) > last
            last = max(events)
        for frame in window.frames:
            assert all(len(column) == len(frame) for column in frame.columns.values())


NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
"""Those of the parameters of `make_model`."""


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def train_with(
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    num_steps: int = 2,
    prepare: Callable[[nn.Module], object] = lambda model: None,
    model: Callable[[], nn.Module] = make_model,
) -> Callable[[], None]:
    """Return a training of a model, that of `make_model` unless told otherwise."""

    def train() -> None:
        net = model()
        prepare(net)
        optimizer = make_optimizer(net)
        for batch in batches(num_steps):
            optimizer.zero_grad()
            net(batch).pow(2).sum().backward()
            optimizer.step()

    return train


def make_loader(num_batches: int, **options: Any) -> torch.utils.data.DataLoader:
    data = torch.arange(num_batches * 2 * 4, dtype=torch.float32).reshape(-1, 4) / 100
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data), batch_size=2, **options
    )


def batches(num_batches: int) -> list[torch.Tensor]:
    return [torch.full((2, 4), 0.1 * (index + 1)) for index in range(num_batches)]
