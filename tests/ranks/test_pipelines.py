"""Healthy training on several ranks is silent: by the bundled rules, and by its own."""

from __future__ import annotations

import pytest

from tests.ranks.launching import COLLECT, ROOT, run, torchrun
from traincheck_plugin.checker.check import check
from traincheck_plugin.inference.corpus import NO_CORPUS
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.relations.loading import load_checkable
from traincheck_plugin.report.summary import is_at_least
from traincheck_plugin.trace.reader import open_run

pytestmark = pytest.mark.slow

PIPELINES = sorted((ROOT / "tests/ranks/pipelines").glob("*.py"))
REPLICATED = "replicated parameters are equal on all ranks after each step"


@pytest.mark.parametrize(
    "script", [path for path in PIPELINES if path.stem != "__init__"], ids=lambda path: path.stem
)
def test_healthy_ranks_are_silent(tmp_path, script):
    done = run([*COLLECT, "--output-dir", "trace", "--", *torchrun(script)], tmp_path)
    assert done.returncode == 0, done.stderr
    trace = open_run(tmp_path / "trace")
    bundled, _ = load_checkable(["default"])
    learned = infer([trace]).invariants

    for rules in (bundled, learned):
        result = check(trace, rules)
        assert [d.message for d in result.diagnoses if is_at_least(d.severity, "warning")] == []
        assert result.problems == ()
    # Laws of the corpus are learned in any case.
    shown = infer([trace], corpus=NO_CORPUS).invariants
    names = {rule.text_description for rule in shown}
    assert (REPLICATED in names) == script.stem.startswith("ddp")
