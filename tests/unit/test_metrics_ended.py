"""Counts of processes that ended."""

from __future__ import annotations

from mesh.metrics import Ended, Family, Sample, merge


def counted(value: float, endpoint: str = "web-1", kind: str = "counter") -> Family:
    labels = {"service": "web", "port": "http", "endpoint": endpoint}
    return Family("requests", "", kind, [Sample(value, labels)])  # type: ignore[arg-type]


def total(ended: Ended, living: list[Family], now: float) -> float:
    return sum(sample.value for family in merge([*living, *ended.families(living, now)]) for sample in family.samples)


def test_no_counter_goes_back_because_its_process_ended() -> None:
    ended = Ended()
    assert total(ended, [counted(10), counted(5)], 0.0) == 15
    ended.add([counted(11)], 1.0)
    assert total(ended, [counted(5)], 2.0) == 16
    ended.add([counted(6)], 3.0)
    assert total(ended, [counted(1)], 4.0) == 18
    assert total(ended, [counted(1)], 4.0 + 10 * Ended.RETENTION) == 18, "the endpoint lives"


def test_what_nobody_counts_any_more_is_forgotten_after_a_while() -> None:
    ended = Ended()
    ended.add([counted(10)], 0.0)
    assert total(ended, [], Ended.RETENTION) == 10
    assert total(ended, [counted(1, "web-2")], Ended.RETENTION + 1) == 1


def test_gauges_end_with_their_process() -> None:
    ended = Ended()
    ended.add([counted(10, kind="gauge")], 0.0)
    assert total(ended, [], 1.0) == 0
