"""Comparing ranks changes no loss, no random state, no process group, and leaves no thread."""

from __future__ import annotations

import pytest

from tests.ranks.launching import ROOT, run, torchrun


@pytest.mark.slow
def test_training_is_the_same_to_the_bit(tmp_path):
    done = run(torchrun(ROOT / "tests/ranks/harmless.py"), tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 2
