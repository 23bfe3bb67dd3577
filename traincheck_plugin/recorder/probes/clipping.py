"""Gradient clipping."""

from __future__ import annotations

from torch.nn.utils import clip_grad

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded
from traincheck_plugin.recorder.tape import Tape


class ClippingProbe:
    """Observes ``clip_grad_norm_`` and ``clip_grad_value_``, wherever they were imported to."""

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Replace the functions in every namespace."""
        replacements = {}
        for name in ("clip_grad_norm_", "clip_grad_value_"):
            api = tape.apis.function(
                f"torch.nn.utils.{name}", "clip", f"torch.nn.utils.clip_grad.{name}"
            )
            function = getattr(clip_grad, name)
            replacements[function] = recorded(tape, function, "clip", api, is_method=False)
        patches.everywhere(replacements)

    def detach(self) -> None:
        """Nothing beyond the patches."""
