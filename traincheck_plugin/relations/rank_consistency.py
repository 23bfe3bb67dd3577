"""RankConsistencyRelation: a variable has one value on all ranks after a training step."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Frame, Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    Hypothesis,
    Param,
    Severity,
    VarNameParam,
    VarTypeParam,
)
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.vocabulary import NONE, Array, Bool, Placement, Variable, VariableKind

COMPARED: Mapping[VariableKind, str] = {
    "parameter": "data",
    "slot": "data",
    "buffer": "data",
    "group": "value",
}
"""The attribute of each kind of variable that is compared."""

_KINDS = {VAR_TYPES[kind]: kind for kind in COMPARED}
_NOUNS: Mapping[VariableKind, str] = {
    "parameter": "parameters",
    "slot": "optimizer states",
    "buffer": "buffers",
    "group": "optimizer options",
}

REPLICATED = ("placement", "replicated")
"""Those that something such as DistributedDataParallel replicates, from the first step on."""

EQUAL_BEFORE = ("equal_before", True)
"""Those that changed and were equal on all ranks again: from then on they are to stay so."""

SAME_GRADIENTS = ("gradients_equal", True)
"""Those whose gradients are equal on all ranks, which something averages."""

MAX_RANKS_NAMED = 8


class RankConsistencyRelation(Relation):
    """A variable has the same value on all ranks that hold it, after each training step.

    ``forall steps t, ranks r, s: x(v, r, t) = x(v, s, t)``: for all variables of a type, for those
    that are replicated by what wraps the model, for those that were equal before, for all that
    have gradients, in steps in which each of these is equal on all ranks, or for one. The ranks are
    aligned on the number of the step, whatever they called in it and how often.

    Catches a model that is called past its DistributedDataParallel, so that each rank trains one
    of its own. Cannot see replicas that are all wrong alike, and says nothing of variables that
    are meant to differ: shards, and what is averaged only from time to time.
    """

    name = "RankConsistencyRelation"
    is_across_ranks = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        param = _the(params)
        if isinstance(param, VarNameParam):
            return _Named(param)
        if param.where == (EQUAL_BEFORE,):
            return _EqualBefore(_KINDS[param.var_type])
        if param.where == (SAME_GRADIENTS,):
            return _SameGradients("parameter")
        return _OfType(_KINDS[param.var_type], only_replicated=param.where == (REPLICATED,))

    def describe(self, params: tuple[Param, ...]) -> str:
        param = _the(params)
        if isinstance(param, VarNameParam):
            return f"`{param.var_name}` is equal on all ranks after each step"
        nouns = _NOUNS[_KINDS[param.var_type]]
        if param.where == (EQUAL_BEFORE,):
            return f"{nouns} that were updated alike on all ranks stay equal"
        if param.where == (SAME_GRADIENTS,):
            return f"{nouns} are equal on all ranks where all gradients are"
        which = "replicated " if param.where else ""
        return f"{which}{nouns} are equal on all ranks after each step"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        kind = _KINDS[_the(params).var_type]
        # What tells a gradient that was not averaged from an update that differs, and shards apart.
        pairs: set[tuple[VariableKind, str]] = {
            ("parameter", "placement"),
            ("parameter", "grad_norm"),
        }
        if kind != "buffer":
            pairs.add((kind, COMPARED[kind]))
            return Plan(functions=frozenset(), attributes={"step": frozenset(pairs)})
        return Plan(
            functions=frozenset(),
            attributes={"step": frozenset(pairs), "forward": frozenset({("buffer", "data")})},
        )

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning" if _KINDS[_the(params).var_type] in ("buffer", "group") else "critical"


def _the(params: tuple[Param, ...]) -> VarTypeParam | VarNameParam:
    """Return the one parameter of a hypothesis.

    Raises:
        InvariantError: there is another number of them, or it is nothing that can be compared.
    """
    if len(params) == 1 and isinstance(params[0], VarTypeParam | VarNameParam):
        param = params[0]
        where = param.where if isinstance(param, VarTypeParam) else ()
        wheres = [(), (REPLICATED,), (EQUAL_BEFORE,)]
        if param.var_type == VAR_TYPES["parameter"]:
            wheres.append((SAME_GRADIENTS,))
        if (
            param.var_type in _KINDS
            and param.attr_name == COMPARED[_KINDS[param.var_type]]
            and where in wheres
        ):
            return param
    raise InvariantError(
        f"{RankConsistencyRelation.name} expects one VarTypeParam or VarNameParam about "
        f"{', '.join(f'{attribute} of {VAR_TYPES[k]}' for k, attribute in COMPARED.items())}, "
        f"got {params}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """The variables of one kind on all ranks after one step; arrays by code of the variable.

    Attributes:
        frames: one for each rank.
        shown: whether at least two ranks have the variable.
        differs: whether they have different values.
        low: what changes with the least value, as bits.
        local: whether a rank says that it is meant to differ.
        replicated: whether all that have it say that it is replicated.
    """

    frames: Sequence[Frame]
    shown: Bool
    differs: Bool
    low: Array
    local: Bool
    replicated: Bool

    @classmethod
    def of(cls, window: Window, kind: VariableKind) -> _Comparison | None:
        """Compare what the ranks of *window* show; None where fewer than two show anything."""
        attribute = COMPARED[kind]
        frames = [
            frame
            for frame in window.frames
            if attribute in frame.columns and window.kind(frame) == kind
        ]
        if len(frames) < 2:
            return None
        size = max(int(frame.variables.max()) for frame in frames) + 1
        shown, differs, local = np.zeros((3, size), np.bool_)
        replicated = np.ones(size, np.bool_)
        lows = np.zeros(size, np.uint64)
        for replicas in _replicas(window, frames):
            count = np.zeros(size, np.int32)
            low = np.full(size, np.iinfo(np.uint64).max, np.uint64)
            high = np.zeros(size, np.uint64)
            for frame in replicas:
                codes, values = frame.variables, frame.columns[attribute].view(np.uint64)
                count[codes] += 1
                low[codes] = np.minimum(low[codes], values)
                high[codes] = np.maximum(high[codes], values)
                placement = frame.columns.get("placement")
                if placement is None:
                    replicated[codes] = False
                else:
                    local[codes] |= placement == Placement.LOCAL
                    replicated[codes] &= placement == Placement.REPLICATED
            several = count >= 2
            shown |= several
            differs |= several & (low != high)
            # Tells whether any group of replicas changed.
            lows[several] = lows[several] * np.uint64(3) + low[several]
        return cls(
            frames=frames,
            shown=shown,
            differs=differs,
            low=lows,
            local=local,
            replicated=replicated & shown,
        )


def _replicas(window: Window, frames: Sequence[Frame]) -> list[list[Frame]]:
    """Return the frames of ranks that are data-parallel replicas of one another, together.

    All of them where it is not known how the ranks share the work.
    """
    groups: dict[tuple[int, int], list[Frame]] = {}
    for frame in frames:
        context = window.catalog.contexts[frame.context]
        place = context.tensor_parallel, context.pipeline_parallel
        groups.setdefault(place, []).append(frame)
    return list(groups.values())


class _RanksMonitor(Monitor):
    """Labels one step: whether the variables that it is about are equal on all ranks."""

    def __init__(self, kind: VariableKind) -> None:
        self._kind = kind

    @abstractmethod
    def _subjects(self, window: Window, comparison: _Comparison) -> Bool:
        """Return which variables, by code, have to be equal."""

    def observe(self, window: Window) -> Examples:
        comparison = _Comparison.of(window, self._kind)
        if comparison is None:
            return NO_EXAMPLES
        subjects = self._subjects(window, comparison)
        if not subjects.any():
            return NO_EXAMPLES
        failed = subjects & comparison.differs
        frame = comparison.frames[0]
        explanation = Explanation(message="")
        if failed.any():
            groups = _first_that_disagree(
                [
                    _groups(window, replicas, failed, COMPARED[self._kind])
                    for replicas in _replicas(window, comparison.frames)
                ]
            )
            frame = groups[-1].frame
            explanation = self._explain(window, groups, np.flatnonzero(failed), int(subjects.sum()))
        row = window.row_of_call[frame.call]
        return Examples(
            holds=np.array([not failed.any()]),
            context=np.array([frame.context], np.int32),
            source=window.calls.source[[row]],
            sequence=np.array([frame.sequence], np.int64),
            time_ns=window.calls.end_ns[[row]],
            explain=lambda _: explanation,
        )

    def _explain(
        self, window: Window, groups: Sequence[_Group], failed: Array, total: int
    ) -> Explanation:
        variables = [window.catalog.variables[int(code)] for code in failed]
        nouns = _NOUNS[self._kind]
        api = window.catalog.apis[int(window.calls.api[window.row_of_call[groups[0].frame.call]])]
        names = sorted(
            # The state of an optimizer goes the way of its parameter.
            {v.name.rpartition(".")[0] if v.kind == "slot" else v.label for v in variables}
        )
        who = _who(groups)
        what = (
            describe_variables(variables)
            if self._kind in ("parameter", "buffer") or len(variables) <= 3
            else f"{len(variables)} {nouns} (`{variables[0].label}`, ...)"
        )
        return Explanation(
            message=(
                f"{len(failed)} of {total} {nouns} differ between ranks after {short(api.name)}: "
                f"{who}"
            ),
            cause=Cause(
                fact="replicas differ",
                subjects=tuple(names),
                text=f"{what} differ between ranks: {who}{self._reason(window, variables)}",
            ),
        )

    def _reason(self, window: Window, variables: Sequence[Variable]) -> str:
        """Return whether what differs came with the gradients; "" where that is not known."""
        if self._kind != "parameter":
            return ""
        codes = [window.catalog.variables.find(variable) for variable in variables]
        frames = [frame for frame in window.frames if "grad_norm" in frame.columns]
        shown = [
            frame.columns["grad_norm"][np.isin(frame.variables, codes)].tobytes()
            for frame in frames
        ]
        if len(shown) < 2:
            return ""
        if len(set(shown)) == 1:
            return "; their gradients were equal: the updates, or the values before them, differ"
        return (
            "; their gradients differed already: they were not averaged over the ranks, or were "
            "changed on some rank afterwards"
        )


class _OfType(_RanksMonitor):
    def __init__(self, kind: VariableKind, *, only_replicated: bool) -> None:
        super().__init__(kind)
        self._only_replicated = only_replicated

    def _subjects(self, window: Window, comparison: _Comparison) -> Bool:
        if self._only_replicated:
            return comparison.replicated
        return comparison.shown & ~comparison.local


class _SameGradients(_RanksMonitor):
    """Equal gradients of equal models tell nothing new; those of different ones were averaged."""

    def _subjects(self, window: Window, comparison: _Comparison) -> Bool:
        return comparison.shown & ~comparison.local & _same_gradients(window, len(comparison.shown))


def _same_gradients(window: Window, size: int) -> Bool:
    """Return which parameters have gradients, by code; none where one differs between ranks."""
    frames = [frame for frame in window.frames if "grad_norm" in frame.columns]
    found = np.zeros(size, np.bool_)
    for replicas in _replicas(window, frames):
        norms = np.full((len(replicas), size), np.nan)
        for row, frame in zip(norms, replicas, strict=True):
            known = frame.variables < size
            row[frame.variables[known]] = frame.columns["grad_norm"][known]
        has = (norms > 0).all(axis=0) & np.isfinite(norms).all(axis=0)
        same = has & (norms == norms[0]).all(axis=0)
        # A single number may be the same whatever the data is, as that of the last bias is.
        if len(replicas) > 1 and (same == has).all() and len(np.unique(norms[0, same])) > 1:
            found |= same
    return found


class _Named(_RanksMonitor):
    def __init__(self, param: VarNameParam) -> None:
        super().__init__(_KINDS[param.var_type])
        self._name = param.var_name
        self._scanned = 0
        self._code = NONE

    def _subjects(self, window: Window, comparison: _Comparison) -> Bool:
        variables = window.catalog.variables
        while self._code == NONE and self._scanned < len(variables):
            variable = variables[self._scanned]
            if variable.kind == self._kind and variable.name == self._name:
                self._code = self._scanned
            self._scanned += 1
        subjects = np.zeros_like(comparison.shown)
        if NONE != self._code < len(subjects):
            subjects[self._code] = comparison.shown[self._code]
        return subjects


class _EqualBefore(_RanksMonitor):
    """Equal once is no evidence: shards may begin with the same zeros. An update in common is.

    What differed before is averaged from time to time, if it is ever equal again.
    """

    def __init__(self, kind: VariableKind) -> None:
        super().__init__(kind)
        self._seen = np.empty(0, np.bool_)
        self._first = np.empty(0, np.uint64)
        self._joined = np.empty(0, np.bool_)
        self._differed = np.empty(0, np.bool_)
        self._local_names: set[str] = set()

    def _subjects(self, window: Window, comparison: _Comparison) -> Bool:
        size = len(comparison.shown)
        more = max(0, size - len(self._seen))
        self._seen = np.append(self._seen, np.zeros(more, np.bool_))
        self._first = np.append(self._first, np.zeros(more, np.uint64))
        self._joined = np.append(self._joined, np.zeros(more, np.bool_))
        self._differed = np.append(self._differed, np.zeros(more, np.bool_))
        # Views: what is written to them stays.
        seen, first, joined = self._seen[:size], self._first[:size], self._joined[:size]
        allowed = comparison.shown & ~self._local(window, comparison)
        subjects: Bool = joined & allowed
        self._differed[:size] |= comparison.differs & ~joined
        joined |= allowed & seen & ~self._differed[:size] & (first != comparison.low)
        new = comparison.shown & ~seen
        first[new] = comparison.low[new]
        seen |= new
        return subjects

    def _local(self, window: Window, comparison: _Comparison) -> Bool:
        """Return what is meant to differ: shards, and the states of their optimizer."""
        if self._kind != "slot":
            return comparison.local
        variables = window.catalog.variables
        for frame in window.frames:
            placement = frame.columns.get("placement")
            if placement is not None:
                codes = frame.variables[placement == Placement.LOCAL]
                self._local_names |= {variables[int(code)].name for code in codes}
        local = comparison.local.copy()
        if self._local_names:
            for code in np.flatnonzero(comparison.shown):
                name = variables[int(code)].name.rpartition(".")[0]
                local[code] = name in self._local_names
        return local


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Ranks that agree.

    Attributes:
        ranks: in order.
        frame: of the first of them.
    """

    ranks: tuple[int, ...]
    frame: Frame


def _groups(window: Window, frames: Sequence[Frame], failed: Bool, attribute: str) -> list[_Group]:
    """Return the ranks that agree about the variables that *failed*, the largest group first."""
    members: dict[bytes, list[Frame]] = {}
    for frame in frames:
        rows = frame.variables < len(failed)
        rows &= failed[np.where(rows, frame.variables, 0)]
        if rows.any():
            told = frame.variables[rows].tobytes() + frame.columns[attribute][rows].tobytes()
            members.setdefault(told, []).append(frame)
    sizes = Counter({told: len(group) for told, group in members.items()})
    return [
        _Group(
            ranks=tuple(window.catalog.contexts[f.context].rank for f in members[told]),
            frame=members[told][0],
        )
        for told, _ in sizes.most_common()
    ]


def _first_that_disagree(several: Sequence[list[_Group]]) -> list[_Group]:
    return next(groups for groups in several if len(groups) > 1)


def _who(groups: Sequence[_Group]) -> str:
    majority, *others = groups
    if len(majority.ranks) == 1 or (others and len(others[0].ranks) == len(majority.ranks)):
        if all(len(group.ranks) == 1 for group in groups):
            return f"{_ranks(sorted(group.ranks[0] for group in groups))} disagree"
        return " disagree with ".join(_ranks(group.ranks) for group in groups)
    minority = sorted(rank for group in others for rank in group.ranks)
    verb = "differs" if len(minority) == 1 else "differ"
    return f"{_ranks(minority)} {verb} from {_ranks(majority.ranks)}"


def _ranks(ranks: Sequence[int]) -> str:
    """Return ``rank 3`` or ``ranks 0-2, 5``."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    texts = [str(a) if a == b else f"{a}-{b}" if b > a + 1 else f"{a}, {b}" for a, b in runs]
    more = len(texts) - MAX_RANKS_NAMED
    text = ", ".join(texts[:MAX_RANKS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


class _Proposer(Proposer):
    """Proposes what was equal on all ranks after every step, and changed.

    A whole type where no variable of it ever differed; else the variables that did not, by name.
    """

    def __init__(self) -> None:
        self._tables: dict[VariableKind, _Table] = {kind: _Table() for kind in COMPARED}
        self._catalog: Catalog | None = None
        self._found: dict[VariableKind, tuple[bool, set[str]]] = {}
        self._replicated = self._has_same_gradients = False
        self._kinds: set[VariableKind] = set()

    def observe(self, window: Window) -> None:
        if window.catalog is not self._catalog:
            self._close()
            self._catalog = window.catalog
        for kind, table in self._tables.items():
            comparison = _Comparison.of(window, kind)
            if comparison is not None:
                self._kinds.add(kind)
                self._replicated |= bool(comparison.replicated.any())
                if kind == "parameter" and not self._has_same_gradients:
                    same = _same_gradients(window, len(comparison.shown))
                    self._has_same_gradients = bool(same.any())
                table.add(comparison)

    def _close(self) -> None:
        """Take over what the run that ends now tells."""
        if self._catalog is None:
            return
        for kind, table in self._tables.items():
            if not table.seen.any():
                continue
            names = {
                self._catalog.variables[int(code)].name
                for code in np.flatnonzero(table.seen & table.moved & ~table.differed)
            }
            is_whole = bool(names) and not table.differed.any()
            before = self._found.get(kind)
            if before is not None:
                is_whole, names = is_whole and before[0], names & before[1]
            self._found[kind] = is_whole, names
            self._tables[kind] = _Table()
        self._catalog = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        self._close()
        params: list[Param] = []
        for kind in COMPARED:
            if kind not in self._kinds:
                continue
            of_type = VarTypeParam(
                var_type=VAR_TYPES[kind], attr_name=COMPARED[kind], quantifier="every"
            )
            if kind == "parameter" and self._replicated:
                params.append(_where(of_type, REPLICATED))
            params.append(_where(of_type, EQUAL_BEFORE))
            if kind == "parameter" and self._has_same_gradients:
                params.append(_where(of_type, SAME_GRADIENTS))
            is_whole, names = self._found.get(kind, (False, set()))
            if is_whole:
                params.append(of_type)
            else:
                params += [
                    VarNameParam(var_name=name, var_type=VAR_TYPES[kind], attr_name=COMPARED[kind])
                    for name in sorted(names)
                ]
        return [Hypothesis(relation=RankConsistencyRelation.name, params=(p,)) for p in params]


def _where(param: VarTypeParam, condition: tuple[str, object]) -> VarTypeParam:
    return VarTypeParam(
        var_type=param.var_type,
        attr_name=param.attr_name,
        quantifier=param.quantifier,
        where=(condition,),
    )


class _Table:
    """What became of the variables of one kind so far, by code."""

    def __init__(self) -> None:
        self.seen = np.empty(0, np.bool_)
        self.moved = np.empty(0, np.bool_)
        self.differed = np.empty(0, np.bool_)
        self._first = np.empty(0, np.uint64)

    def add(self, comparison: _Comparison) -> None:
        size = len(comparison.shown)
        more = max(0, size - len(self.seen))
        nothing = np.zeros(more, np.bool_)
        self.seen = np.append(self.seen, nothing)
        self.moved = np.append(self.moved, nothing)
        self.differed = np.append(self.differed, nothing)
        self._first = np.append(self._first, np.zeros(more, np.uint64))
        shown = comparison.shown & ~comparison.local
        new = shown & ~self.seen[:size]
        self._first[:size][new] = comparison.low[new]
        self.seen[:size] |= shown
        self.moved[:size] |= shown & (comparison.low != self._first[:size])
        self.differed[:size] |= shown & comparison.differs
