"""What a probe is, and the wrapper that most probes put around a function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.tape import Outcome, Tape
from traincheck_plugin.recorder.tracing import is_traced
from traincheck_plugin.vocabulary import Role


class Probe(Protocol):
    """Observes one kind of thing."""

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Begin to observe; what is set through *patches* is undone by the recorder."""

    def detach(self) -> None:
        """Remove whatever was installed otherwise."""


def recorded(
    tape: Tape,
    function: Callable[..., Any],
    role: Role,
    api: int | Callable[[Any], int],
    *,
    is_method: bool = True,
    has_subject: bool = True,
    is_nesting: bool = False,
    is_summarised: bool = False,
    optimizer: Callable[..., Any] | None = None,
    note: Callable[[int], int] | None = None,
    outcome: Outcome | None = None,
) -> Callable[..., Any]:
    """Return *function* wrapped to record its outermost calls of *role* on each thread.

    Args:
        tape: takes the calls.
        function: what to wrap.
        role: of its calls.
        api: the code of the API, or what gives it from the object that the method is called on.
        is_method: whether the first argument is that object.
        has_subject: whether that object gets a label.
        is_nesting: whether calls within calls of *role* are recorded too.
        is_summarised: whether the signatures of arguments and result are recorded.
        optimizer: gives the optimizer a call is about, from its arguments.
        note: adds to the signature of the arguments; see `Tape.around`.
        outcome: gives what is noted of the result.
    """

    @functools.wraps(function)
    def traincheck_call(*args: Any, **kwargs: Any) -> Any:
        if is_traced() or not tape.is_listening:
            return function(*args, **kwargs)
        if not is_nesting and tape.threads.is_within(role):
            return function(*args, **kwargs)
        subject = args[0] if is_method and args else None
        code = about = None
        with tape.problems:
            code = api if isinstance(api, int) else api(subject)
            about = optimizer(*args) if optimizer is not None else None
        if code is None:
            return function(*args, **kwargs)
        return tape.around(
            role,
            code,
            function,
            args,
            kwargs,
            subject=subject if has_subject else None,
            optimizer=about,
            is_summarised=is_summarised,
            note=note,
            outcome=outcome,
        )

    return traincheck_call


def subclasses_overriding(root: type, method: str) -> Iterator[type]:
    """Yield *root* and every class below it that defines *method* itself."""
    seen: set[type] = set()
    waiting = [root]
    while waiting:
        cls = waiting.pop()
        if cls in seen:
            continue
        seen.add(cls)
        if method in vars(cls):
            yield cls
        waiting += cls.__subclasses__()
