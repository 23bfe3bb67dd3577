"""What calls of schedulers do to the param groups of optimizers."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, VarTypeParam
from traincheck_plugin.relations.lifecycle import completed
from traincheck_plugin.relations.moments import pairs
from traincheck_plugin.vocabulary import Int64

OPTIONS = VarTypeParam(var_type=VAR_TYPES["group"], attr_name="value")


def changed_options(window: Window, rows: Int64) -> list[tuple[int, bool]]:
    """Return the calls that show param groups, and whether they changed an option of one."""
    found: list[tuple[int, bool]] = []
    for both in pairs(window, completed(window, rows), OPTIONS):
        before, after = both.begin.column("value"), both.end.column("value")
        if before.shape == after.shape:
            is_same = (before == after) | (np.isnan(before) & np.isnan(after))
            changed = ~is_same.all(axis=1)
        else:
            changed = np.ones(len(before), np.bool_)
        found += zip(both.begin.calls.tolist(), changed.tolist(), strict=True)
    return sorted(found)
