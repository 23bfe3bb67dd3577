"""The callback of runs that are watched because the environment says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from traincheck_lightning.callback import TrainCheckCallback
from traincheck_plugin.recorder.recorder import is_recording


class EnvironmentCallback(TrainCheckCallback):
    """A `TrainCheckCallback` that nobody wrote into the code.

    It leaves the watching to one that somebody did, or to whatever else records this process, and
    keeps nothing in checkpoints: Lightning would ask a resumed run for the callback.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def _yields(self, callbacks: Sequence[Any]) -> bool:
        return any(
            isinstance(one, TrainCheckCallback) and not isinstance(one, EnvironmentCallback)
            for one in callbacks
        ) or (is_recording() and not self._monitor.is_watching)
