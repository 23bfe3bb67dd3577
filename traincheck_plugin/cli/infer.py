"""traincheck-infer: learn invariants from traces of healthy runs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from traincheck_plugin.cli.command import EXIT_OK, run_command
from traincheck_plugin.cli.engine_options import add_engine_options, chosen_engine
from traincheck_plugin.cli.progress import show_progress
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.version import __version__

if TYPE_CHECKING:
    from traincheck_plugin.inference.infer import InferenceResult
    from traincheck_plugin.relations.base import Relation


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    return run_command("traincheck-infer", lambda: _infer(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="traincheck-infer",
        description="Learn invariants from traces of healthy training runs.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "-f",
        "--trace-folders",
        nargs="+",
        action="extend",
        required=True,
        metavar="DIR",
        help="traces written by traincheck-collect or a callback",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("invariants.json"),
        metavar="FILE",
        help="where to write the invariants, one JSON object per line (default: %(default)s)",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--enable-relation", nargs="+", metavar="R", help="learn rules of these relations only"
    )
    chosen.add_argument(
        "--disable-relation", nargs="+", metavar="R", help="learn no rules of these relations"
    )
    add_engine_options(parser)
    return parser


def _infer(arguments: argparse.Namespace) -> int:
    # Imported here, so that `--help` and wrong options answer at once: pyarrow and numpy take
    # longer to import than the rest of the command.
    from traincheck_plugin.inference.infer import infer
    from traincheck_plugin.invariants.jsonl import dump_invariants
    from traincheck_plugin.trace.reader import open_run

    relations = _chosen(arguments.enable_relation, arguments.disable_relation)
    with show_progress() as progress:
        runs = [open_run(folder) for folder in arguments.trace_folders]
        # A wrong path is told before an engine is started.
        engine = chosen_engine(arguments)
        result = infer(runs, relations=relations, progress=progress, engine=engine)
    dump_invariants(result.invariants, arguments.output)
    notes = dict.fromkeys((*(p for run in runs for p in run.problems), *result.notes))
    _print(replace(result, notes=tuple(notes)), arguments.output)
    return EXIT_OK


def _chosen(enabled: Sequence[str] | None, disabled: Sequence[str] | None) -> list[Relation]:
    from traincheck_plugin.relations.registry import relations

    known = relations()
    unknown = sorted({*(enabled or ()), *(disabled or ())} - known.keys())
    if unknown:
        raise InvariantError(
            f"expected names of relations, got {', '.join(unknown)}; "
            f"use some of {', '.join(sorted(known))}"
        )
    return [
        relation
        for name, relation in known.items()
        if (enabled is None or name in enabled) and name not in (disabled or ())
    ]


def _print(result: InferenceResult, output: Path) -> None:
    from traincheck_plugin.report.learned import summary

    severities = Counter(invariant.severity for invariant in result.invariants)
    counts = ", ".join(f"{severities[s]} {s}" for s in ("critical", "warning", "info"))
    print(
        f"Checked {len(result.tallies):,} hypotheses "
        f"on {result.num_calls:,} calls in {result.num_windows:,} windows"
    )
    for note in result.notes:
        print(f"Note: {note}")
    if not result.invariants:
        print("No invariants: nothing held often enough; give more or longer healthy runs")
    for line in summary(result.invariants):
        print(line)
    print(f"Wrote {len(result.invariants)} invariants ({counts}) to {output}")


if __name__ == "__main__":
    raise SystemExit(main())
