from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.builders import training_run
from tests.cli.traces import write_trace

# Shells start what runs in the background deaf to interrupts, and so would be what is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def healthy_trace(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "healthy"
    return write_trace(path, training_run(30, num_functions=2))


@pytest.fixture(scope="module")
def buggy_trace(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "buggy"
    return write_trace(path, training_run(30, num_functions=2, clears=False, updates=False))
