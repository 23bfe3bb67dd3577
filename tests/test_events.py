"""The catalog's codes."""

from __future__ import annotations

import sys
import threading

from traincheck_plugin.catalog import KEPT_CONTEXTS, Contexts, Interner
from traincheck_plugin.vocabulary import Context


def test_threads_never_get_one_code_for_two_values():
    interner: Interner[int] = Interner()
    found: list[dict[int, int]] = [{} for _ in range(4)]

    def intern(codes, first):
        for value in range(first, 20_000, 2):
            codes[value] = interner.code(value)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=intern, args=(codes, number % 2))
            for number, codes in enumerate(found)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    for codes in found:
        assert all(interner[code] == value for value, code in codes.items())
    assert len(interner) == 20_000


def _of_step(step: int) -> Context:
    return Context(step=step, stage="training" if step % 3 else "validation")


def test_contexts_of_a_long_run_are_kept_as_numbers():
    contexts = Contexts()
    number = 5 * KEPT_CONTEXTS
    for step in range(number):
        code = contexts.code(_of_step(step))
        assert code == step == contexts.code(_of_step(step))

    kept = sum(value is not None for value in contexts._values)
    assert KEPT_CONTEXTS <= kept <= 3 * KEPT_CONTEXTS
    assert contexts.column("step").tolist() == list(range(number))
    for step in (0, 1, 2, number // 2, number - 1):
        assert contexts[step] == _of_step(step)
    # The latest have their codes; one of long ago comes as a new one.
    assert contexts.code(_of_step(number - KEPT_CONTEXTS)) == number - KEPT_CONTEXTS
    again = contexts.code(_of_step(0))
    assert again == number
    assert contexts[again] == contexts[0]
