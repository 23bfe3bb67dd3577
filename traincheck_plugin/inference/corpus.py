"""What the corpus of healthy pipelines showed of each hypothesis: evidence for it and against it.

One reference cannot tell a habit of its pipeline from a law of training. The corpus can: what some
healthy pipeline breaks is a habit. The package brings the tallies of its corpus along, and they add
up with those of a user's reference like those of any other run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from traincheck_plugin.inference.tally import Tally
from traincheck_plugin.invariants.codec_params import decode_param, encode_param
from traincheck_plugin.invariants.model import ConstantParam, Hypothesis, VarNameParam

Corpus = Mapping[Hypothesis, Tally]

NO_CORPUS: Corpus = MappingProxyType({})


def is_general(hypothesis: Hypothesis) -> bool:
    """Return whether a hypothesis speaks of nothing that is one pipeline's own.

    Names of variables are, and so are the values that it compares with.
    """
    return not any(isinstance(p, VarNameParam | ConstantParam) for p in hypothesis.params)


def dump_corpus(tallies: Iterable[tuple[Hypothesis, Tally]], path: Path) -> None:
    """Write what the corpus showed: one JSON object per hypothesis.

    Raises:
        OSError: the file cannot be written.
    """
    lines = sorted(
        json.dumps(
            {
                "relation": hypothesis.relation,
                "params": [encode_param(param) for param in hypothesis.params],
                **tally.to_json(),
            },
            separators=(",", ":"),
        )
        for hypothesis, tally in tallies
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def load_corpus(path: Path) -> Corpus:
    """Read a file that `dump_corpus` wrote.

    Raises:
        OSError: the file cannot be read.
    """
    corpus = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        data = json.loads(line)
        params = tuple(decode_param(param) for param in data["params"])
        corpus[Hypothesis(relation=data["relation"], params=params)] = Tally.from_json(data)
    return corpus


@cache
def bundled_corpus() -> Corpus:
    """Return what the corpus of this package showed."""
    with resources.as_file(resources.files(__package__).joinpath("corpus.jsonl")) as path:
        return MappingProxyType(dict(load_corpus(path)))
