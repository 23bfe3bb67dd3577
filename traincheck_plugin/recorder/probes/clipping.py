"""Gradient clipping."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import Any

from torch.nn.utils import clip_grad

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.vocabulary import GIVEN, NONE

_PARAMETERS = "parameters"


class ClippingProbe:
    """Observes ``clip_grad_norm_`` and ``clip_grad_value_``, wherever they were imported to.

    Where the limit is infinite, nothing is clipped, and the call tells so: it is how a norm is
    measured for a log. The result tells where no parameter that was given had a gradient.
    """

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Replace the functions in every namespace."""
        replacements = {}
        for name in ("clip_grad_norm_", "clip_grad_value_"):
            api = tape.apis.function(
                f"torch.nn.utils.{name}", "clip", f"torch.nn.utils.clip_grad.{name}"
            )
            function = getattr(clip_grad, name)
            replacements[function] = _observed(tape, function, api)
        patches.everywhere(replacements)

    def detach(self) -> None:
        """Nothing beyond the patches."""


def _observed(tape: Tape, function: Callable[..., Any], api: int) -> Callable[..., Any]:
    measuring = recorded(
        tape,
        function,
        "clip",
        api,
        is_method=False,
        is_summarised=True,
        note=lambda arguments: tape.signatures.extended(arguments, "limit", "inf"),
    )

    @functools.wraps(function)
    def traincheck_call(*args: Any, **kwargs: Any) -> Any:
        # The limit follows the parameters, under whatever name.
        limits = (*args[1:2], kwargs.get("max_norm"), kwargs.get("clip_value"))
        if any(isinstance(limit, float) and math.isinf(limit) for limit in limits):
            return measuring(*args, **kwargs)
        if not tape.is_listening or not (args or _PARAMETERS in kwargs):
            return function(*args, **kwargs)
        given = _Given(args[0] if args else kwargs[_PARAMETERS])
        if args:
            args = given.parameters, *args[1:]
        else:
            kwargs = {**kwargs, _PARAMETERS: given.parameters}

        def outcome(*_: Any) -> int:
            return NONE if given.has_gradients() else tape.signatures.extended(NONE, GIVEN, "none")

        clipping = recorded(tape, function, "clip", api, is_method=False, outcome=outcome)
        return clipping(*args, **kwargs)

    return traincheck_call


class _Given:
    """What is to be clipped: an iterator is looked at while it is used up, and not before.

    Attributes:
        parameters: to give in place of them.
    """

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters
        self._has_gradients = False
        if isinstance(parameters, GeneratorType):
            # Torch warns of one that is empty, and must know it for one.
            self.parameters = self._passed(parameters)
        elif isinstance(parameters, Iterator):
            self.parameters = map(self._pass, parameters)

    def has_gradients(self) -> bool:
        """Return whether there is a gradient among them."""
        if self._has_gradients or isinstance(self.parameters, Iterator):
            return self._has_gradients
        several = self.parameters
        return any(
            _has_gradient(one) for one in ([several] if hasattr(several, "grad") else several)
        )

    def _pass(self, parameter: Any) -> Any:
        self._has_gradients = self._has_gradients or _has_gradient(parameter)
        return parameter

    def _passed(self, parameters: Iterator[Any]) -> Iterator[Any]:
        yield from map(self._pass, parameters)


def _has_gradient(parameter: Any) -> bool:
    return getattr(parameter, "grad", None) is not None
