"""Where and when: the step, micro-step, epoch and stage of the run, as interned contexts."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from traincheck_plugin.annotations import META_VARS, STAGE
from traincheck_plugin.catalog import Catalog
from traincheck_plugin.recorder.layout import UNKNOWN, read_layout
from traincheck_plugin.vocabulary import NONE, Context

_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


_SETTLING_STEPS = 3
"""Steps in which it is looked how the training is distributed."""


class ContextTracker:
    """Follows the run and hands out the code of the present context.

    Attributes:
        step: training windows completed, those before a resumed run's start included.
        next_step: what it is when the present window is completed.
        num_steps: training windows completed since the start of this recording.
        micro_step: backward calls completed since the last optimizer step, a skipped one included.
    """

    def __init__(self, catalog: Catalog, rank: int, world_size: int, first_step: int = 0) -> None:
        self._catalog = catalog
        self._rank = rank
        self._world_size = world_size
        self.step = first_step
        self.next_step = first_step + 1
        self.num_steps = 0
        self.micro_step = 0
        self._stage = "init"
        self._saving = 0
        self._scaling = ""
        self._epoch = 0
        self._starts: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._delivered: weakref.ref[Any] | None = None
        self._training_loader: weakref.ref[Any] | None = None
        self._steps: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._codes: dict[tuple[bool, str, int], int] = {}
        self._meta_version = NONE
        self._meta_stage: str | None = None
        self._annotations: tuple[tuple[str, str], ...] = ()
        self._layout = UNKNOWN
        self._layout_read = 0

    def code(self, steps_since_clear: int = NONE) -> int:
        """Return the code of the present context."""
        if META_VARS.version != self._meta_version:
            self._read_annotations()
        grad_enabled = torch.is_grad_enabled()
        autocast = _autocast_dtype() if _any_autocast() else ""
        key = (grad_enabled, autocast, steps_since_clear)
        code = self._codes.get(key)
        if code is None:
            if self._world_size > 1 and self._layout_read < _SETTLING_STEPS:
                self._read_layout()
            layout = self._layout
            code = self._codes[key] = self._catalog.contexts.code(
                Context(
                    rank=self._rank,
                    world_size=self._world_size,
                    step=self.step,
                    micro_step=self.micro_step,
                    epoch=self._epoch,
                    stage=self.stage,
                    grad_enabled=grad_enabled,
                    autocast=autocast,
                    steps_since_clear=steps_since_clear,
                    scaling=self._scaling,
                    annotations=self._annotations,
                    data_parallel=layout.data,
                    tensor_parallel=layout.tensor,
                    pipeline_parallel=layout.pipeline,
                )
            )
        return code

    def at_present_step(self, code: int) -> int:
        """Return the code of context *code* moved to the present step."""
        contexts = self._catalog.contexts
        return contexts.code(replace(contexts[code], step=self.step))

    @property
    def stage(self) -> str:
        """What the script said, else what was detected."""
        if self._meta_stage is not None:
            return self._meta_stage
        return "checkpointing" if self._saving else self._stage

    def enter_stage(self, stage: str) -> None:
        """Note the detected stage of what follows."""
        if stage != self._stage:
            self._stage = stage
            self._codes.clear()

    def enter_scaling(self, scaling: str) -> None:
        """Note what a gradient scaler did to the gradients that the next step uses."""
        if scaling != self._scaling:
            self._scaling = scaling
            self._codes.clear()

    def unscaled(self) -> None:
        """Note that a gradient scaler undoes its scaling, if it scales at all."""
        if self._scaling == "scaled":
            self.enter_scaling("unscaled")

    def saving(self, change: int) -> None:
        """Note that a checkpoint call begins (1) or ends (-1)."""
        self._saving += change
        self._codes.clear()

    def completed_window(self) -> None:
        """Count a training window."""
        self.step = self.next_step
        self.next_step += 1
        self.num_steps += 1
        self._codes.clear()

    def resume_at(self, step: int, *, is_complete: bool) -> None:
        """Count on from *step*: that of the present window, or the next if this *is_complete*."""
        if is_complete:
            self.next_step = step
            return
        self.step = step
        self.next_step = step + 1
        self._codes.clear()

    def completed_backward(self) -> None:
        """Count a micro-batch; the loader that delivered it is the training loader."""
        self.micro_step += 1
        if self._delivered is not None:
            self._training_loader = self._delivered
            self._count_epoch()
        self._codes.clear()

    def completed_step(self, optimizer: Any) -> None:
        """Count a step of *optimizer*."""
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        self.attempted_step()

    def attempted_step(self) -> None:
        """Note a step that was made or skipped: the micro-batches so far are used up."""
        self.micro_step = 0
        self._scaling = ""
        self._codes.clear()

    def steps_since_clear(self, optimizer: Any) -> int:
        """Return the steps of *optimizer* completed since its gradients were last cleared."""
        return self._steps.get(optimizer, 0)

    def cleared(self, optimizer: Any | None) -> None:
        """Note a completed zero_grad of *optimizer*, or of a module (None)."""
        if optimizer is None:
            self._steps.clear()
        else:
            self._steps[optimizer] = 0

    def trains_on(self, loader: Any) -> bool:
        """Return whether it was *loader* that delivered the last micro-batch."""
        return self._training_loader is not None and self._training_loader() is loader

    def started_loader(self, loader: Any) -> None:
        """Count a start of *loader*."""
        self._starts[loader] = self._starts.get(loader, 0) + 1
        if self.trains_on(loader):
            self._count_epoch()

    def delivered_batch(self, loader: Any) -> None:
        """Note which loader the present batch came from."""
        self._delivered = weakref.ref(loader)

    def _count_epoch(self) -> None:
        loader = self._training_loader() if self._training_loader is not None else None
        if loader is None:
            return
        epoch = max(0, self._starts.get(loader, 1) - 1)
        if epoch != self._epoch:
            self._epoch = epoch
            self._codes.clear()

    def _read_layout(self) -> None:
        """Look where this process stands, once in each of the first steps: wrappers come late."""
        if self.stage == "training" and self._layout_read <= self.num_steps:
            self._layout_read = self.num_steps + 1
            self._layout = read_layout()

    def _read_annotations(self) -> None:
        self._meta_version = META_VARS.version
        stage = META_VARS.get(STAGE)
        self._meta_stage = None if stage is None else str(stage)
        pairs = ((str(key), str(value)) for key, value in META_VARS.items() if key != STAGE)
        self._annotations = tuple(sorted(pairs))
        self._codes.clear()


def _autocast_dtype() -> str:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return str(torch.get_autocast_dtype(device))
    return ""
