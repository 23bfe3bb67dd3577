"""Cover, lead and containment of calls against naive references."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.api_contain import APIContainRelation
from traincheck_plugin.relations.function_cover import FunctionCoverRelation
from traincheck_plugin.relations.function_lead import FunctionLeadRelation
from traincheck_plugin.vocabulary import Item

A, B, C = (f"package.{name}" for name in "abc")
PARAMS = (APIParam(api_full_name=A), APIParam(api_full_name=B))

sequences = st.lists(st.sampled_from([A, B, C]), max_size=20)
cuts = st.sets(st.integers(0, 20), max_size=6)


def _windows(names: list[str], cut: set[int]) -> list:
    return told([lambda run, n=name: run.call(n) for name in names], sorted(cut))


def _begin(position: int) -> int:
    """Sequence number at which the call at *position* begins: each takes a begin and an end."""
    return 2 * position + 1


def _window(position: int, cut: set[int]) -> int:
    """Number of the window with the call at *position*: each begins before a cut."""
    return sum(1 for start in cut if start <= position)


@given(sequences, cuts)
def test_cover_is_what_the_formula_says(names: list[str], cut: set[int]) -> None:
    expected = []
    fences = [i for i, name in enumerate(names) if name == B]
    for first, second in itertools.pairwise(fences):
        expected.append((_begin(second), A in names[first:second]))
    assert labels(FunctionCoverRelation(), PARAMS, _windows(names, cut)) == expected


STEP = "torch.optim.Adam.step"


@given(st.lists(st.sampled_from([A, B, STEP]), max_size=20), cuts)
def test_what_came_before_the_last_step_does_not_cover(names: list[str], cut: set[int]) -> None:
    expected = []
    fences = [i for i, name in enumerate(names) if name == B]
    for first, second in itertools.pairwise(fences):
        steps = [i for i in range(second) if names[i] == STEP]
        start = max(first, steps[-1] if steps else 0)
        expected.append((_begin(second), A in names[start:second]))
    assert labels(FunctionCoverRelation(), PARAMS, _windows(names, cut)) == expected


BACKWARD, CLIP = "torch.Tensor.backward", "torch.nn.utils.clip_grad_norm_"


@given(st.lists(st.sampled_from([BACKWARD, CLIP, STEP, C]), max_size=20), cuts)
def test_gradients_of_one_backward_are_clipped_in_parts(names: list[str], cut: set[int]) -> None:
    expected = []
    fences = [i for i, name in enumerate(names) if name == CLIP]
    for clip in fences[1:]:
        start = max((i for i in range(clip) if names[i] == STEP), default=0)
        following = (i for i in range(clip, len(names)) if names[i] in (BACKWARD, STEP))
        after = next(following, None)
        if BACKWARD in names[start:clip]:
            expected.append((_window(clip, cut), _begin(clip), True))
        elif after is not None and names[after] == BACKWARD:
            expected.append((_window(after, cut), _begin(clip), False))
    params = (
        APIParam(api_full_name=BACKWARD, role="backward"),
        APIParam(api_full_name=CLIP, role="clip"),
    )
    found = labels(FunctionCoverRelation(), params, _windows(names, cut))
    assert found == [(begin, holds) for _, begin, holds in sorted(expected)]


@given(st.lists(st.sampled_from([BACKWARD, CLIP, STEP]), max_size=20), cuts)
def test_a_step_uses_what_was_clipped_since_the_last_backward(
    names: list[str], cut: set[int]
) -> None:
    expected = []
    for step in [i for i, name in enumerate(names) if name == STEP][1:]:
        start = max((i for i in range(step) if names[i] == BACKWARD), default=0)
        expected.append((_begin(step), CLIP in names[start:step]))
    params = (
        APIParam(api_full_name=CLIP, role="clip"),
        APIParam(api_full_name="torch.optim.Optimizer.step", role="step"),
    )
    assert labels(FunctionCoverRelation(), params, _windows(names, cut)) == expected


def test_a_norm_that_is_measured_is_not_clipped() -> None:
    run = RunBuilder()
    for _ in range(3):
        run.call(STEP)
        run.call(CLIP, inputs=[Item(path="limit", type="str", value="inf")])
        run.call(BACKWARD)
        run.call(CLIP)
    params = (
        APIParam(api_full_name=BACKWARD, role="backward"),
        APIParam(api_full_name=CLIP, role="clip"),
    )
    found = labels(FunctionCoverRelation(), params, [run.window()])
    assert [holds for _, holds in found] == [True] * 3


def test_what_is_clipped_within_a_backward_comes_after_it() -> None:
    run = RunBuilder()
    for _ in range(3):
        with run.calling(BACKWARD):
            run.call(CLIP)
            run.call(STEP)
    params = (
        APIParam(api_full_name=BACKWARD, role="backward"),
        APIParam(api_full_name=CLIP, role="clip"),
    )
    found = labels(FunctionCoverRelation(), params, [run.window()])
    assert [holds for _, holds in found] == [True, True]


@given(sequences, cuts)
def test_lead_is_what_the_formula_says(names: list[str], cut: set[int]) -> None:
    expected = []
    fences = [i for i, name in enumerate(names) if name == A]
    for first, second in itertools.pairwise(fences):
        expected.append((_begin(second), B in names[first:second]))
    assert labels(FunctionLeadRelation(), PARAMS, _windows(names, cut)) == expected


def test_lead_speaks_in_the_context_of_the_call_that_leads() -> None:
    run = RunBuilder()
    run.at(stage="validation")
    run.call(A)
    run.at(stage="training")
    run.call(A)
    window = run.window()
    examples = FunctionLeadRelation().monitor(PARAMS).observe(window)
    assert [window.catalog.contexts[c].stage for c in examples.context] == ["validation"]
    assert examples.holds.tolist() == [False]


def test_calls_inside_a_step_with_a_closure_come_before_it() -> None:
    run = RunBuilder()
    for _ in range(3):
        with run.calling("torch.optim.Adam.step"):
            run.call("torch.Tensor.backward")
    params = (
        APIParam(api_full_name="torch.Tensor.backward"),
        APIParam(api_full_name="torch.optim.Optimizer.step"),
    )
    found = labels(FunctionCoverRelation(), params, [run.window()])
    assert [holds for _, holds in found] == [True, True]


def test_what_was_not_observed_is_not_judged() -> None:
    run = RunBuilder()
    run.call(B)
    first = run.window()
    gap = run.window(observed=False)
    run.call(B)
    last = run.window()
    assert labels(FunctionCoverRelation(), PARAMS, [first, gap, last]) == []


# A call is a name and the calls inside it.
trees = st.recursive(
    st.sampled_from([A, B, C]).map(lambda name: (name, [])),
    lambda children: st.tuples(st.sampled_from([A, B, C]), st.lists(children, max_size=3)),
    max_leaves=8,
)


def _tell(run: RunBuilder, tree: tuple) -> None:
    with run.calling(tree[0]):
        for child in tree[1]:
            _tell(run, child)


def _holds(tree: tuple) -> list[bool]:
    """Return, in order of end, whether each A contains a B at any depth."""

    def has(node: tuple) -> bool:
        return any(child[0] == B or has(child) for child in node[1])

    inner = [holds for child in tree[1] for holds in _holds(child)]
    return inner + ([has(tree)] if tree[0] == A else [])


@given(st.lists(trees, max_size=6), cuts)
def test_containment_is_what_the_formula_says(forest: list, cut: set[int]) -> None:
    windows = told([lambda run, t=tree: _tell(run, t) for tree in forest], sorted(cut))
    expected = [holds for tree in forest for holds in _holds(tree)]
    assert [h for _, h in labels(APIContainRelation(), PARAMS, windows)] == expected


def test_a_call_that_spans_windows_contains_what_earlier_ones_hold() -> None:
    run = RunBuilder()
    run.begin(A)
    run.call(B)
    first = run.window()
    run.end()
    second = run.window()
    found = labels(APIContainRelation(), PARAMS, [first, second])
    assert [holds for _, holds in found] == [True]
