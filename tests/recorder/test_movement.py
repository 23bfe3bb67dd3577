"""What changes in a call, told without reading everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.recorder.recording import record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import fingerprint, movement
from traincheck_plugin.recorder.fingerprint import hash_tensor
from traincheck_plugin.recorder.movement import Movement
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.tables import Tensors

CHANGES = Plan.full().telling_changes()
LARGE = 100_000


class Call:
    """Tells what calls change, one after another."""

    def __init__(self, *tensors):
        self.tensors = list(tensors)
        self.table = Tensors(list(enumerate(tensors)))
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])

    def changes(self, act, optimizer=None):
        assert self.table.data.read(self.tensors)
        found = Movement(self.table, optimizer or self.optimizer, Problems())
        act(*self.tensors)
        end = found.end(self.table, self.tensors)
        moved = end != found.column
        for row in np.flatnonzero(~moved):
            # What rests has its hash.
            assert end[row] == hash_tensor(self.tensors[row], Problems())
        return moved.tolist()


def rest(*_):
    pass


@pytest.mark.parametrize("size", [1, 300, LARGE])
@pytest.mark.parametrize("number", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_changes_everywhere_is_seen_at_once(size, number, dtype):
    call = Call(*[torch.ones(size, dtype=dtype) for _ in range(number)])
    for _ in range(2):
        assert call.changes(lambda *tensors: [t.mul_(2) for t in tensors]) == [True] * number
    assert call.changes(lambda *tensors: tensors[0].data.mul_(2)) == [True] + [
        # Large ones get the benefit of the doubt, once.
        size == LARGE
    ] * (number - 1)
    assert call.changes(lambda *tensors: tensors[0].data.mul_(2)) == [True] + [False] * (number - 1)


@pytest.mark.parametrize("size", [1, 255, 257, 5000, LARGE])
def test_one_bit_anywhere_is_seen_once_a_tensor_rested(size):
    tensor = torch.zeros(size)
    call = Call(tensor)
    assert call.changes(rest) == [False]
    for place in {0, size // 3, size // 2, size - 1}:
        assert call.changes(lambda t, place=place: t.view(torch.int32)[place].bitwise_xor_(1)) == [
            True
        ]
        call.changes(rest)
        assert call.changes(rest) == [False]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 5, 6).mT,
        torch.zeros(7, dtype=torch.complex64),
        torch.zeros(0),
        torch.zeros(LARGE, dtype=torch.bool),
        torch.zeros(3000, dtype=torch.float8_e5m2),
        torch.zeros(()),
    ],
    ids=["transposed", "complex", "empty", "bool", "float8", "scalar"],
)
def test_tensors_of_all_kinds(tensor):
    call = Call(tensor)
    assert call.changes(rest) == [False]
    assert call.changes(lambda t: t.fill_(1)) == [bool(tensor.numel())]
    call.changes(rest)
    assert call.changes(lambda t: t.fill_(1)) == [False]


def test_a_tensor_that_lies_elsewhere_is_compared_by_its_values():
    tensor = torch.ones(LARGE)
    call = Call(tensor)
    assert call.changes(lambda t: t.set_(torch.ones(LARGE))) == [False]
    assert call.changes(lambda t: t.set_(torch.zeros(LARGE))) == [True]


def test_what_one_optimizer_changes_another_is_not_blamed_for():
    call = Call(torch.ones(LARGE))
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    for _ in range(2):
        assert call.changes(lambda t: t.mul_(2)) == [True]
        assert call.changes(rest, other) == [False]


def test_large_tensors_are_not_read_in_whole_while_they_change(monkeypatch):
    sizes = []

    def counting(memory, seed=0):
        sizes.append(len(memory))
        return hash_bytes(memory, seed)

    hash_bytes = fingerprint.hash_bytes
    monkeypatch.setattr(fingerprint, "hash_bytes", counting)
    monkeypatch.setattr(movement, "hash_bytes", counting)
    call = Call(torch.ones(LARGE))
    for expected in ([4 * LARGE], [], []):
        sizes.clear()
        assert call.changes(lambda t: t.mul_(2)) == [True]
        assert sizes == expected


def train(make_optimizer, after_step, num_steps=6):
    def run():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(2000, 8), nn.Linear(8, 64), nn.Linear(64, 64))
        net[2].weight.requires_grad_(False)
        optimizer = make_optimizer(net)
        for step in range(num_steps):
            optimizer.zero_grad()
            net(torch.tensor([step, 40 * step])).pow(2).sum().backward()
            optimizer.step()
            after_step(net, step)

    return run


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
        lambda net: torch.optim.SGD(net[1:].parameters(), lr=0.1, momentum=0.9),
        lambda net: torch.optim.AdamW(net.parameters()),
        lambda net: torch.optim.SGD(net.parameters(), lr=0.0),
    ],
    ids=["sparse updates", "not held", "dense updates", "nothing moves"],
)
def test_it_says_what_the_hashes_say(make_optimizer):
    def between(net, step):
        with torch.no_grad():
            net[0].weight.data[step + 7] = 3.0  # not the step's doing
        net[2].bias.data.clamp_(-0.1, 0.1)

    exact, cheap = (record(train(make_optimizer, between), plan) for plan in (Plan.full(), CHANGES))
    steps = list(zip(exact.of_role("step"), cheap.of_role("step"), strict=True))
    for one, other in steps:
        assert cheap.changed(other, "data") == exact.changed(one, "data")
        for phase in ("begin", "end"):
            frames = [r.frames(c, "parameter")[phase] for r, c in ((exact, one), (cheap, other))]
            for name in set(frames[1].columns) - {"data"}:
                np.testing.assert_array_equal(*(frame.columns[name] for frame in frames))


def test_few_slots_are_looked_at_while_they_change():
    class Lazy(torch.optim.SGD):
        """Leaves its state alone from the fifth step on."""

        def step(self):
            self.num_steps = getattr(self, "num_steps", 0) + 1
            if self.num_steps < 5 or self.num_steps > 8:
                super().step()

    recording = record(
        train(lambda net: Lazy(net.parameters(), lr=0.1, momentum=0.9), lambda *_: None, 10),
        CHANGES,
    )
    shown = []
    for call in recording.of_role("step"):
        frames = recording.frames(call, "slot")
        shown.append(recording.changed(call, "data", "slot") if len(frames) == 2 else None)
    small = [name for name in shown[1] if "bias" in name]
    assert len(shown[1]) == 4
    assert shown[0] is None  # there was no state yet
    assert shown[1] == shown[2] == shown[3]
    assert shown[4:8] == [[n for n in shown[1] if n not in small], None, [], []]
    assert shown[8] == shown[9] == shown[1]


def test_few_of_many_slots_are_shown():
    recording = record(
        train(lambda net: torch.optim.AdamW(net.parameters()), lambda *_: None), CHANGES
    )
    numbers = [len(recording.frames(call, "slot")["end"]) for call in recording.of_role("step")[1:]]
    assert numbers == [12, 8, 8, 8, 8]
