"""The catalog's codes."""

from __future__ import annotations

import sys
import threading

from traincheck_plugin.events import Interner


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
