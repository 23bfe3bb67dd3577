"""The entry point that adds a callback to every `Trainer` and `Fabric`, if the environment asks."""

from __future__ import annotations

from typing import Any

from traincheck_plugin.config import Settings


def environment_callbacks() -> list[Any]:
    """Return a callback where ``TRAINCHECK_INVARIANTS`` or ``TRAINCHECK_OUTPUT_DIR`` is set.

    Lightning calls this whenever a `Trainer` or `Fabric` is made. It never raises: that would break
    every program of the Python environment that uses Lightning.
    """
    try:
        settings = Settings.from_environment()
        if settings.disabled or not (settings.invariants or settings.output_dir):
            return []
        from traincheck_lightning.environment import EnvironmentCallback

        return [EnvironmentCallback()]
    except Exception as error:  # noqa: BLE001
        from traincheck_plugin.session.console import say

        say(f"this run is not watched: {type(error).__name__}: {error}")
        return []
