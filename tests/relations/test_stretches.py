"""How windows are joined makes no difference, to any relation that takes stretches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from tests.builders import RunBuilder, tensor
from tests.relations.labelling import labels
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Hypothesis
from traincheck_plugin.relations.base import Relation
from traincheck_plugin.relations.registry import BUILT_IN
from traincheck_plugin.stacks import join, stretches
from traincheck_plugin.vocabulary import Item

TAKING = [r for r in BUILT_IN if r.takes_stretches and not r.is_across_ranks]
OPTIMIZERS = ("torch.optim.Adam#0", "torch.optim.SGD#0")
SCHEDULER = "torch.optim.lr_scheduler.StepLR"
LOADER = "torch.utils.data.DataLoader#0"


class Run:
    """Tells a run of two models and two optimizers, in which anything may happen."""

    def __init__(self) -> None:
        self.run = RunBuilder()
        self.run.at(stage="training")
        self.windows: list[Window] = []
        self._new = itertools.count(1)
        self._number = 0
        self._make_model()
        self._grads, self._norms = [0, 0, 0], [0.0, 0.0, 0.0]
        self._frozen = [False, False, False]
        self._copy, self._buffers, self._rate, self._mode = 1, [1], 0.1, True
        self._input, self._state, self._batch = 1, 1, 0

    def _make_model(self) -> None:
        run, owner = self.run, f"__main__.Net#{self._number}"
        self._model, self._optimizers = owner, list(OPTIMIZERS)
        if self._number:
            self._optimizers[0] = f"torch.optim.Adam#{self._number}"
            run.call("torch.optim.Adam.__init__", object=self._optimizers[0])
        self._codes = run.parameters("a.weight", "a.bias", "b.weight", owner=owner)
        self._slots = run.parameters("a.weight.exp_avg", kind="slot", owner=self._optimizers[0])
        self._modules = run.parameters("", "a", kind="module", owner=owner)
        self._stats = run.parameters("a.mean", kind="buffer", owner=owner)
        self._data, self._moments = [next(self._new) for _ in range(3)], next(self._new)

    def tell(self, word: str, number: int) -> None:
        getattr(self, f"_{word}")(number)

    def _frame(self, phase: Any, *, shows_data: bool = False) -> None:
        holders = [self._optimizers[0], self._optimizers[0], self._optimizers[1]]
        more: dict[str, Any] = {}
        if shows_data:
            more = {"data": self._data, "data_norm": 1.0, "dtype": "torch.float32"}
        self.run.frame(
            phase,
            self._codes,
            grad=self._grads,
            grad_norm=self._norms,
            requires_grad=[not frozen for frozen in self._frozen],
            in_model=True,
            optimizer=holders,
            lr=self._rate,
            ran=[0, 0, 1],
            **more,
        )

    def _step(self, number: int) -> None:
        target = self._optimizers[number % 2]
        with self.run.calling(f"{target.partition('#')[0]}.step", object=target):
            self._frame("begin", shows_data=True)
            if number % 3:
                self.run.frame("begin", self._codes, copy=self._copy)
            if number % 2 == 0:
                self.run.frame("begin", self._slots, data=self._moments)
                self._moments = next(self._new)
            for row in (0, 1) if number % 2 == 0 else (2, number % 3):
                if self._grads[row] > 1:
                    self._data[row] = next(self._new)
            self._frame("end", shows_data=True)
            if number % 2 == 0:
                self.run.frame("end", self._slots, data=self._moments)
        self.run.at(step=self.run.context.step + 1, micro_step=0)

    def _zero(self, number: int) -> None:
        target = self._optimizers[number % 2] if number % 3 else ""
        api = f"{target.partition('#')[0]}.zero_grad" if target else "torch.nn.Module.zero_grad"
        with self.run.calling(api, object=target):
            self._frame("begin")
            self._grads, self._norms = [0, 0, 0], [0.0, 0.0, 0.0]
            self._frame("end")

    def _backward(self, number: int) -> None:
        inputs = [tensor("0", requires_grad=True)]
        if number % 3:
            inputs.append(Item(path="factor", type="str", value=repr(1 / (number % 3))))
        with self.run.calling("torch.Tensor.backward", inputs=inputs):
            self._frame("begin")
            self.run.frame("begin", self._modules, value=self._mode)
            for row in range(3):
                if number % 4 != row and not self._frozen[row]:
                    self._grads[row], self._norms[row] = 2, float(next(self._new))
            self._frame("end")
        self.run.at(micro_step=self.run.context.micro_step + 1)

    def _forward(self, number: int) -> None:
        run = self.run
        run.at(autocast="torch.float16" if number % 4 == 3 else "")
        if number % 3:
            self._input = self._state = next(self._new)
        shown = [tensor("0", shape=(64, 3))]
        with run.calling(
            f"{self._model.partition('#')[0]}.forward", object=self._model, inputs=shown
        ):
            run.frame("begin", self._stats, data=self._buffers)
            codes = run.parameters("0", kind="input", owner=self._model)
            run.frame("begin", codes, data=self._input, value=192.0)
            generator = run.parameters("cpu", kind="generator", owner="torch.Generator#0")
            run.frame("begin", generator, data=self._state)
            if number % 2:
                self._buffers = [next(self._new)]
            run.frame("end", self._stats, data=self._buffers)
        run.at(autocast="")

    def _batches(self, number: int) -> None:
        run = self.run
        shown = [tensor("0", shape=(64, 3))]
        with run.calling("torch.utils.data.DataLoader.__next__", object=LOADER, outputs=shown):
            codes = run.parameters("0", kind="batch", owner=LOADER)
            run.frame("end", codes, data=next(self._new) if number % 3 else 7, value=192.0)
            names = ("shuffles", "samples", "batch_size", "start", "batch", "epoch")
            facts = run.parameters(*names, kind="loader", owner=LOADER)
            epoch = float(run.context.epoch)
            run.frame("end", facts, value=[1.0, 640.0, 64.0, epoch, float(self._batch), epoch])
        self._batch += 1

    def _schedule(self, number: int) -> None:
        options = self.run.parameters("0.lr", kind="group", owner=OPTIMIZERS[0])
        inputs = [Item(path="optimizer", type="str", value=self._optimizers[0])]
        with self.run.calling(f"{SCHEDULER}.step", object=f"{SCHEDULER}#0", inputs=inputs):
            self.run.frame("begin", options, value=self._rate)
            self._rate = float(number % 3) / 10
            self.run.frame("end", options, value=self._rate)

    def _meddle(self, number: int) -> None:
        self._frozen[number % 3] = number % 2 == 0
        self._data[number % 3] = next(self._new)
        self._mode, self._copy = number % 4 != 0, next(self._new)

    def _load(self, number: int) -> None:
        outcome = ("all", "some", "none")[number % 3]
        api = ("torch.nn.Module", "torch.optim.Optimizer")[number % 2]
        target = (self._model, self._optimizers[0])[number % 2]
        outputs = [Item(path="loaded", type="str", value=outcome)]
        self.run.call(f"{api}.load_state_dict", object=target, outputs=outputs)

    def _restart(self, number: int) -> None:
        self._number += 1
        self._make_model()

    def _others(self, number: int) -> None:
        if number % 3 == 0:
            self.run.call("torch.amp.GradScaler.step")
        elif number % 3 == 1:
            self.run.call("torch.nn.utils.clip_grad_norm_")
        else:
            epoch = self.run.context.epoch + 1
            self.run.at(epoch=epoch, scaling=("", "scaled", "disabled")[epoch % 3])
            self._batch = 0

    def _cut(self, number: int) -> None:
        self.windows.append(self.run.window())

    def _gap(self, number: int) -> None:
        self.windows += [self.run.window(), self.run.window(observed=False)]


WORDS = (
    *("batches", "forward", "backward", "step", "zero", "cut") * 4,
    *("schedule", "meddle", "load", "restart", "others", "gap"),
)


def told(events: Sequence[tuple[str, int]]) -> list[Window]:
    run = Run()
    for word, number in events:
        run.tell(word, number)
    run.tell("cut", 0)
    return run.windows


def proposed(relation: Relation, windows: Sequence[Window]) -> set[Hypothesis]:
    proposer = relation.proposer()
    for window in windows:
        for part in relation.windows(window):
            proposer.observe(part)
    return set(proposer.hypotheses())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("relation", TAKING, ids=lambda relation: relation.name)
def test_joining_makes_no_difference(relation: Relation, seed: int) -> None:
    random = Random(seed)  # noqa: S311  # any run will do
    events = [(random.choice(WORDS), random.randrange(12)) for _ in range(80)]
    size = 2 + seed
    windows = told(events)
    hypotheses = proposed(relation, windows)
    if relation.name != "APIContainRelation":
        # Which names of an API it uses depends on what else was called so far.
        assert proposed(relation, list(stretches(told(events)))) == hypotheses
    for hypothesis in hypotheses:
        single = labels(relation, hypothesis.params, windows)
        some = []
        for _, group in itertools.groupby(told(events), lambda w: (w.observed, w.index // size)):
            several = list(group)
            some += [join(several)] if several[0].observed else several
        assert labels(relation, hypothesis.params, some) == single
