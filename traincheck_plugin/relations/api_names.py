"""Under which names hypotheses speak of an API."""

from __future__ import annotations

from traincheck_plugin.vocabulary import Api


class ApiNames:
    """Gives an API its general name, and its own as soon as another API shares the general one.

    With one optimizer class in the reference, what is true of ``torch.optim.Adadelta.step`` is
    true of ``torch.optim.Optimizer.step``, and the second says more. With two, one of them may be
    the exception.
    """

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}

    def of(self, api: Api) -> tuple[str, ...]:
        """Return the names to propose hypotheses for."""
        names = self._seen.setdefault(api.general, set())
        names.add(api.name)
        if len(names) == 1 or api.name == api.general:
            return (api.general,)
        return (api.general, *sorted(names - {api.general}))
