"""The pages say what is so: examples run, links lead somewhere, tables name what the code has."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest

from benchmarks.measure import read_figures, table
from benchmarks.plots import draw
from tests.report.examples import buggy, unchecked
from traincheck_plugin import config
from traincheck_plugin.cli import check as check_command
from traincheck_plugin.cli import infer as infer_command
from traincheck_plugin.cli.collect_options import build_parser as collect_parser
from traincheck_plugin.invariants import codec
from traincheck_plugin.invariants.codec import decode_invariant, encode_invariant
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.invariants.model import VAR_TYPES, Evidence, Invariant, Param, Pipeline
from traincheck_plugin.invariants.precondition import ClauseType
from traincheck_plugin.plan import FULL_ATTRIBUTES
from traincheck_plugin.relations.registry import BUILT_IN
from traincheck_plugin.report.results import write_results
from traincheck_plugin.session.options import WatchOptions
from traincheck_plugin.trace import schema
from traincheck_plugin.trace.manifest import End, Manifest
from traincheck_plugin.vocabulary import Role, VariableKind

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SCRIPTS = ROOT / "examples" / "tutorial"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")
NUMBER = re.compile(r"\d[\d,.:_-]*\d")
"""What differs from machine to machine: sizes, losses, times. Single digits do not."""

ANY_NUMBER = re.compile(r"\d[\d,.:_-]*")
"""For pages that show a rule or two, and not how many there are."""

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


MISSED = re.compile(r"^\| ([a-z0-9_]+: \w+) \|.*\*\*missed\*\*", re.MULTILINE)
"""A bug in the table of the bench that was not found in one of the ways."""


def page_text(name):
    return (DOCS / name).read_text(encoding="utf-8")


def without_fences(text):
    return FENCE.sub("", text)


def fences(text, language):
    return [body for found, body in FENCE.findall(text) if found == language]


def section(text, heading):
    """Return what follows a heading, up to the next one of its level or above."""
    level = heading.split(" ")[0]
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"there is no {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text):
    """Return what the rows of the tables begin with, where that is one word of code."""
    return re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)


def run(command, folder):
    """Run a command as a reader does; return its exit code and what it printed."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TRAINCHECK_") and name not in ("RANK", "WORLD_SIZE")
    }
    environment |= {
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def assert_shows(printed, shown, number):
    """Assert that the lines of *shown* were printed, in order; others may stand between them."""
    lines = iter([number.sub("N", line).rstrip() for line in printed.splitlines()])
    for line in shown.splitlines():
        wanted = number.sub("N", line).rstrip()
        assert wanted in lines, f"not printed, or not in this place: {line!r}\n{printed}"


def assert_goes_as_it_says(page, scripts, folder, number=NUMBER):
    """Assert that the commands of a page print what it shows, in a folder with *scripts*."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash to run the blocks of the page with")
    for script in scripts.glob("*.py"):
        shutil.copy(script, folder)
    before, printed = "", ""
    for language, body in FENCE.findall(page_text(page)):
        if language == "bash":
            code, printed = run([bash, "-c", body], folder)
            assert code == 0, f"{body}\n{printed}"
        elif language == "text" and before == "bash":
            assert_shows(printed.replace(str(folder), "/home/me"), body, number)
        before = language


@pytest.mark.slow
def test_guarding_a_run_goes_as_it_says(tmp_path) -> None:
    assert_goes_as_it_says("live.md", ROOT / "examples" / "plain", tmp_path, ANY_NUMBER)


@pytest.mark.slow
def test_the_tutorial_goes_as_it_says(tmp_path) -> None:
    assert_goes_as_it_says("tutorial.md", SCRIPTS, tmp_path)

    (results,) = {path.parent for path in tmp_path.rglob("failed.log") if path.stat().st_size}
    listed = section(page_text("tutorial.md"), "## What the results directory holds")
    assert all(path.name in listed for path in results.iterdir())

    (line,) = fences(page_text("invariants.md"), "json")
    shown = decode_invariant(json.loads(line))
    assert shown in load_invariants(tmp_path / "invariants.json")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What the tutorial leaves behind, of a shorter run, which is enough for the examples."""
    folder = tmp_path_factory.mktemp("recorded")
    shutil.copy(SCRIPTS / "mnist.py", folder)
    short = ["--epochs", "1", "--batches-per-epoch", "15"]
    for command, *arguments in (
        ["collect", "--pyscript", "mnist.py", "--output-dir", "mnist_trace", "--", *short],
        ["infer", "-f", "mnist_trace", "-o", "invariants.json"],
    ):
        module = f"traincheck_plugin.cli.{command}"
        code, printed = run([sys.executable, "-m", module, *arguments], folder)
        assert code == 0, printed
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if fences(page.read_text(encoding="utf-8"), "python")],
    ids=lambda page: page.name,
)
def test_python_examples_run(recorded, tmp_path, page) -> None:
    folder = shutil.copytree(recorded, tmp_path / "folder")
    program = "\n".join(fences(page.read_text(encoding="utf-8"), "python"))
    code, printed = run([sys.executable, "-W", "error", "-c", program], folder)
    assert code == 0, printed
    assert printed


@by_name
def test_relative_links_lead_somewhere(page) -> None:
    text = without_fences(page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            headings = HEADING.findall(without_fences(target.read_text(encoding="utf-8")))
            slugs = {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{page.name} links to {link}"


@pytest.mark.parametrize(
    "figures", sorted((DOCS / "plots").glob("*.json")), ids=lambda file: file.stem
)
def test_plots_are_drawn_from_the_figures_of_the_tables(figures, tmp_path) -> None:
    page = page_text("benchmarks.md")
    plot = figures.with_suffix(".svg")
    assert table(read_figures(figures)) in page
    assert f"(plots/{plot.name})" in page
    shutil.copy(figures, tmp_path)
    draw(tmp_path)
    # Lines differ between versions of matplotlib; what is written at them does not.
    texts = [TEXT.findall(file.read_text()) for file in (plot, tmp_path / plot.name)]
    assert texts[0] == texts[1] != []


def test_every_page_is_linked_from_the_readme() -> None:
    links = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= set(links)


@pytest.mark.parametrize(
    ("command", "parser"),
    [
        ("traincheck-collect", collect_parser()),
        ("traincheck-infer", infer_command._parser()),
        ("traincheck-check", check_command._parser()),
    ],
)
def test_every_option_is_told(command, parser) -> None:
    told = section(page_text("commands.md"), f"## {command}")
    for action in parser._actions:
        if action.dest not in ("help", "version") and action.help != argparse.SUPPRESS:
            names = [re.escape(name) for name in action.option_strings]
            assert all(re.search(rf"(?<![\w-]){name}(?![\w-])", told) for name in names), names


def test_the_results_directory_is_told_file_by_file_and_field_by_field(tmp_path) -> None:
    told = section(page_text("commands.md"), "### The results directory")
    entries = {}
    for name, result in (("buggy", buggy()), ("unchecked", unchecked())):
        folder = tmp_path / name
        folder.mkdir()
        write_results(folder, [result], [outcome.invariant for outcome in result.outcomes])
        assert all(f"| `{path.name}` |" in told for path in folder.iterdir())
        for path in folder.glob("*.log"):
            for line in path.read_text(encoding="utf-8").splitlines():
                entries |= json.loads(line)

    lines, _, rest = told.partition("The logs hold")[2].partition("`violations_summary.json` is")
    assert set(first_cells(lines)) == set(entries)
    summary = json.loads((tmp_path / "buggy" / "violations_summary.json").read_text())
    (violation, *_) = entries["violations"]
    (diagnosis, *_) = summary["diagnoses"]
    assert all(f"`{name}`" in lines for name in violation)
    assert all(f"`{name}`" in rest for name in (*summary, *diagnosis))
    assert all(f"`{name}`" in rest for name in diagnosis["violations"][0].keys() - violation.keys())


def test_the_options_of_a_live_run_are_told() -> None:
    told = section(page_text("live.md"), "## Options")
    options, _, environment = told.partition("| environment variable |")
    assert first_cells(options) == [field.name for field in fields(WatchOptions)]
    assert set(re.findall(r"`([A-Z_]+)`", environment)) == set(
        re.findall(r"`([A-Z_]+)`", config.__doc__)
    )


def shown_type(kind):
    """Return a type as docs/trace.md writes it."""
    if pa.types.is_dictionary(kind):
        return "text"
    if pa.types.is_fixed_size_list(kind):
        return f"list<{shown_type(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_list(kind):
        item = shown_type(kind.value_type)
        return f"list<{item}>"
    return str(kind)


@pytest.mark.parametrize("stream", schema.STREAMS)
def test_the_columns_are_those_of_the_schema(stream) -> None:
    told = section(page_text("trace.md"), f"### {schema.file_name(stream)}")
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| .+ \|$", told, re.MULTILINE)
    assert rows == [(field.name, shown_type(field.type)) for field in schema.STREAMS[stream]]


def test_the_page_on_traces_names_what_the_code_has() -> None:
    text = page_text("trace.md")
    assert f"Trace schema {schema.SCHEMA_VERSION}." in text
    for heading, kind in (("## manifest.json", Manifest), ("## end.json", End)):
        assert first_cells(section(text, heading)) == [field.name for field in fields(kind)]
    for key in (schema.STREAM_KEY, schema.VERSION_KEY, schema.WINDOWS_KEY):
        assert f"`{key.decode()}`" in text
    for heading, values in (("### apis.arrow", Role), ("### variables.arrow", VariableKind)):
        assert all(f"`{value}`" in section(text, heading) for value in get_args(values))
    order = ", ".join(f"`{stream}`" for stream in schema.STREAMS)
    assert f"in the order {order}" in " ".join(text.split())
    taken = section(text, "### frames.arrow").rpartition("| role |")[2]
    assert all(f"`{role}`" in taken for role in FULL_ATTRIBUTES)


def test_the_page_on_invariants_names_what_the_code_has() -> None:
    text = page_text("invariants.md")
    invariant = encode_invariant(Invariant(relation="R", params=(), pipelines=(Pipeline(),)))
    told = section(text, "## Fields")
    assert f"Schema {codec.SCHEMA_VERSION}." in text
    assert first_cells(told) == ["schema_version", *list(invariant)[1:]]
    for name in (*invariant["evidence"], *invariant["pipelines"][0]):
        assert f"`{name}`:" in " ".join(told.split())
    assert set(invariant["evidence"]) == {field.name for field in fields(Evidence)} - {
        "num_positive_examples",
        "num_negative_examples",
    }

    rows = re.findall(r"^\| (?:`(\w+)`)? ?\| `(\w+)`", section(text, "## Parameters"), re.MULTILINE)
    params: dict[str, set[str]] = {}
    current = ""
    for kind, name in rows:
        current = kind or current
        params.setdefault(current, set()).add(name)
    assert params == {
        kind.__name__: {field.name for field in fields(kind)} for kind in get_args(Param)
    }
    var_types = re.findall(r"^\| `(torch[\w.]+)` \| (\w+) \|", text, re.MULTILINE)
    assert {kind: var_type for var_type, kind in var_types} == dict(VAR_TYPES)
    types = first_cells(section(text, "## Preconditions"))
    assert set(get_args(ClauseType)) <= set(types)


def test_every_relation_is_told_with_what_it_finds_and_cannot_see() -> None:
    relations = section(page_text("invariants.md"), "## Relations")
    assert re.findall(r"^### (\w+)$", relations, re.MULTILINE) == [r.name for r in BUILT_IN]
    for relation in BUILT_IN:
        told = section(relations, f"### {relation.name}")
        assert re.search(r"^\| params \| formula \|$", told, re.MULTILINE)
        assert "\n- Finds: " in told
        assert "\n- Cannot see: " in told


def test_each_miss_of_the_bench_is_explained():
    missed = set(MISSED.findall(page_text("quality.md")))
    explained = set(re.findall(r"`([a-z0-9_]+: \w+)`", page_text("limits.md")))
    assert missed
    assert explained == missed
