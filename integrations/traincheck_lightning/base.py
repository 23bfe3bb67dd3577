"""The class that a callback derives from: that of the Lightning which the program uses.

``lightning.pytorch`` and ``pytorch_lightning`` are the same code twice, with a `Callback` each.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def callback_base() -> type[Any]:
    """Return the `Callback` of what is imported, of both if both are, else of what is installed.

    Raises:
        ImportError: no Lightning is installed.
    """
    bases = [_callback(package) for package in _PACKAGES if package in sys.modules]
    if not bases and "lightning_fabric" in sys.modules:
        return object  # Fabric alone calls the methods of any object
    for package in _PACKAGES if not bases else ():
        try:
            bases = [_callback(package)]
            break
        except ModuleNotFoundError:
            continue
    if not bases:
        raise ImportError(
            "traincheck_lightning needs Lightning: pip install 'traincheck-plugin[lightning]'"
        )
    return bases[0] if len(bases) == 1 else type("Callback", tuple(bases), {})


def _callback(package: str) -> type[Any]:
    found: type[Any] = importlib.import_module(package).Callback
    return found
