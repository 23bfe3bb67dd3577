from __future__ import annotations

import subprocess
import sys

import pytest

from traincheck_plugin.cli.collect_options import KEYS, CollectOptions, parse_options
from traincheck_plugin.errors import ConfigError


def test_the_defaults():
    assert parse_options(["--pyscript", "train.py"]) == CollectOptions(
        pyscript="train.py",
        models_to_track=(),
        output_dir=None,
        invariants=(),
        modules_to_instr=(),
        sampling_interval=1,
        warm_up_steps=0,
        args=(),
    )


def test_every_option_is_read():
    line = (
        "--pyscript train.py --models-to-track generator critic --output-dir out "
        "--invariants a.json b.json --modules-to-instr timm --sampling-interval 5 "
        "--warm-up-steps 10 -- --lr 0.1 -- --pyscript other"
    )
    assert parse_options(line.split()) == CollectOptions(
        pyscript="train.py",
        models_to_track=("generator", "critic"),
        output_dir="out",
        invariants=("a.json", "b.json"),
        modules_to_instr=("timm",),
        sampling_interval=5,
        warm_up_steps=10,
        args=("--lr", "0.1", "--", "--pyscript", "other"),
    )


def test_a_config_file_gives_the_same_options_and_the_command_line_wins(tmp_path):
    config = tmp_path / "collect.yml"
    config.write_text(
        "pyscript: train.py\n"
        "models-to-track: [model]\n"
        "modules_to_instr: timm\n"
        "output_dir:\n"
        "sampling_interval: 5\n"
        "warm_up_steps: 10\n"
        "args: [--lr, 0.1, --epochs, 2]\n"
    )
    assert parse_options(["--config", str(config), "--sampling-interval", "1"]) == CollectOptions(
        pyscript="train.py",
        models_to_track=("model",),
        modules_to_instr=("timm",),
        sampling_interval=1,
        warm_up_steps=10,
        args=("--lr", "0.1", "--epochs", "2"),
    )
    assert parse_options(["--config", str(config), "--", "--lr", "1"]).args == ("--lr", "1")
    # An empty list of arguments is a list of arguments.
    assert parse_options(["--config", str(config), "--"]).args == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "pyscript: a.py\nmodel_tracker_style: proxy\nseed: 1\n",
            "{}: unknown options model_tracker_style, seed; the options are " + ", ".join(KEYS),
        ),
        ("- a\n", "expected options by name in {}, got list; write lines such as"),
        ("pyscript: [\n", "expected YAML in {}, got: while parsing a flow node"),
        ("pyscript: 5\n", "{}: expected text as pyscript, got 5"),
        ("warm_up_steps: many\n", "{}: expected a whole number as warm_up_steps, got 'many'"),
        ("sampling_interval: true\n", "{}: expected a whole number as sampling_interval"),
        ("args: [{a: 1}]\n", "{}: expected a list of words as args, got [{{'a': 1}}]"),
        ("", "expected a script to run, got none; name it with --pyscript FILE"),
    ],
)
def test_a_config_file_that_makes_no_sense(tmp_path, text, message):
    config = tmp_path / "collect.yml"
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse_options(["--config", str(config)])
    assert str(caught.value).startswith(message.format(config))
    assert "\n" not in str(caught.value)


def test_a_config_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"no.yml gives: No such file or directory; check"):
        parse_options(["--config", "no.yml"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampling-interval", "0"], "expected --sampling-interval to be at least 1, got 0"),
        (["--warm-up-steps", "-1"], "expected --warm-up-steps to be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse_options(["--pyscript", "train.py", *arguments])


def test_no_script():
    with pytest.raises(ConfigError, match="expected a script to run, got none"):
        parse_options(["--output-dir", "out"])


def test_unknown_options_end_with_code_two(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_options(["--pyscript", "train.py", "--seed", "1"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --seed 1" in capsys.readouterr().err


def test_help_names_every_option_and_loads_nothing_heavy():
    program = (
        "import sys\n"
        "from traincheck_plugin.cli.collect import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'pyarrow', 'yaml'} & set(sys.modules))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    for key in set(KEYS) - {"args"}:
        assert "--" + key.replace("_", "-") in shown
    assert shown.splitlines()[-1] == "set()"
