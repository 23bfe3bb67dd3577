"""One process of a run of several: trains, breaks on one rank, and writes what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from traincheck_transformers import TrainCheckCallback

from tests.transformers_adapter.test_callback import Breaking
from tests.transformers_adapter.training import trainer


def main():
    folder, rules, on_violation = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    callback = TrainCheckCallback(
        invariants=rules, output_dir=folder / "trace", on_violation=on_violation
    )
    run = trainer(
        folder, callback, gradient_accumulation_steps=2, ddp_backend="gloo", num_train_epochs=3
    )
    rank = run.args.process_index
    if rank == 1 and on_violation == "stop":
        run.add_callback(Breaking(step=2))

    run.train()

    found = {
        "steps": run.state.global_step,
        "problems": callback.report.problems,
        "violations": [violation.message for violation in callback.report.violations],
        "logged": any("traincheck/violations" in entry for entry in run.state.log_history),
    }
    (folder / f"found_{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
