"""Tensors that are followed without being kept."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from traincheck_plugin.recorder import followed
from traincheck_plugin.recorder.followed import MAX_TENSORS, Followed


def test_what_is_known_lives_as_long_as_its_tensor() -> None:
    known = Followed[str]()
    tensor = torch.zeros(1)
    known.follow(tensor, "zeros")
    assert known.get(tensor) == "zeros"
    del tensor
    gc.collect()
    others = [torch.zeros(1) for _ in range(8)]
    assert [known.get(one) for one in others] == [None] * 8
    known.forget_gone()
    assert not known


def test_many_that_are_gone_make_room() -> None:
    known = Followed[int]()
    for number in range(3 * MAX_TENSORS):
        tensor = torch.zeros(1)
        known.follow(tensor, number)
        assert known.get(tensor) == number


@given(st.integers(0, 20))
def test_of_those_that_live_the_first_are_followed(number: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(followed, "MAX_TENSORS", 8)
        known = Followed[int]()
        tensors = [torch.zeros(1) for _ in range(number)]
        for place, tensor in enumerate(tensors):
            known.follow(tensor, place)
        assert [known.get(tensor) for tensor in tensors[:8]] == list(range(min(number, 8)))
        assert all(known.get(tensor) is None for tensor in tensors[8:])
        del tensors
        gc.collect()
        known.forget_gone()
        last = torch.zeros(1)
        known.follow(last, 3)
        assert known.get(last) == 3
