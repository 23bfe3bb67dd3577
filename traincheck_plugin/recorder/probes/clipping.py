"""Gradient clipping."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from torch.nn.utils import clip_grad

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded
from traincheck_plugin.recorder.tape import Tape


class ClippingProbe:
    """Observes ``clip_grad_norm_`` and ``clip_grad_value_``, wherever they were imported to.

    Where the limit is infinite, nothing is clipped, and the call tells so: it is how a norm is
    measured for a log.
    """

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Replace the functions in every namespace."""
        replacements = {}
        for name in ("clip_grad_norm_", "clip_grad_value_"):
            api = tape.apis.function(
                f"torch.nn.utils.{name}", "clip", f"torch.nn.utils.clip_grad.{name}"
            )
            function = getattr(clip_grad, name)
            clipping = recorded(tape, function, "clip", api, is_method=False)
            measuring = recorded(
                tape,
                function,
                "clip",
                api,
                is_method=False,
                is_summarised=True,
                note=lambda arguments: tape.signatures.extended(arguments, "limit", "inf"),
            )
            replacements[function] = _by_limit(function, clipping, measuring)
        patches.everywhere(replacements)

    def detach(self) -> None:
        """Nothing beyond the patches."""


def _by_limit(
    function: Callable[..., Any], clipping: Callable[..., Any], measuring: Callable[..., Any]
) -> Callable[..., Any]:
    """Return what calls *clipping* where there is a limit, and *measuring* where it is infinite."""

    @functools.wraps(function)
    def traincheck_call(*args: Any, **kwargs: Any) -> Any:
        # The limit follows the parameters, under whatever name.
        limits = (*args[1:2], kwargs.get("max_norm"), kwargs.get("clip_value"))
        is_measuring = any(isinstance(limit, float) and math.isinf(limit) for limit in limits)
        return (measuring if is_measuring else clipping)(*args, **kwargs)

    return traincheck_call
