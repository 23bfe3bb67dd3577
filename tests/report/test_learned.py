"""What inference found, in a few lines."""

from __future__ import annotations

from traincheck_plugin.invariants.model import APIParam, Evidence, Invariant, Severity
from traincheck_plugin.report.learned import summary


def _invariant(relation: str, severity: Severity, number: int, text: str) -> Invariant:
    return Invariant(
        relation=relation,
        params=(APIParam(api_full_name="a.b"),),
        severity=severity,
        evidence=Evidence(num_occurrences=number),
        text_description=text,
    )


def test_rules_are_counted_and_the_strongest_told() -> None:
    invariants = [
        _invariant("OneRelation", "info", 9000, "z"),
        _invariant("OneRelation", "critical", 20, "a step updates"),
        _invariant("AnotherRelation", "critical", 1300, "a backward reaches"),
        _invariant("AnotherRelation", "warning", 7, "w"),
    ]
    assert list(summary(invariants)) == [
        "  AnotherRelation     1 critical     1 warning",
        f"  OneRelation         1 critical{'':15}     1 info",
        "The strongest 4:",
        "  critical  a backward reaches (1,300 times, never broken)",
        "  critical  a step updates (20 times, never broken)",
        "  warning   w (7 times, never broken)",
        "  info      z (9,000 times, never broken)",
    ]


def test_ten_are_shown() -> None:
    invariants = [_invariant("R", "info", n, f"rule {n}") for n in range(30)]
    lines = list(summary(invariants))
    assert lines[0] == f"  R{'':30}    30 info"
    assert len(lines) == 12
    assert list(summary([])) == []
