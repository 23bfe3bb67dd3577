from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.accelerate_adapter.loops import (
    learned_from_accelerated,
    learned_from_plain,
)


def forget():
    """Make Accelerate forget what it keeps for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def fresh():
    state = torch.get_rng_state()
    forget()
    yield
    forget()
    torch.set_rng_state(state)


@pytest.fixture(scope="session")
def from_plain(tmp_path_factory):
    """What a plain loop of 30 steps teaches."""
    return learned_from_plain(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def from_accumulating(tmp_path_factory):
    """What an Accelerate loop that accumulates 4 micro-batches teaches in 36 steps."""
    forget()
    folder = tmp_path_factory.mktemp("reference")
    path = learned_from_accelerated(folder, accumulate=4, epochs=12)
    forget()
    return path
