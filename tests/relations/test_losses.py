"""Which losses are the first ones after a class, and which loads make later ones of them."""

from __future__ import annotations

import pytest

from tests.builders import RunBuilder
from traincheck_plugin.relations.loads import OPTIMIZER_LOAD
from traincheck_plugin.relations.losses import EarlyLosses
from traincheck_plugin.vocabulary import Item, Variable


def _early(outcome: str, before: list[int], after: list[int]) -> int:
    """Return how many of two losses are early ones, after a load with some slots around it."""
    run = RunBuilder()
    run.parameters("weight", owner="__main__.Net#0")
    optimizer = "torch.optim.Adagrad#0"
    slots = run.variables(
        *(
            Variable(kind="slot", name=f"weight.{name}", owner=optimizer, type="torch.Tensor")
            for name in ("sum", "step")
        )
    )
    outputs = [Item(path="loaded", type="str", value=outcome)]
    with run.calling(OPTIMIZER_LOAD, object=optimizer, outputs=outputs):
        if before:
            run.frame("begin", slots[: len(before)], data=before)
        if after:
            run.frame("end", slots[: len(after)], data=after)
    for _ in range(2):
        run.call("__main__.Net.forward", object="__main__.Net#0")
        formula = Item(path="formula", type="str", value="mse_loss(layer)")
        run.call("torch.Tensor.backward", inputs=[formula])
        run.at(step=run.context.step + 1)
    return len(list(EarlyLosses().among(run.window())))


@pytest.mark.parametrize(
    ("outcome", "before", "after", "number"),
    [
        ("none", [], [], 2),
        ("all", [], [5, 6], 0),
        ("all", [1, 2], [5, 6], 0),
        ("all", [1], [1, 2], 0),
        # What was there already says nothing of an earlier training.
        ("all", [1, 2], [1, 2], 2),
        ("all", [], [], 0),
    ],
)
def test_a_load_that_changes_nothing_resumes_nothing(
    outcome: str, before: list[int], after: list[int], number: int
) -> None:
    assert _early(outcome, before, after) == number
