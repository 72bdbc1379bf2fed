"""Metrics without a library call on the hot path: parts count in plain integers and hand them over as families.

A worker sends its families to its supervisor, which merges them (counters and histograms add up) and
renders them in Prometheus' text format.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """One number. For a histogram `suffix` is `_bucket` (with label `le`), `_sum` or `_count`."""

    value: float
    labels: dict[str, str] = {}
    suffix: str = ""


class Family(msgspec.Struct, frozen=True):
    """A metric with its samples; `name` without `_total`."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    samples: list[Sample]


def merge(families: Iterable[Family]) -> list[Family]:
    """One family per name, samples with equal labels added up (gauges too: connections of all workers)."""
    merged: dict[str, tuple[Family, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
    for family in families:
        _, sums = merged.setdefault(family.name, (family, {}))
        for sample in family.samples:
            key = (sample.suffix, tuple(sorted(sample.labels.items())))
            sums[key] = sums.get(key, 0.0) + sample.value
    return [
        Family(first.name, first.help, first.kind,
               [Sample(value, dict(labels), suffix) for (suffix, labels), value in sums.items()])
        for first, sums in merged.values()
    ]  # fmt: skip


_SUBJECT = ("service", "port", "endpoint", "route", "listen")
"""The labels that name what is counted; a sample's others tell its counts apart."""

Subject = tuple[str | None, ...]


class Ended:
    """What processes counted that have ended: added to what the living count, no counter goes back.

    The counts of a subject (a service's port, an endpoint) stay while somebody living counts it too, and
    `RETENTION` seconds longer: so the number of series is bounded by what there is.
    """

    RETENTION = 300.0

    def __init__(self) -> None:
        self._families: list[Family] = []
        self._seen: dict[Subject, float] = {}

    def add(self, families: Iterable[Family], now: float) -> None:
        """The last counts of a process that ended; `now` in seconds of any clock that only goes forward."""
        counts = [family for family in families if family.kind != "gauge"]
        self._families = merge([*self._families, *counts])
        self._note(counts, now)

    def families(self, living: Iterable[Family], now: float) -> list[Family]:
        """What is to be added to the counts of the living."""
        self._note(living, now)
        self._seen = {subject: seen for subject, seen in self._seen.items() if now - seen <= self.RETENTION}
        self._families = [
            Family(family.name, family.help, family.kind,
                   [sample for sample in family.samples if _subject(sample) in self._seen])
            for family in self._families
        ]  # fmt: skip
        return self._families

    def _note(self, families: Iterable[Family], now: float) -> None:
        self._seen.update({_subject(sample): now for family in families for sample in family.samples})


def _subject(sample: Sample) -> Subject:
    return tuple(sample.labels.get(label) for label in _SUBJECT)


def render(families: Iterable[Family]) -> bytes:
    """Prometheus' text format, version 0.0.4. Only the process that renders loads the library: workers do not."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

    class Families(Collector):
        def collect(self) -> Iterable[Metric]:
            for family in merge(families):
                metric = Metric(family.name, family.help, family.kind)
                for sample in family.samples:
                    suffix = "_total" if family.kind == "counter" else sample.suffix
                    metric.add_sample(family.name + suffix, sample.labels, sample.value)
                yield metric

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families())
    return generate_latest(registry)
