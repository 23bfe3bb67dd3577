from __future__ import annotations

import io

from rich.text import Text

from traincheck_plugin.cli.progress import PlainProgress, show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_with_each_activity_and_then_every_ten_seconds():
    stream = io.StringIO()
    times = iter([0.0, 1.0, 9.9, 10.0, 12.0, 13.0])
    progress = PlainProgress(stream, clock=lambda: next(times))
    for fraction in (0.0, 0.1, 0.2, 0.3, 0.4):
        progress("labelling examples", fraction)
    progress("writing", 0.0)
    assert stream.getvalue().splitlines() == [
        "labelling examples ...",
        "labelling examples: 30%",
        "writing ...",
    ]


def test_no_terminal_gets_plain_lines():
    stream = io.StringIO()
    with show_progress(stream) as progress:
        progress("checking [rank 0]", 0.5)
    assert stream.getvalue() == "checking [rank 0] ...\n"


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end():
    stream = Terminal()
    with show_progress(stream) as progress:
        progress("checking [rank 0]", 0.5)
    text = Text.from_ansi(stream.getvalue()).plain
    assert "checking [rank 0]" in text
    assert "50%" in text
    assert "\x1b[2K" in stream.getvalue().rpartition("50%")[2]
