"""What was made and never used, as the end of a run shows."""

from __future__ import annotations

from tests.builders import RunBuilder
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.base import Explanation
from traincheck_plugin.relations.eventual_call import MIN_BACKWARDS, EventualCallRelation
from traincheck_plugin.vocabulary import GradState, Item

RELATION = EventualCallRelation()
SCHEDULERS = (
    APIParam(
        api_full_name="torch.optim.lr_scheduler.LRScheduler.__init__",
        role="construct",
    ),
    APIParam(api_full_name="torch.optim.lr_scheduler.LRScheduler.step", role="scheduler"),
)
OPTIMIZERS = (
    APIParam(api_full_name="torch.optim.Optimizer.__init__", role="construct"),
    APIParam(api_full_name="torch.optim.Optimizer.step", role="step"),
)
FIRST, SECOND = "torch.optim.SGD#0", "torch.optim.SGD#1"


def _about(optimizer: str) -> list[Item]:
    return [Item(path="optimizer", type="str", value=optimizer)]


def _run(
    *,
    made: tuple[str, ...] = (FIRST,),
    steps: tuple[str, ...] = (FIRST,),
    moves: tuple[str, ...] = (),
    holders: tuple[str, str] = (FIRST, SECOND),
    num_epochs: int = 2,
) -> list[Window]:
    """Tell a run of a few steps, with a scheduler for each of *made*."""
    run = RunBuilder()
    codes = run.parameters("weight", "bias")
    scheduler = "torch.optim.lr_scheduler.StepLR"
    for optimizer in made:
        run.call("torch.optim.SGD.__init__", object=optimizer)
        run.call(
            f"{scheduler}.__init__",
            role="construct",
            object=f"{scheduler}#{optimizer[-1]}",
            inputs=_about(optimizer),
        )
    windows = [run.window()]
    run.at(stage="training")
    for epoch in range(num_epochs):
        run.at(epoch=epoch)
        for _ in range(MIN_BACKWARDS):
            columns = {"grad": GradState.NON_ZERO, "optimizer": holders}
            with run.calling("torch.Tensor.backward"):
                run.frame("begin", codes, grad=GradState.NULL, optimizer=holders)
                run.frame("end", codes, **columns)
            for optimizer in steps:
                with run.calling("torch.optim.SGD.step", object=optimizer):
                    run.frame("begin", codes, **columns)
            for optimizer in moves:
                run.call(f"{scheduler}.step", object=f"{scheduler}#7", inputs=_about(optimizer))
            windows.append(run.window())
            run.at(step=run.context.step + 1)
    return windows


def _judged(params: tuple[APIParam, ...], windows: list[Window]) -> tuple[int, list[Explanation]]:
    """Return how many examples held, and why the others did not."""
    monitor = RELATION.monitor(params)
    held = 0
    for window in windows:
        examples = monitor.observe(window)
        assert examples.holds.all()
        held += len(examples)
    last = monitor.finish()
    assert not last.holds.any()
    return held, [last.explain(row) for row in range(len(last))]


def test_a_scheduler_that_is_never_stepped() -> None:
    held, (explanation,) = _judged(SCHEDULERS, _run())
    assert held == 0
    assert explanation.message == "StepLR was made and no scheduler of SGD#0 was ever stepped"
    assert explanation.cause is not None
    assert "the scheduler is not stepped" in explanation.cause.text


def test_any_scheduler_of_the_optimizer_will_do() -> None:
    assert _judged(SCHEDULERS, _run(moves=(FIRST,))) == (2 * MIN_BACKWARDS, [])


def test_a_schedule_by_epochs_has_time_until_the_first_is_over() -> None:
    assert _judged(SCHEDULERS, _run(num_epochs=1)) == (0, [])


def test_an_optimizer_that_never_steps_is_not_asked_for_its_schedule() -> None:
    _, found = _judged(SCHEDULERS, _run(made=(FIRST, SECOND), moves=(FIRST,)))
    assert found == []


def test_an_optimizer_that_never_steps() -> None:
    held, (explanation,) = _judged(OPTIMIZERS, _run(made=(FIRST, SECOND)))
    assert held == 2 * MIN_BACKWARDS
    assert "its parameters got gradients, and it never stepped" in explanation.message


def test_an_optimizer_that_was_replaced_waits_for_nothing() -> None:
    windows = _run(made=(FIRST, SECOND), holders=(FIRST, FIRST))
    assert _judged(OPTIMIZERS, windows)[1] == []


def test_what_is_made_is_paired_with_its_step() -> None:
    proposer = RELATION.proposer()
    for window in _run(moves=(FIRST,)):
        proposer.observe(window)
    assert {h.params for h in proposer.hypotheses()} == {SCHEDULERS, OPTIMIZERS}
