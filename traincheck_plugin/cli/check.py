"""traincheck-check: check traces with invariants and write what was found."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from traincheck_plugin.cli.command import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_VIOLATIONS,
    run_command,
)
from traincheck_plugin.cli.engine_options import add_engine_options, chosen_engine
from traincheck_plugin.cli.progress import Progress, show_progress
from traincheck_plugin.errors import ConfigError
from traincheck_plugin.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from traincheck_plugin.checker.check import CheckResult
    from traincheck_plugin.checker.diagnosis import Diagnosis
    from traincheck_plugin.engine import Engine
    from traincheck_plugin.invariants.model import Invariant

# As in the model, which imports numpy: too slow for `--help`.
SEVERITIES = ("info", "warning", "critical")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    return run_command("traincheck-check", lambda: _check(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="traincheck-check",
        description="Check traces of training runs with invariants.",
        epilog="Exit code 0: nothing reported; 1: violations of warning or above; "
        "2: the check could not be done.",
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
        "-i",
        "--invariants",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="files of invariants, or the word default for the bundled ones (default: default)",
    )
    parser.add_argument(
        "-o",
        "--output-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where to create the results directory (default: here)",
    )
    parser.add_argument(
        "--min-severity",
        choices=SEVERITIES,
        default="warning",
        help="show nothing below this severity (default: %(default)s)",
    )
    parser.add_argument(
        "--exit-zero", action="store_true", help="exit with 0 even when violations are reported"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="check a trace that is still being written, until it ends or Ctrl-C",
    )
    add_engine_options(parser)
    return parser


def _check(arguments: argparse.Namespace) -> int:
    # Imported here, so that `--help` and wrong options answer at once: pyarrow, numpy, rich and
    # jinja2 take longer to import than the rest of the command.
    from rich.console import Console

    from traincheck_plugin.relations.loading import load_checkable
    from traincheck_plugin.report.console import print_results
    from traincheck_plugin.report.results import create_results_directory, write_results

    console = Console(highlight=False)
    invariants, left_out = load_checkable(arguments.invariants or ["default"])
    if arguments.follow:
        results = [_followed(arguments, invariants, console)]
    else:
        results = _results(arguments.trace_folders, invariants, chosen_engine(arguments))
    results = [replace(r, problems=(*left_out, *r.problems)) for r in results]
    directory = create_results_directory(arguments.output_dir, datetime.now())
    write_results(directory, results, invariants)
    print_results(results, console, arguments.min_severity, directory)
    return EXIT_OK if arguments.exit_zero else _exit_code(results, arguments.min_severity)


def _results(
    folders: Sequence[str], invariants: Sequence[Invariant], engine: Engine | None
) -> list[CheckResult]:
    from traincheck_plugin.checker.check import check
    from traincheck_plugin.trace.reader import open_run

    # All are opened first: a wrong path is told before the work, not after it.
    runs = [open_run(folder) for folder in folders]
    results = []
    with show_progress() as progress:
        for folder, run in zip(folders, runs, strict=True):
            told = progress if len(runs) == 1 else partial(_tell, progress, folder)
            results.append(check(run, invariants, progress=told, engine=engine))
    return results


def _followed(
    arguments: argparse.Namespace, invariants: Sequence[Invariant], console: Console
) -> CheckResult:
    from traincheck_plugin.checker.follow import follow
    from traincheck_plugin.report.console import print_diagnosis
    from traincheck_plugin.report.summary import is_at_least
    from traincheck_plugin.trace.reader import open_run

    if len(arguments.trace_folders) != 1:
        raise ConfigError(
            f"expected one trace with --follow, got {len(arguments.trace_folders)}; "
            "follow each in a command of its own"
        )

    def tell(diagnosis: Diagnosis) -> None:
        if is_at_least(diagnosis.severity, arguments.min_severity):
            print(f"[{datetime.now():%H:%M:%S}]")
            print_diagnosis(diagnosis, console)
            print(flush=True)

    run = open_run(arguments.trace_folders[0])
    print(f"following {run.path}; Ctrl-C ends the check with a report", file=sys.stderr)
    result = follow(run, invariants, tell=tell)
    print("The run has ended. All that was found:\n")
    return result


def _tell(progress: Progress, folder: str, activity: str, fraction: float) -> None:
    progress(f"{folder}: {activity}", fraction)


def _exit_code(results: Sequence[CheckResult], min_severity: str) -> int:
    from traincheck_plugin.report.summary import has_violation

    # Info is shown on request, but it is no reason to stop anybody's pipeline.
    if has_violation(results, "critical" if min_severity == "critical" else "warning"):
        return EXIT_VIOLATIONS
    if any(outcome.error for result in results for outcome in result.outcomes):
        return EXIT_FAILURE  # Part of the work could not be done: never taken for healthy.
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
