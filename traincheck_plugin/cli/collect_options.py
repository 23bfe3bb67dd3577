"""The options of ``traincheck-collect``: from the command line, and from a YAML file below it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from traincheck_plugin.errors import ConfigError
from traincheck_plugin.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """What to run and what to record; the fields are the keys of a config file.

    Attributes:
        pyscript: the script to run; "" for a module or a launcher.
        pymodule: the module to run instead, as ``python -m`` does.
        models_to_track: names of the script's variables that hold models; none: every root module
            that training shows.
        output_dir: where the trace goes, a path or URI; None: named after script and time.
        invariants: files of invariants; with some, only what they need is recorded.
        modules_to_instr: packages whose functions are recorded besides those of torch.
        sampling_interval: record every so many steps.
        warm_up_steps: first record so many steps without a gap.
        args: arguments of the script; without script and module, the command of a launcher.
    """

    pyscript: str = ""
    pymodule: str = ""
    models_to_track: tuple[str, ...] = ()
    output_dir: str | None = None
    invariants: tuple[str, ...] = ()
    modules_to_instr: tuple[str, ...] = ()
    sampling_interval: int = 1
    warm_up_steps: int = 0
    args: tuple[str, ...] = ()
    is_launched: bool = False
    """Whether a launcher that this command runs under itself started the process."""

    @property
    def program(self) -> str:
        """What is run, by the name that a file may have."""
        if self.pymodule:
            return self.pymodule.rpartition(".")[2]
        return Path(self.pyscript).stem

    def for_launched(self, output_dir: str) -> tuple[str, ...]:
        """Return the command line of these options for the processes of a launcher."""
        words = ["--launched", "--output-dir", output_dir]
        for name in ("models_to_track", "invariants", "modules_to_instr"):
            values = getattr(self, name)
            words += [_option(name), *values] if values else []
        for name in _MINIMA:
            words += [_option(name), str(getattr(self, name))]
        return tuple(words)


KEYS = tuple(field.name for field in fields(CollectOptions) if field.name != "is_launched")
_LISTS = frozenset({"models_to_track", "invariants", "modules_to_instr", "args"})
_MINIMA = {"sampling_interval": 1, "warm_up_steps": 0}

_EXAMPLES = """\
examples:
  traincheck-collect --pyscript train.py -- --epochs 2
  traincheck-collect --pyscript train.py --models-to-track model --output-dir train_trace
  traincheck-collect --pyscript train.py --invariants invariants.json
  traincheck-collect --output-dir trace -- torchrun --nproc-per-node 2 train.py --epochs 2
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of everything before the ``--``."""
    parser = argparse.ArgumentParser(
        prog="traincheck-collect",
        usage="%(prog)s --pyscript FILE [options] [-- ARGS]\n"
        "       %(prog)s [options] -- LAUNCHER ...",
        description="Run a training script, unchanged, and record what its training does.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # A config file decides where the command line is silent: no default hides it.
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pyscript",
        metavar="FILE",
        help="the script to run; without it, what follows -- is a command that launches scripts",
    )
    parser.add_argument(
        "--pymodule", metavar="MODULE", help="the module to run, as python -m does, in its place"
    )
    parser.add_argument(
        "--launched", dest="is_launched", action="store_true", help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--models-to-track",
        metavar="NAME",
        nargs="+",
        help="variables of the script that hold the models (default: every model that trains)",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="where the trace goes (default: traincheck_<script>_trace_<time>)",
    )
    parser.add_argument(
        "--invariants",
        metavar="FILE",
        nargs="+",
        help="record only what these invariants need (default: everything)",
    )
    parser.add_argument(
        "--modules-to-instr",
        metavar="PKG",
        nargs="+",
        help="also record the functions of these packages",
    )
    parser.add_argument(
        "--sampling-interval",
        metavar="N",
        type=int,
        help="record one step in N (default: 1, every step)",
    )
    parser.add_argument(
        "--warm-up-steps",
        metavar="N",
        type=int,
        help="record the first N steps in any case (default: 0)",
    )
    parser.add_argument(
        "--config",
        metavar="YAML",
        help=f"a file with these options as keys: {', '.join(KEYS)}; the command line wins",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def parse_options(arguments: Sequence[str]) -> CollectOptions:
    """Return the options that the command line *arguments* give.

    Raises:
        ConfigError: an option, or the config file, makes no sense.
        SystemExit: argparse has printed help, the version or an error.
    """
    own, script_arguments = _split(arguments)
    given = vars(build_parser().parse_args(own))
    config = given.pop("config", None)
    values = _read_config(config) if config is not None else {}
    values.update({name: _tuple_of(value) for name, value in given.items()})
    if script_arguments is not None:
        values["args"] = tuple(script_arguments)
    if "pyscript" in values and "pymodule" in values:
        raise ConfigError("expected --pyscript or --pymodule, got both; name what is to be run")
    if not any(name in values for name in ("pyscript", "pymodule", "args")):
        raise ConfigError(
            "expected a script to run, got none; name it with --pyscript FILE, before any --, or "
            "a launcher after --"
        )
    for name, minimum in _MINIMA.items():
        if values.get(name, minimum) < minimum:
            raise ConfigError(
                f"expected {_option(name)} to be at least {minimum}, got {values[name]}; correct it"
            )
    return CollectOptions(**values)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    arguments = list(arguments)
    if "--" not in arguments:
        return arguments, None
    border = arguments.index("--")
    return arguments[:border], arguments[border + 1 :]


def _tuple_of(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_config(path: str) -> dict[str, Any]:
    # Loaded where a file is given: the others start without it.
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"expected a readable config file, but {path} gives: {error.strerror}; check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"expected YAML in {path}, got: {reason}; correct it") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"expected options by name in {path}, got {type(content).__name__}; "
            f"write lines such as 'pyscript: train.py'"
        )
    return {name: _checked(path, name, value) for name, value in _known(path, content).items()}


def _known(path: str, content: Mapping[Any, Any]) -> dict[str, Any]:
    values = {str(key).replace("-", "_"): value for key, value in content.items()}
    unknown = sorted(set(values) - set(KEYS))
    if unknown:
        raise ConfigError(
            f"{path}: unknown option{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
            f"the options are {', '.join(KEYS)}"
        )
    return {name: value for name, value in values.items() if value is not None}


def _checked(path: str, name: str, value: Any) -> Any:
    if name in _MINIMA:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{path}: expected a whole number as {name}, got {value!r}")
        return value
    if name in _LISTS:
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, (list, dict)) for item in items):
            raise ConfigError(f"{path}: expected a list of words as {name}, got {value!r}")
        # Arguments such as 0.1 or 64 are words to the script.
        return tuple(str(item) for item in items)
    if not isinstance(value, str):
        raise ConfigError(f"{path}: expected text as {name}, got {value!r}")
    return value
