"""The three ways of learning that the bench judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.default_invariants import bundled, evidence
from traincheck_plugin.inference import infer as inference
from traincheck_plugin.inference.corpus import NO_CORPUS, Corpus
from traincheck_plugin.inference.tally import Tally
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.relations.registry import relations
from traincheck_plugin.trace.reader import open_run

Set = tuple[str, ...]
"""Names of pipelines that are left out together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What the package would bring along: invariants, and the evidence that inference asks."""

    invariants: list[Invariant]
    corpus: Corpus


def learn(paths: Sequence[Path], corpus: Corpus) -> tuple[Invariant, ...]:
    """Return what the traces at *paths* teach together, with what is known of a corpus."""
    return inference.infer([open_run(path) for path in paths], corpus=corpus).invariants


def bundles_without(
    references: Mapping[str, Path], left_out: Sequence[Set], processes: int
) -> Iterator[tuple[Set, Bundle]]:
    """Return what would be bundled, were the corpus without each of some sets.

    The same as inference from all other references, each time; but each trace is read twice only,
    and the counts of all but one set are added up by halves.

    Args:
        references: a trace of each pipeline of the corpus.
        left_out: disjoint sets that make up the corpus.
        processes: how many to use.
    """
    parts = {
        name: inference._Part(path=str(path), rank=0, relations=tuple(relations()))
        for name, path in references.items()
    }
    with ProcessPoolExecutor(processes) as pool:
        surveys = dict(zip(parts, pool.map(inference._survey, parts.values()), strict=True))
        hypotheses = tuple(dict.fromkeys(h for s in surveys.values() for h in s.hypotheses))
        work = [(parts[name], hypotheses, surveys[name].num_windows) for name in parts]
        tallies = dict(zip(parts, pool.map(inference._label, work), strict=True))

    def without(sets: Sequence[Set], others: list[Tally]) -> Iterator[tuple[Set, list[Tally]]]:
        if len(sets) == 1:
            yield sets[0], others
            return
        half = len(sets) // 2
        for inside, outside in ((sets[:half], sets[half:]), (sets[half:], sets[:half])):
            yield from without(inside, _sum([others, *(tallies[n] for s in outside for n in s)]))

    for names, total in without(left_out, [Tally() for _ in hypotheses]):
        rest = {name: survey for name, survey in surveys.items() if name not in names}
        proposed = {h for survey in rest.values() for h in survey.hypotheses}
        known = {h: t for h, t in zip(hypotheses, total, strict=True) if h in proposed}
        pipelines = {parts[name].path: survey.pipeline for name, survey in rest.items()}
        generals = {name: general for s in rest.values() for name, general in s.generals.items()}
        kept = inference._keep(known, pipelines, NO_CORPUS, generals)
        invariants = bundled(inference._without_implied(kept, generals))
        yield names, Bundle(invariants=invariants, corpus=evidence(known, generals))


def _sum(several: Sequence[list[Tally]]) -> list[Tally]:
    result = []
    for counts in zip(*several, strict=True):
        total = Tally()
        for count in counts:
            total.merge(count)
        result.append(total)
    return result
