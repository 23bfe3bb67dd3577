"""Tells training loops in a few words, with the gradients that the calls meet and leave."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from tests.builders import RunBuilder, tensor
from tests.relations.labelling import labels
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Param
from traincheck_plugin.relations.base import Explanation, Relation
from traincheck_plugin.vocabulary import GradState, Item

FIRST, SECOND = "torch.optim.SGD#0", "torch.optim.SGD#1"
MODEL = "__main__.Net#0"
LOADER = "torch.utils.data.DataLoader#"
SCHEDULER = "torch.optim.lr_scheduler.StepLR"
NAMES = ("weight", "bias")
"""Parameters; the first optimizer holds the first, the second the other where there are two."""


class Loop:
    """Tells one run, word by word.

    Words: ``data``, ``data2`` (of another loader), ``forward``, ``fresh`` (one with inputs that are
    told, and new), ``derived`` (the same, of inputs that require a gradient), ``attack`` (an input
    requires a gradient), ``half`` (in float16), ``backward``, ``backward/4`` (of a quarter of the
    loss), ``backward/4/4`` (by what is set to accumulate four), ``repeated`` (a backward through a
    loss that had one), ``first`` and ``second`` (a backward that reaches one parameter), ``zero``,
    ``zero2`` (of an optimizer), ``clear`` (of the module), ``by_hand``, ``step``, ``step2``,
    ``new`` (a step of an optimizer that was just made), ``again`` (another one of it), ``set``
    (gradients by hand),
    ``skip`` and ``made`` (by the scaler), ``clip``, ``scaled`` and the like (gradients, from here
    on), ``scheduler``, ``placed`` (one that is told the epoch), ``epoch`` (the next one), ``gap``,
    ``|`` (a window ends).
    """

    def __init__(self, *, num_optimizers: int = 1, world_size: int = 1) -> None:
        self.run = RunBuilder(world_size=world_size)
        self.codes = self.run.parameters(*NAMES)
        self.slots = self.run.parameters("weight.exp_avg", kind="slot", owner=FIRST)
        self.inputs = self.run.parameters("0", kind="input", owner=MODEL)
        self.windows: list[Window] = []
        self._holders = [FIRST, SECOND if num_optimizers == 2 else FIRST]
        self._grads = [GradState.NULL] * 2
        self._norms = [0.0, 0.0]
        self._new = itertools.count(10)
        self._fresh = itertools.count(1)
        self.run.at(stage="training")

    def tell(self, words: str) -> list[Window]:
        for word in words.split():
            self._tell(word)
        self.windows.append(self.run.window())
        return self.windows

    def _frame(self, phase: Any, **more: Any) -> None:
        self.run.frame(
            phase,
            self.codes,
            grad=self._grads,
            grad_norm=self._norms,
            optimizer=self._holders,
            **more,
        )

    def _tell(self, word: str) -> None:
        run = self.run
        name, _, share = word.partition("/")
        if word == "|":
            self.windows.append(run.window())
        elif word == "gap":
            self.windows += [run.window(), run.window(observed=False)]
        elif word == "epoch":
            run.at(epoch=run.context.epoch + 1)
        elif word.startswith("data"):
            run.call("torch.utils.data.DataLoader.__next__", object=LOADER + word[4:])
        elif word in ("forward", "attack", "half"):
            run.at(autocast="torch.float16" if word == "half" else "")
            inputs = [tensor("0", requires_grad=word == "attack")]
            run.call("__main__.Net.forward", object=MODEL, inputs=inputs)
            run.at(autocast="")
        elif word in ("fresh", "derived"):
            given = [tensor("0", requires_grad=word == "derived")]
            with run.calling("__main__.Net.forward", object=MODEL, inputs=given):
                run.frame("end", self.inputs, data=next(self._fresh), value=64.0)
        elif name in ("backward", "repeated"):
            self._backward((0, 1), share, is_repeated=name == "repeated")
        elif name in ("first", "second"):
            self._backward({"first": (0,), "second": (1,)}[name], share)
        elif word == "set":
            self._norms = [float(next(self._fresh))] * 2
        elif word == "by_hand":
            self._clear((0, 1))
        elif word in ("zero", "zero2", "clear"):
            self._zero(word)
        elif word in ("step", "step2", "new", "again"):
            self._step(word)
        elif word == "skip":
            run.call("torch.amp.GradScaler.step")
        elif word == "made":
            with run.calling("torch.amp.GradScaler.step"):
                self._step("step")
        elif word == "clip":
            run.call("torch.nn.utils.clip_grad_norm_")
        elif word in ("scheduler", "placed"):
            inputs = [Item(path="optimizer", type="str", value=FIRST)]
            inputs += [Item(path="1", type="float")] * (word == "placed")
            run.call(f"{SCHEDULER}.step", object=f"{SCHEDULER}#0", inputs=inputs)
        elif word in ("scaled", "unscaled", "disabled", "plain"):
            run.at(scaling="" if word == "plain" else word)
        else:
            raise ValueError(word)

    def _backward(self, reached: Sequence[int], share: str, *, is_repeated: bool = False) -> None:
        inputs = [tensor("0", requires_grad=True)]
        inputs += [Item(path="again", type="str", value="yes")] * is_repeated
        share, _, spread = share.partition("/")
        if share not in ("", "1"):
            inputs.append(Item(path="factor", type="str", value=repr(1 / float(share))))
        if spread:
            inputs.append(Item(path="accumulates", type="str", value=spread))
        with self.run.calling("torch.Tensor.backward", inputs=inputs):
            self._frame("begin")
            for row in reached:
                self._grads[row] = GradState.NON_ZERO
                self._norms[row] = float(next(self._fresh))
            self._frame("end")

    def _clear(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._grads[row] = GradState.NULL
            self._norms[row] = 0.0

    def _zero(self, word: str) -> None:
        target = {"zero": FIRST, "zero2": SECOND}.get(word, MODEL)
        api = "torch.nn.Module.zero_grad" if target == MODEL else "torch.optim.SGD.zero_grad"
        with self.run.calling(api, object=target):
            self._frame("begin")
            held = [row for row in (0, 1) if target in (MODEL, self._holders[row])]
            self._clear(held)
            self._frame("end")

    def _step(self, word: str) -> None:
        if word == "new":
            self._holders = [f"torch.optim.SGD#{next(self._new)}"] * 2
        target = {"step": FIRST, "step2": SECOND}.get(word, self._holders[0])
        with self.run.calling("torch.optim.SGD.step", object=target):
            self._frame("begin")
            self._frame("end")
            self.run.frame("end", self.slots, data=1)
        self.run.at(step=self.run.context.step + 1)


def told(words: str, **options: Any) -> list[Window]:
    """Return the windows of a run told in *words*."""
    return Loop(**options).tell(words)


def holding(
    relation: Relation, params: tuple[Param, ...], words: str, **options: Any
) -> list[bool]:
    """Return whether each example of a run told in *words* holds, however it is cut."""
    whole = [held for _, held in labels(relation, params, told(words, **options))]
    cut = " | ".join(words.split())
    assert [held for _, held in labels(relation, params, told(cut, **options))] == whole
    return whole


def failure(
    relation: Relation, params: tuple[Param, ...], words: str, **options: Any
) -> Explanation:
    """Return the explanation of the first example that fails in a run told in *words*."""
    monitor = relation.monitor(params)
    for window in told(words, **options):
        examples = monitor.observe(window)
        for row in range(len(examples)):
            if not examples.holds[row]:
                return examples.explain(row)
    raise AssertionError("nothing failed")
