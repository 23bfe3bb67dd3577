"""Windows joined into stretches: nothing is lost, nothing is mixed up, and little is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from tests.builders import RunBuilder, training_run
from tests.trace.sameness import assert_same_window, assert_same_windows
from tests.trace.strategies import runs
from traincheck_plugin import stacks
from traincheck_plugin.events import Window
from traincheck_plugin.stacks import Frames, frames_of, join, row_of_frames, stretches
from traincheck_plugin.vocabulary import NONE


@given(runs())
def test_what_is_joined_comes_apart_again(windows: list[Window]) -> None:
    observed = [replace(window, observed=True, cache={}) for window in windows]
    if observed:
        assert_same_windows(list(join(observed).parts), observed)


@given(runs())
def test_stretches_have_the_windows_in_order(windows: list[Window]) -> None:
    found = list(stretches(windows))
    assert_same_windows([part for stretch in found for part in stretch.parts], windows)
    for stretch in found:
        assert stretch.num_parts == 1 or (np.diff(stretch.calls.end) >= 0).all()


@given(runs())
def test_frames_are_the_same_stacked(windows: list[Window]) -> None:
    for window in windows:
        assert_same_window(replace(window, frames=Frames.of(window.frames), cache={}), window)


def _training() -> Sequence[Window]:
    return training_run(30, num_functions=2)


def test_frames_that_show_the_same_are_one_stack() -> None:
    [_, stretch] = stretches(_training())
    single = frames_of(next(stretch.parts))
    assert len(frames_of(stretch).stacks) == len(single.stacks)
    assert len(frames_of(stretch)) == 29 * len(single)


def test_a_call_is_found_in_its_window() -> None:
    [_, stretch] = stretches(_training())
    parts = list(stretch.parts)
    for row in range(len(stretch.calls)):
        part, own = stretch.at(row)
        assert part.calls.call[own] == stretch.calls.call[row]
        assert part is parts[int(stretch.position_of(np.array([row]))[0])]


def test_a_frame_is_not_of_a_call_that_another_window_has() -> None:
    run = RunBuilder()
    weights = run.parameters("w")
    windows = list(training_run(1))
    run = RunBuilder(catalog=windows[0].catalog)
    run.begin("torch.nn.Module.forward", role="forward")
    run.frame("begin", weights, data=[1])
    first = run.window()
    run.frame("end", weights, data=[2])
    run.end()
    joined = join([first, run.window()])
    assert row_of_frames(joined).tolist() == [NONE, 0]


def test_what_was_not_observed_stays_alone() -> None:
    windows = list(_training())
    windows[10] = replace(windows[10], observed=False, cache={})
    found = list(stretches(windows))
    assert [stretch.num_parts for stretch in found] == [1, 9, 1, 19]
    assert [stretch.observed for stretch in found] == [True, True, False, True]


@pytest.mark.parametrize("limit", ["MAX_CALLS", "MAX_BYTES"])
def test_stretches_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    windows = list(_training())
    size = len(windows[1].calls)
    if limit == "MAX_BYTES":
        size = sum(stack.num_bytes for stack in frames_of(windows[1]).stacks)
    monkeypatch.setattr(stacks, limit, 4 * size)
    assert max(stretch.num_parts for stretch in stretches(windows)) == 4
