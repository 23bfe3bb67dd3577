"""The options that say where ``traincheck-infer`` and ``traincheck-check`` work."""

from __future__ import annotations

import argparse

from traincheck_plugin.engine import Engine, engine_of


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the *parser* of a command."""
    parser.add_argument(
        "-j",
        "--processes",
        type=_at_least_one,
        metavar="N",
        help="processes to work in (default: 1; with ray: as many as there are CPUs)",
    )
    parser.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="where to work: on this machine, or on a Ray cluster (default: %(default)s)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of the cluster, for --engine ray (default: one is started here)",
    )


def chosen_engine(arguments: argparse.Namespace) -> Engine | None:
    """Return the engine that the *arguments* of a command name; None for this process alone.

    Raises:
        ConfigError: it cannot work.
    """
    is_alone = arguments.engine == "local" and (arguments.processes or 1) == 1
    if is_alone and arguments.ray_address is None:
        return None
    return engine_of(
        arguments.engine, processes=arguments.processes, ray_address=arguments.ray_address
    )


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)
