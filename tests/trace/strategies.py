"""Random runs, as the recorder may tell them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.builders import RunBuilder, tensor
from traincheck_plugin.events import ATTRIBUTES, Window
from traincheck_plugin.vocabulary import Item, Variable

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.sampled_from(["torch.optim.Adam.step", "torch.relu", "größe.λ.⚙", "a\nb\0c"])
KINDS = ["parameter", "buffer", "slot", "group", "module"]

items = st.one_of(
    st.builds(
        tensor,
        path=texts,
        shape=st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
        requires_grad=st.booleans(),
    ),
    st.builds(Item, path=texts, type=texts, value=st.none() | st.booleans() | texts),
)
signatures = st.none() | st.lists(items, max_size=2)

variables = st.builds(
    Variable,
    kind=st.sampled_from(KINDS),
    name=texts,
    owner=texts,
    type=texts,
    module_type=texts,
    shape=st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
)

contexts = st.fixed_dictionaries(
    {
        "step": st.integers(0, 2**40),
        "micro_step": st.integers(0, 2**31 - 1),
        "epoch": st.integers(0, 2**31 - 1),
        "stage": texts,
        "grad_enabled": st.booleans(),
        "autocast": st.sampled_from(["", "torch.bfloat16"]),
        "steps_since_clear": st.integers(-1, 3),
        "scaling": st.sampled_from(["", "scaled", "disabled"]),
        "annotations": st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
    }
)


def columns_of(name: str, length: int) -> st.SearchStrategy[Any]:
    """Return values of the attribute *name* as `RunBuilder.frame` takes them."""
    if name in ("optimizer", "dtype", "grad_dtype"):
        return st.lists(texts, min_size=length, max_size=length)  # "" is none
    return arrays.arrays(np.dtype(ATTRIBUTES[name]), length)


@st.composite
def runs(draw: st.DrawFn, max_windows: int = 5) -> list[Window]:
    run = RunBuilder(rank=3, world_size=5)
    windows = []
    for _ in range(draw(st.integers(0, max_windows))):
        for _ in range(draw(st.integers(0, 3))):
            if draw(st.booleans()):
                context = draw(contexts)
                del context["steps_since_clear"]  # of the call, see below
                run.at(**context)
            with run.calling(
                draw(names),
                object=draw(texts),
                source=draw(texts),
                exception=draw(texts),
                inputs=draw(signatures),
                outputs=draw(signatures),
                thread=draw(st.integers(0, 2)),
                steps_since_clear=draw(st.integers(-1, 3)),
            ):
                for _ in range(draw(st.integers(0, 2))):
                    codes = run.variables(*draw(st.lists(variables, max_size=3)))
                    chosen = draw(st.sets(st.sampled_from(sorted(ATTRIBUTES))))
                    run.frame(
                        draw(st.sampled_from(["begin", "end"])),
                        codes,
                        **{name: draw(columns_of(name, len(codes))) for name in sorted(chosen)},
                    )
                if draw(st.booleans()):
                    run.call(draw(names), source="")
        windows.append(run.window(observed=draw(st.booleans())))
    return windows
