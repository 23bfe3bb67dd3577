"""Random generators being seeded."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded
from traincheck_plugin.recorder.tape import Tape


class SeedsProbe:
    """Observes the global seeds of torch, Python and NumPy; never touches their state."""

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Replace the functions in every namespace."""
        functions: dict[str, Any] = {
            "torch.manual_seed": torch.manual_seed,
            "torch.cuda.manual_seed": torch.cuda.manual_seed,
            "torch.cuda.manual_seed_all": torch.cuda.manual_seed_all,
            "random.seed": random.seed,
        }
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            functions["numpy.random.seed"] = numpy_random.seed
        replacements = {}
        for name, function in functions.items():
            api = tape.apis.function(name, "seed")
            replacements[function] = recorded(tape, function, "seed", api, is_method=False)
        patches.everywhere(replacements)

    def detach(self) -> None:
        """Nothing beyond the patches."""
