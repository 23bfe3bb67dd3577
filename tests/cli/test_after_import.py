from __future__ import annotations

import importlib.util
import sys

import pytest

from traincheck_plugin.cli.after_import import after_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that can be imported, and return a function that does so."""
    monkeypatch.syspath_prepend(tmp_path)
    name = "observed_by_after_import"
    (tmp_path / f"{name}.py").write_text("VALUE = 1\n")
    yield name, tmp_path / f"{name}.py"
    sys.modules.pop(name, None)


def test_it_calls_once_the_module_is_complete_and_before_names_are_taken_from_it(module):
    name, _ = module
    seen = []

    def callback():
        seen.append(sys.modules[name].VALUE)
        sys.modules[name].VALUE = 2

    with after_import(name, callback):
        assert seen == []
        assert __import__(name, fromlist=["VALUE"]).VALUE == 2
        __import__(name)
    assert seen == [1]


def test_a_module_that_is_there_already_calls_at_once(module):
    seen = []
    with after_import("sys", lambda: seen.append(1)):
        assert seen == [1]


def test_looking_for_the_module_is_not_importing_it(module):
    name, _ = module
    seen = []
    with after_import(name, lambda: seen.append(1)):
        assert importlib.util.find_spec(name) is not None
    assert seen == []


def test_an_import_that_fails_does_not_call_and_a_second_that_succeeds_does(module):
    name, path = module
    seen = []
    with after_import(name, lambda: seen.append(1)):
        path.write_text("raise ImportError('not today')\n")
        with pytest.raises(ImportError, match="not today"):
            __import__(name)
        assert seen == []
        path.write_text("VALUE = 'second'\n")
        importlib.invalidate_caches()
        __import__(name)
    assert seen == [1]


def test_a_missing_module_is_missing_as_ever():
    with (
        after_import("there_is_no_such_module", lambda: None),
        pytest.raises(ModuleNotFoundError, match="No module named 'there_is_no_such_module'"),
    ):
        __import__("there_is_no_such_module")


def test_nothing_is_left_behind(module):
    name, _ = module
    before = list(sys.meta_path)
    with after_import(name, lambda: None):
        imported = __import__(name)
        assert sys.meta_path == before
    assert "exec_module" not in vars(imported.__loader__)
    with after_import("never_imported", lambda: None):
        assert sys.meta_path != before
    assert sys.meta_path == before
