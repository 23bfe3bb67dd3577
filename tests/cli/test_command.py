from __future__ import annotations

import subprocess
import sys

import pytest

from traincheck_plugin.cli.command import run_command
from traincheck_plugin.errors import ConfigError


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_code_of_the_work_is_passed_on(code):
    assert run_command("traincheck-x", lambda: code) == code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("expected a,\n  got b"), 2, "traincheck-x: expected a, got b\n"),
        (
            FileNotFoundError(2, "No such file or directory", "missing/x"),
            2,
            "traincheck-x: missing/x: No such file or directory\n",
        ),
        (OSError("disk on fire"), 2, "traincheck-x: disk on fire\n"),
        (KeyboardInterrupt(), 130, "traincheck-x: interrupted\n"),
    ],
)
def test_an_error_is_one_line_and_a_code(capsys, error, code, line):
    assert run_command("traincheck-x", raising(error)) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


def test_a_defect_is_shown_whole_and_never_taken_for_violations(capsys):
    assert run_command("traincheck-x", raising(ZeroDivisionError("by zero"))) == 2
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert captured.err.endswith(
        "ZeroDivisionError: by zero\n"
        "traincheck-x: this is a defect in traincheck-plugin; please report the lines above\n"
    )


def test_a_reader_that_goes_away_ends_the_command_in_silence():
    script = (
        "import sys\n"
        "from traincheck_plugin.cli.command import run_command\n"
        "def work():\n"
        "    for _ in range(100_000): print('many lines')\n"
        "    return 0\n"
        "sys.exit(run_command('traincheck-x', work))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "many lines\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_letters_that_the_terminal_lacks_are_escaped():
    script = (
        "import sys\n"
        "from traincheck_plugin.cli.command import run_command\n"
        "sys.exit(run_command('traincheck-x', lambda: print('\\u03b2.weight') or 0))\n"
    )
    result = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", script],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, b"\\u03b2.weight\n")
