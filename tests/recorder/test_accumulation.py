"""Over how many micro-batches what calls a backward spreads a step."""

from __future__ import annotations

import sys

import pytest
import torch
from accelerate import Accelerator

from tests.recorder.recording import CALLS_ONLY, record
from traincheck_plugin.recorder.accumulation import MAX_FRAMES, micro_batches


class Trainer:
    def __init__(self, **settings):
        vars(self).update(settings)

    def train(self, function):
        return function()


class WithProperty(Trainer):
    @property
    def gradient_accumulation_steps(self):
        return self.number


class Asked(Trainer):
    def __getattr__(self, name):
        raise AssertionError(f"{name} was looked for")


def told():
    return micro_batches(sys._getframe(1))


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        (Trainer(gradient_accumulation_steps=4), 4),
        (Trainer(accumulate_grad_batches=2), 2),
        (WithProperty(number=8), 8),
        (Trainer(gradient_accumulation_steps=1), 1),
        (Trainer(gradient_accumulation_steps=0), 0),
        (Trainer(gradient_accumulation_steps="4"), 0),
        (Trainer(gradient_accumulation_steps=True), 0),
        (Trainer(steps=4), 0),
    ],
)
def test_what_calls_tells_it(trainer, expected):
    assert trainer.train(told) == expected


def test_what_is_not_there_is_not_looked_for():
    assert Asked().train(told) == 0


def test_the_nearest_one_counts():
    inner, outer = Trainer(accumulate_grad_batches=2), Trainer(accumulate_grad_batches=4)
    assert outer.train(lambda: inner.train(told)) == 2


def test_those_far_away_are_not_looked_for():
    def nested(depth):
        return nested(depth - 1) if depth else told()

    trainer = Trainer(accumulate_grad_batches=2)
    assert trainer.train(lambda: nested(MAX_FRAMES // 2)) == 2
    assert trainer.train(lambda: nested(MAX_FRAMES)) == 0


def accumulated(number):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=number)
    accelerator.backward(torch.ones(2, requires_grad=True).sum())


def by_hand(number):
    (torch.ones(2, requires_grad=True).sum() / number).backward()


@pytest.mark.parametrize(("train", "spread"), [(accumulated, ["4"]), (by_hand, [])])
def test_a_backward_tells_it(train, spread):
    (call,) = record(lambda: train(4), CALLS_ONLY).of_role("backward")
    assert [item.value for item in call.inputs if item.path == "factor"] == ["0.25"]
    assert [item.value for item in call.inputs if item.path == "accumulates"] == spread
