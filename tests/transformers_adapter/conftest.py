from __future__ import annotations

import pytest

from tests.transformers_adapter.training import bert, learn_from_plain_loops, sentences


@pytest.fixture(scope="session")
def rules(tmp_path_factory):
    """Invariants of `bert`, learned from plain loops."""
    return learn_from_plain_loops(tmp_path_factory.mktemp("rules"), bert, sentences())
