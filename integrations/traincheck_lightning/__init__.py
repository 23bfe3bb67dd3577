"""Watches training with PyTorch Lightning and Fabric: one callback for ``callbacks=[...]``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traincheck_lightning.callback import TrainCheckCallback

__all__ = ["TrainCheckCallback"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # It needs Lightning, which the entry points must not import before they are asked to watch.
    if name == "TrainCheckCallback":
        from traincheck_lightning.callback import TrainCheckCallback

        return TrainCheckCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
