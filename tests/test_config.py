from __future__ import annotations

import dataclasses

import pytest

from traincheck_plugin.config import Settings, child_environment
from traincheck_plugin.errors import ConfigError


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_environment({}) == Settings(
        disabled=False, invariants=(), output_dir=None, rank=0, world_size=1
    )


def test_every_variable_is_read():
    environment = {
        "TRAINCHECK_DISABLE": "yes",
        "TRAINCHECK_INVARIANTS": "default, s3://bucket/invariants.json",
        "TRAINCHECK_OUTPUT_DIR": "gs://bucket/runs",
        "RANK": "3",
        "WORLD_SIZE": "8",
    }
    assert Settings.from_environment(environment) == Settings(
        disabled=True,
        invariants=("default", "s3://bucket/invariants.json"),
        output_dir="gs://bucket/runs",
        rank=3,
        world_size=8,
    )


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    monkeypatch.setenv("TRAINCHECK_OUTPUT_DIR", "runs")
    assert Settings.from_environment().output_dir == "runs"


def test_variables_that_are_set_to_nothing_count_as_not_set():
    names = ("TRAINCHECK_DISABLE", "TRAINCHECK_INVARIANTS", "TRAINCHECK_OUTPUT_DIR")
    environment = dict.fromkeys((*names, "RANK", "WORLD_SIZE"), "")
    assert Settings.from_environment(environment) == Settings()


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "yes", "On"])
def test_the_kill_switch_is_on(value):
    assert Settings.from_environment({"TRAINCHECK_DISABLE": value}).disabled


@pytest.mark.parametrize("value", ["0", "false", "No", "OFF"])
def test_the_kill_switch_is_off(value):
    assert not Settings.from_environment({"TRAINCHECK_DISABLE": value}).disabled


def test_a_kill_switch_of_another_value_names_the_valid_ones():
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment({"TRAINCHECK_DISABLE": "maybe"})
    assert str(caught.value) == (
        "Expected TRAINCHECK_DISABLE to be one of 1, true, yes, on, 0, false, no, off "
        "but got 'maybe': set it to one of these or unset it."
    )


@pytest.mark.parametrize(
    ("name", "value", "minimum"),
    [("RANK", "-1", 0), ("RANK", "one", 0), ("WORLD_SIZE", "0", 1), ("WORLD_SIZE", "2.5", 1)],
)
def test_a_rank_or_world_size_that_makes_no_sense_is_refused(name, value, minimum):
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment({name: value})
    assert str(caught.value) == (
        f"Expected {name} to be a whole number of at least {minimum} but got '{value}': "
        "it is set by launchers such as torchrun; unset it when there is none."
    )


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ConfigError, match="Expected RANK to be below WORLD_SIZE=2 but got 2"):
        Settings.from_environment({"RANK": "2", "WORLD_SIZE": "2"})


def test_a_rank_without_a_world_size_is_taken():
    assert Settings.from_environment({"RANK": "2"}).rank == 2


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().rank = 1


def test_the_environment_of_a_child_is_this_one_with_changes(monkeypatch):
    monkeypatch.setenv("TRAINCHECK_OUTPUT_DIR", "here")
    monkeypatch.setenv("TRAINCHECK_DISABLE", "1")
    environment = child_environment({"TRAINCHECK_OUTPUT_DIR": "there"})
    assert environment["TRAINCHECK_OUTPUT_DIR"] == "there"
    assert environment["TRAINCHECK_DISABLE"] == "1"
