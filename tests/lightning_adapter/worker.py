"""A training on two processes, watched: see test_ranks.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning as L  # noqa: N812
from traincheck_lightning import TrainCheckCallback

from tests.lightning_adapter.modules import Classifier, ForgotZeroGrad, loader


def main(folder, strategy, case):
    options = {"output_dir": Path(folder, "trace"), "invariants": "default"}
    if case != "clean":
        options = {"on_violation": case}
    callback = TrainCheckCallback(every_n_steps=1, **options)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(Classifier() if case == "clean" else ForgotZeroGrad(), loader())
    report = callback.report
    found = {
        "num_steps": report.num_steps,
        "told": [diagnosis.message for diagnosis in report.diagnoses],
        "problems": report.problems,
    }
    Path(folder, f"{case}_{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
