from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from traincheck_plugin.errors import TraceError
from traincheck_plugin.events import Window
from traincheck_plugin.plan import Plan
from traincheck_plugin.session.session import Session, SessionOptions, outcome_of
from traincheck_plugin.trace.manifest import Outcome
from traincheck_plugin.trace.reader import open_run


class Collector:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.closings: list[tuple[Outcome, Sequence[str]]] = []

    def write(self, window: Window) -> None:
        self.windows.append(window)

    def close(self, outcome: Outcome, *, problems: Sequence[str]) -> None:
        self.closings.append((outcome, problems))


class FailingWriter(Collector):
    def write(self, window: Window) -> None:
        super().write(window)
        raise RuntimeError("no more")


class FailingCloser(Collector):
    def close(self, outcome: Outcome, *, problems: Sequence[str]) -> None:
        raise TraceError("the disk is full")


def train(num_steps: int = 3) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def options(**changes: Any) -> SessionOptions:
    return SessionOptions(plan=Plan.full(), **changes)


def test_every_sink_and_the_trace_get_every_window(tmp_path):
    expected = train()
    first, second = Collector(), Collector()
    trace = str(tmp_path / "trace")
    with Session(options(trace=trace, script="train.py", notes={"a": 1}), [first, second]) as run:
        assert train() == expected

    assert len(first.windows) == len(second.windows) == run.tally.num_windows >= 3
    assert run.tally.num_calls == sum(len(window.calls) for window in first.windows)
    assert {"construct", "step", "backward", "zero_grad", "forward"} <= run.tally.roles
    assert [outcome for outcome, _ in first.closings] == [Outcome(how="finished", exit_code=0)]

    read = open_run(trace)
    assert [len(window.calls) for window in read.ranks[0].windows()] == [
        len(window.calls) for window in first.windows
    ]
    assert (read.manifest.script, read.manifest.options["a"]) == ("train.py", 1)
    assert read.manifest.torch == torch.__version__
    assert read.ranks[0].end.outcome.how == "finished"


def test_a_sink_that_fails_gets_no_more_and_disturbs_nobody():
    expected = train()
    failing, healthy = FailingWriter(), Collector()
    with Session(options(), [failing, healthy]) as run:
        assert train() == expected

    assert len(failing.windows) == 1
    assert len(failing.closings) == 1
    assert len(healthy.windows) >= 3
    problem = "FailingWriter failed and gets no further windows: RuntimeError: no more"
    assert run.problems.count(problem) == 1
    [(_, problems)] = healthy.closings
    assert problem in problems


def test_a_sink_that_cannot_finish_keeps_no_other_from_finishing():
    healthy = Collector()
    with Session(options(), [FailingCloser(), healthy]) as run:
        train(1)
    assert len(healthy.closings) == 1
    assert "the disk is full" in run.problems


def test_an_exception_goes_on_and_is_told_to_the_sinks():
    def fail() -> None:
        raise ValueError("lost\nin two lines")

    sink = Collector()
    with pytest.raises(ValueError, match="lost"), Session(options(), [sink]):
        fail()
    assert [outcome for outcome, _ in sink.closings] == [
        Outcome(how="exception", detail="ValueError: lost")
    ]


def test_closing_again_does_nothing():
    sink = Collector()
    run = Session(options(), [sink])
    run.start()
    run.close(Outcome(how="exit", exit_code=3))
    run.close(Outcome())
    run.abandon(Outcome())
    assert [outcome.exit_code for outcome, _ in sink.closings] == [3]


def test_after_abandoning_nothing_arrives():
    sink = Collector()
    with Session(options(), [sink]) as run:
        train(2)
        run.abandon(Outcome(how="interrupted", detail="SIGTERM"))
        num_windows = len(sink.windows)
        train(2)
    assert len(sink.windows) == num_windows
    assert [outcome.detail for outcome, _ in sink.closings] == ["SIGTERM"]


def test_two_sessions_one_after_the_other():
    for _ in range(2):
        sink = Collector()
        with Session(options(), [sink]):
            train(2)
        assert len(sink.windows) >= 2


def test_a_second_session_at_the_same_time_records_nothing_and_says_so():
    outer, inner = Collector(), Collector()
    with Session(options(), [outer]), Session(options(), [inner]) as second:
        train(2)
    assert not inner.windows
    assert any("one is running; stop it first" in problem for problem in second.problems)
    assert len(outer.windows) >= 2


def test_a_trace_that_cannot_be_written_is_an_error_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot be written"):
        Session(options(trace=str(tmp_path / "file" / "trace")))


@pytest.mark.parametrize(
    ("error", "how", "detail"),
    [
        (None, "finished", ""),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(3), "exit", "SystemExit: 3"),
        (RuntimeError("a\nb"), "exception", "RuntimeError: a"),
    ],
)
def test_outcomes(error, how, detail):
    outcome = outcome_of(error)
    assert (outcome.how, outcome.detail) == (how, detail)
