from __future__ import annotations

import pyarrow as pa
import pytest

from traincheck_plugin.trace.arrays import array_of, valid_of, values_of

COLUMNS = {
    "numbers": (pa.int32(), [3, None, -(2**31), 5, 0, None]),
    "floats": (pa.float64(), [0.5, None, float("inf")]),
    "booleans": (pa.bool_(), [True, None, *[False, True] * 10]),
    "no nulls": (pa.int64(), [1, 2, 3]),
    "only nulls": (pa.int64(), [None, None]),
    "nothing": (pa.bool_(), []),
}


@pytest.mark.parametrize(("kind", "values"), COLUMNS.values(), ids=COLUMNS)
def test_arrays_come_back_also_when_cut(kind, values):
    whole = array_of(values, kind)
    for start in range(len(values) + 1):
        column, expected = whole[start:], values[start:]
        valid = valid_of(column)
        assert valid.tolist() == [value is not None for value in expected]
        there = [value for value in expected if value is not None]
        assert values_of(column)[valid].tolist() == there
