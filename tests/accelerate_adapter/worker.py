"""One of several processes that train together: see test_ranks.py."""

from __future__ import annotations

import io
import json
import sys
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import GradientState
from traincheck_accelerate import watch

from tests.accelerate_adapter.loops import accelerated


def main(folder, invariants):
    found = {}

    def train(name, is_watched=True, ends=False, **options):
        training = {key: options.pop(key) for key in ("bug", "accumulate") if key in options}
        options = {"invariants": invariants, "every_n_steps": 1, **options}
        monitors, batches, said = [], [], io.StringIO()

        @contextmanager
        def block(accelerator):
            if not is_watched:
                yield
                return
            with watch(accelerator, **options) as monitor:
                monitors.append(monitor)
                yield
                if ends:
                    accelerator.end_training()

        with redirect_stderr(said):
            losses, weights = accelerated(
                block, on_batch=lambda _, number: batches.append(number), **training
            )
        diagnoses = monitors[0].report.diagnoses if monitors else ()
        found[name] = {
            "losses": losses,
            "weights": sum(weight.double().sum().item() for weight in weights.values()),
            "num_batches": len(batches),
            "said": said.getvalue(),
            "causes": [diagnosis.cause for diagnosis in diagnoses],
            "ranks": [diagnosis.first.rank for diagnosis in diagnoses],
            "problems": monitors[0].report.problems if monitors else (),
        }

    rank = Accelerator(cpu=True).process_index
    train("unwatched", is_watched=False)
    train("clean", output_dir=Path(folder, "trace"))
    train("warn", bug="no_zero_grad")
    train("stop", bug="no_zero_grad", on_violation="stop")
    GradientState._reset_state()
    train("accumulating", accumulate=4, ends=True)
    Path(folder, f"found_{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
