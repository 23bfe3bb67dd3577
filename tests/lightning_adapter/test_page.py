"""The page on Lightning says what is so.

Its blocks are marked ``py``: Lightning's own warnings are no errors here, as they are where the
blocks of other pages run.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from traincheck_lightning import TrainCheckCallback

PAGE = (Path(__file__).parent.parent.parent / "docs" / "lightning.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_examples_run(tmp_path):
    program = "\n".join(re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no violation in 20 steps") == 2, done.stdout


def test_every_option_is_told():
    (table,) = re.findall(r"^## Options\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    told = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert told == list(inspect.signature(TrainCheckCallback).parameters)
