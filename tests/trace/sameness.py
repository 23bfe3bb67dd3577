"""Says whether two windows, over two catalogs, tell the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from traincheck_plugin.events import CALL_COLUMNS, Frame, Window
from traincheck_plugin.trace.schema import CATALOG_OF_ATTRIBUTES, CATALOG_OF_CALLS


def texts(codes: np.ndarray, interner: Any) -> list[str | None]:
    return [None if code < 0 else interner[int(code)] for code in codes]


def assert_same_windows(found: Sequence[Window], expected: Sequence[Window]) -> None:
    assert [w.index for w in found] == [w.index for w in expected]
    for one, other in zip(found, expected, strict=True):
        assert_same_window(one, other)


def assert_same_window(found: Window, expected: Window) -> None:
    assert (found.index, found.rank, found.observed) == (
        expected.index,
        expected.rank,
        expected.observed,
    )
    for name, dtype in CALL_COLUMNS.items():
        column, wanted = getattr(found.calls, name), getattr(expected.calls, name)
        assert column.dtype == dtype
        part = CATALOG_OF_CALLS.get(name)
        if part is None:
            np.testing.assert_array_equal(column, wanted)
        else:
            assert texts(column, getattr(found.catalog, part)) == texts(
                wanted, getattr(expected.catalog, part)
            )
    for part in ("apis", "contexts"):
        for code in np.unique(getattr(found.calls, part[:-1])):
            ours, theirs = (getattr(w.catalog, part)[int(code)] for w in (found, expected))
            assert ours == theirs
    assert len(found.frames) == len(expected.frames)
    for frame, wanted in zip(found.frames, expected.frames, strict=True):
        assert_same_frame(frame, wanted, found, expected)


def assert_same_frame(frame: Frame, wanted: Frame, found: Window, expected: Window) -> None:
    for name in ("call", "phase", "sequence", "context"):
        assert getattr(frame, name) == getattr(wanted, name)
    assert found.catalog.contexts[frame.context] == expected.catalog.contexts[wanted.context]
    assert frame.variables.dtype == np.int32
    np.testing.assert_array_equal(frame.variables, wanted.variables)
    for code in frame.variables.tolist():
        assert found.catalog.variables[code] == expected.catalog.variables[code]
    assert set(frame.columns) == set(wanted.columns)
    for name, column in frame.columns.items():
        assert column.dtype == wanted.columns[name].dtype
        part = CATALOG_OF_ATTRIBUTES.get(name)
        if part is None:
            np.testing.assert_array_equal(column, wanted.columns[name])  # NaN equals NaN
        else:
            assert texts(column, getattr(found.catalog, part)) == texts(
                wanted.columns[name], getattr(expected.catalog, part)
            )
