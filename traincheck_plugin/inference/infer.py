"""Infers invariants from reference runs: propose, label, learn when, keep what is proven.

Two passes over every rank of every run: the first proposes hypotheses, the second labels their
examples. Both run rank by rank and add up, so that an engine can share them out.

What the reference proves is believed of its own pipeline. It is believed of every pipeline where
enough different ones showed it, in the reference or in the corpus, and none refuted it. Such laws
are kept, too, where the reference had no occasion to show them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from traincheck_plugin.checker.ranks import steps_of
from traincheck_plugin.engine import Engine, LocalEngine
from traincheck_plugin.events import Window
from traincheck_plugin.inference.corpus import NO_CORPUS, Corpus, bundled_corpus, is_general
from traincheck_plugin.inference.preconditions import learn
from traincheck_plugin.inference.tally import Kind, Kinds, Occurrences, Tally
from traincheck_plugin.invariants.model import (
    SEVERITIES,
    APIParam,
    Evidence,
    Hypothesis,
    Invariant,
    Pipeline,
    Scope,
)
from traincheck_plugin.invariants.precondition import Precondition
from traincheck_plugin.invariants.similarity import SAME_PIPELINE, pipeline_of, similarity
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Examples,
    Monitor,
    Relation,
    no_explanation,
)
from traincheck_plugin.relations.registry import relations as known_relations
from traincheck_plugin.trace.reader import RankTrace, Run, open_run

Progress = Callable[[str, float], None]
T = TypeVar("T")
R = TypeVar("R")

MIN_OCCURRENCES = 3
"""Below, a rule is not even kept: three in a row is the least that is no coincidence."""

STRONG_OCCURRENCES = 10
"""Below, a rule is kept as `info`: with 95 % confidence it may fail in a quarter of all cases."""

EARLY_OCCURRENCES = 2 * STRONG_OCCURRENCES
"""So many confirm each other, where a phase of the run was over before its last part began."""

HELD_OUT = 1 / 3
"""The last part of each run: rules are learned without it and must hold on it."""

MIN_PIPELINES = 3
"""What fewer different pipelines show may be a habit of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceResult:
    """What was inferred.

    Attributes:
        invariants: gravest first.
        tallies: the hypotheses that were tested, and the examples of each.
        generals: the most general name of each API that was called.
        num_windows, num_calls: size of the reference.
        notes: what the user should know about the reference.
    """

    invariants: tuple[Invariant, ...]
    tallies: Mapping[Hypothesis, Tally]
    generals: Mapping[str, str]
    num_windows: int
    num_calls: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One rank of one run, or (None) all of them side by side, as a worker needs it."""

    path: str
    rank: int | None
    relations: tuple[str, ...]

    def stretches(self, problems: list[str] | None = None) -> Iterator[Window]:
        """Yield the windows, joined; *problems* gets what could not be read of a rank."""
        if self.rank is None:
            yield from steps_of(open_run(self.path).ranks)
            return
        trace = self._trace()
        yield from trace.stretches()
        if problems is not None:
            problems += trace.problems

    @property
    def is_success(self) -> bool:
        """Whether the rank did all that it was meant to do."""
        return self.rank is not None and self._trace().is_success

    def _trace(self) -> RankTrace:
        return next(trace for trace in open_run(self.path).ranks if trace.rank == self.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """What the first pass tells about one rank."""

    hypotheses: tuple[Hypothesis, ...]
    generals: Mapping[str, str]
    pipeline: Pipeline
    num_windows: int
    num_calls: int
    num_steps: int
    problems: tuple[str, ...]


def infer(
    runs: Sequence[Run],
    *,
    relations: Sequence[Relation] | None = None,
    corpus: Corpus | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> InferenceResult:
    """Infer invariants from healthy runs.

    Args:
        runs: the reference; more and more varied runs give stronger evidence.
        relations: kinds of rules to look for; all of them when None.
        corpus: what is known of other healthy pipelines; None for what the package brings along.
        progress: called with what is being done and the part of it that is done.
        engine: where to work; None for this process.

    Raises:
        TraceError: a trace cannot be read.
    """
    chosen = tuple(r.name for r in relations) if relations is not None else tuple(known_relations())
    known = known_relations()
    alone = tuple(name for name in chosen if not known[name].is_across_ranks)
    across = tuple(name for name in chosen if known[name].is_across_ranks)
    parts = [
        _Part(path=str(run.path), rank=trace.rank, relations=alone)
        for run in runs
        for trace in run.ranks
    ]
    num_ranks = len(parts)
    if across:
        parts += [
            _Part(path=str(run.path), rank=None, relations=across)
            for run in runs
            if len(run.ranks) > 1
        ]
    report = progress or (lambda what, part: None)
    engine = engine or LocalEngine()
    surveys = _map(engine, _survey, parts, partial(report, "proposing hypotheses"))
    known_laws = bundled_corpus() if corpus is None else corpus
    if not any(survey.num_steps for survey in surveys):
        known_laws = NO_CORPUS
    proposed = dict.fromkeys(h for survey in surveys for h in survey.hypotheses)
    # What other pipelines showed may not have come up in this reference, or may be refuted by it.
    looked_for = {name for part in parts for name in part.relations}
    hypotheses = tuple(proposed | dict.fromkeys(h for h in known_laws if h.relation in looked_for))
    work = [
        (part, hypotheses, survey.num_windows) for part, survey in zip(parts, surveys, strict=True)
    ]
    tallies = [Tally() for _ in hypotheses]
    for result in _map(engine, _label, work, partial(report, "labelling examples")):
        for tally, found in zip(tallies, result, strict=True):
            tally.merge(found)
    # What was put side by side was counted with its ranks.
    parts, surveys = parts[:num_ranks], surveys[:num_ranks]
    generals = {name: general for survey in surveys for name, general in survey.generals.items()}
    kept = _keep(
        dict(zip(hypotheses, tallies, strict=True)),
        {part.path: survey.pipeline for part, survey in zip(parts, surveys, strict=True)},
        known_laws,
        generals,
    )
    return InferenceResult(
        invariants=tuple(sorted(_without_implied(kept, generals), key=_order)),
        tallies=dict(zip(hypotheses, tallies, strict=True)),
        generals=generals,
        num_windows=sum(s.num_windows for s in surveys),
        num_calls=sum(s.num_calls for s in surveys),
        notes=(*(problem for run in runs for problem in run.problems), *_notes(surveys)),
    )


def _map(
    engine: Engine,
    function: Callable[[T], R],
    work: Sequence[T],
    report: Callable[[float], None],
) -> list[R]:
    """Apply *function* to each piece of work, in order, reporting the part that is done."""
    results = []
    report(0.0)
    for result in engine.map(function, work):
        results.append(result)
        report(len(results) / len(work))
    return results


def _survey(part: _Part) -> _Survey:
    problems: list[str] = []
    relations = [known_relations()[name] for name in part.relations]
    proposers = [relation.proposer() for relation in relations]
    script = open_run(part.path).manifest.script
    catalog = pipeline = None
    num_windows = num_calls = 0
    steps: set[int] = set()
    for stretch in part.stretches(problems):
        catalog = stretch.catalog
        num_windows += stretch.num_parts
        num_calls += len(stretch.calls)
        steps.update(stretch.steps)
        if pipeline is None and steps:
            pipeline = pipeline_of(catalog, script, stretch)
        for relation, proposer in zip(relations, proposers, strict=True):
            for window in relation.windows(stretch):
                proposer.observe(window)
    return _Survey(
        hypotheses=tuple(h for proposer in proposers for h in proposer.hypotheses()),
        generals={api.name: api.general for api in catalog.apis} if catalog else {},
        pipeline=pipeline or (pipeline_of(catalog, script) if catalog else Pipeline()),
        num_windows=num_windows,
        num_calls=num_calls,
        num_steps=len(steps),
        problems=tuple(f"{part.path}: {problem}" for problem in problems),
    )


def _label(work: tuple[_Part, tuple[Hypothesis, ...], int]) -> list[Tally]:
    part, hypotheses, num_windows = work
    tallies = [Tally() for _ in hypotheses]
    known = known_relations()
    watched: list[tuple[Relation, Monitor, Tally]] = [
        (known[h.relation], known[h.relation].monitor(h.params), tally)
        for h, tally in zip(hypotheses, tallies, strict=True)
        if h.relation in part.relations
    ]
    first = 0
    is_whole = True
    kinds: Kinds | None = None
    for stretch in part.stretches():
        kinds = kinds or Kinds(stretch.catalog.contexts)
        positions = np.arange(first, first + stretch.num_parts)
        first += stretch.num_parts
        held_out = positions >= num_windows * (1 - HELD_OUT)
        is_whole &= stretch.observed
        for relation, monitor, tally in watched:
            examples = _observe(relation, monitor, stretch)
            if len(examples):
                tally.add(part.path, examples, kinds, held_out)
    if kinds is not None and is_whole and part.is_success:
        for _, monitor, tally in watched:
            examples = monitor.finish()
            if len(examples):
                tally.add(part.path, examples, kinds, np.ones(1, np.bool_))
    return tallies


def _observe(relation: Relation, monitor: Monitor, stretch: Window) -> Examples:
    """Return the examples of a stretch, also of a monitor that gets its windows one by one."""
    if relation.takes_stretches or stretch.joint is None:
        return monitor.observe(stretch)
    found = [
        (position, examples)
        for position, window in enumerate(stretch.parts)
        if len(examples := monitor.observe(window))
    ]
    if not found:
        return NO_EXAMPLES
    return Examples(
        **{
            name: np.concatenate([getattr(examples, name) for _, examples in found])
            for name in ("holds", "context", "source", "sequence", "time_ns")
        },
        explain=no_explanation,
        position=np.repeat(
            [position for position, _ in found], [len(examples) for _, examples in found]
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proof:
    """When a hypothesis holds, and how often it did."""

    precondition: Precondition
    kinds: Sequence[Kind]
    occurrences: Occurrences


def _prove(hypothesis: Hypothesis, tally: Tally) -> _Proof | None:
    regime = known_relations()[hypothesis.relation].regime(hypothesis.params)
    learned = learn(tally, regime)
    if learned is None:
        return None
    precondition, kinds = learned
    occurrences = tally.occurrences(kinds)
    if occurrences.number < MIN_OCCURRENCES or occurrences.number == occurrences.held_out:
        return None
    return _Proof(precondition=precondition, kinds=kinds, occurrences=occurrences)


def _keep(
    tallies: Mapping[Hypothesis, Tally],
    pipelines: Mapping[str, Pipeline],
    corpus: Corpus,
    generals: Mapping[str, str],
) -> dict[Hypothesis, list[Invariant]]:
    """Return the hypotheses that the evidence proves, as invariants.

    Args:
        tallies: the examples of the reference.
        pipelines: that of each run of the reference.
        corpus: what is known of other pipelines.
        generals: the general name of each API. What is true of one class of optimizers alone is a
            habit of those who use it: only the general form can be a law.
    """
    kept: dict[Hypothesis, list[Invariant]] = {}
    group_of_run = _groups(pipelines)
    seen = tuple(dict.fromkeys(pipelines.values()))
    for hypothesis, tally in tallies.items():
        own = _prove(hypothesis, tally)
        known = corpus.get(hypothesis)
        if own is None and (known is None or tally.refuted_by()):
            continue
        own_runs = own.occurrences.runs if own is not None else frozenset()
        num_pipelines = len({group_of_run[run] for run in own_runs})
        total = tally
        shared: _Proof | None = own
        if known is not None:
            total = Tally()
            total.merge(tally)
            total.merge(known)
            shared = _prove(hypothesis, total)
            num_pipelines = max(num_pipelines, len(known.occurrences(list(known.counts)).runs))
        is_shared = (
            num_pipelines >= MIN_PIPELINES
            and is_general(hypothesis)
            and in_general(hypothesis, generals) == hypothesis
        )
        invariants = []
        if shared is not None and is_shared:
            invariants.append(_invariant(hypothesis, total, shared, "universal", seen))
        is_covered = (
            own is not None
            and shared is not None
            and is_shared
            and set(own.kinds) <= set(shared.kinds)
        )
        if own is not None and not is_covered:
            # A rule of one program of several is not believed of the others.
            showed = tuple(dict.fromkeys(pipelines[run] for run in pipelines if run in own_runs))
            invariants.append(_invariant(hypothesis, tally, own, "pipeline", showed))
        if invariants:
            kept[hypothesis] = invariants
    return kept


def _invariant(
    hypothesis: Hypothesis,
    tally: Tally,
    proof: _Proof,
    scope: Scope,
    pipelines: tuple[Pipeline, ...],
) -> Invariant:
    relation = known_relations()[hypothesis.relation]
    occurrences = proof.occurrences
    positive, negative = tally.total()
    enough = STRONG_OCCURRENCES if occurrences.held_out else EARLY_OCCURRENCES
    strong = occurrences.number >= enough
    return Invariant(
        relation=hypothesis.relation,
        params=hypothesis.params,
        precondition=proof.precondition,
        severity=relation.severity(hypothesis.params) if strong else "info",
        scope=scope,
        evidence=Evidence(
            num_positive_examples=positive,
            num_negative_examples=negative,
            num_occurrences=occurrences.number,
            num_held_out=occurrences.held_out,
            num_runs=len(occurrences.runs),
        ),
        pipelines=pipelines,
        text_description=relation.describe(hypothesis.params),
    )


def _groups(pipelines: Mapping[str, Pipeline]) -> dict[str, str]:
    """Return for each run the first of those that are, by way of others, of the same pipeline."""
    groups: dict[str, str] = {}
    for run, pipeline in pipelines.items():
        same = {
            group
            for other, group in groups.items()
            if similarity(pipeline, pipelines[other]) >= SAME_PIPELINE
        }
        groups[run] = min(same, default=run)
        for other, group in groups.items():
            if group in same:
                groups[other] = groups[run]
    return groups


def in_general(hypothesis: Hypothesis, generals: Mapping[str, str]) -> Hypothesis:
    """Return the hypothesis about the most general names of its APIs."""
    params = tuple(
        replace(p, api_full_name=generals.get(p.api_full_name, p.api_full_name))
        if isinstance(p, APIParam)
        else p
        for p in hypothesis.params
    )
    return replace(hypothesis, params=params)


def _without_implied(
    kept: Mapping[Hypothesis, Sequence[Invariant]], generals: Mapping[str, str]
) -> list[Invariant]:
    """Drop what another kept invariant says as well."""
    result: list[Invariant] = []
    for hypothesis, invariants in kept.items():
        general = in_general(hypothesis, generals)
        implied_by = known_relations()[hypothesis.relation].implied_by(hypothesis.params)
        if (general != hypothesis and general in kept) or implied_by in kept:
            continue
        result += invariants
    return result


def _order(invariant: Invariant) -> tuple[int, str, str]:
    return (
        -SEVERITIES.index(invariant.severity),
        invariant.relation,
        f"{invariant.text_description} {invariant.params}",
    )


def _notes(surveys: Sequence[_Survey]) -> tuple[str, ...]:
    notes = [problem for survey in surveys for problem in survey.problems]
    steps = sum(survey.num_steps for survey in surveys)
    if steps == 0:
        notes.append("the reference holds no optimizer step: nothing can be learned about training")
    elif steps < STRONG_OCCURRENCES * 3 // 2:
        notes.append(
            f"the reference holds only {steps} training steps: most rules stay at info; "
            "collect at least 20"
        )
    return tuple(notes)
