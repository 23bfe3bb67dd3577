"""What could not be observed: said once, never raised into the training."""

from __future__ import annotations

import threading
import traceback
from types import TracebackType


class Problems:
    """A list of remarks without repetition, and a guard that turns failures into remarks.

    As a context manager it swallows every `Exception` of the recorder's own code and notes it, so
    that a failing probe never reaches the training. It is re-entrant and costs next to nothing.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Add *text* unless it was said before."""
        if text not in self.texts:
            self.texts.append(text)

    def __enter__(self) -> Problems:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            return False
        if not isinstance(error, Exception):
            return False
        self.note_failure(error)
        return True

    def note_failure(self, error: Exception) -> None:
        """Note that the recorder's own code raised *error*."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        self.note(
            f"recorder error: {type(error).__name__}: {error} "
            f"({place.filename.rpartition('/')[2]}:{place.lineno})"
        )
        # The traceback's frames hold tensors of the training.
        error.__traceback__ = None


class WatchfulProblems(Problems):
    """Also knows on which threads the recorder's own code is running.

    Needed where packages are instrumented that the recorder uses itself, such as json.
    """

    def __init__(self) -> None:
        super().__init__()
        self._depths = threading.local()

    @property
    def is_own_code_running(self) -> bool:
        """Whether this thread is inside the guard."""
        return getattr(self._depths, "depth", 0) > 0

    def __enter__(self) -> Problems:
        self._depths.depth = getattr(self._depths, "depth", 0) + 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        try:
            return super().__exit__(kind, error, trace)
        finally:
            self._depths.depth -= 1
