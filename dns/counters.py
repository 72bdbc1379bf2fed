"""What the server counts: plain integers on the way of a query, `mesh_dns_*` families when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from dnslib import QTYPE

from mesh.metrics import Family, Sample

_TYPES = {number: QTYPE[number] for number in (1, 2, 5, 6, 12, 15, 16, 28, 33, 35, 43, 48, 64, 65, 255)}
_RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 16: "BADVERS"}
_BOUNDS = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # seconds


Cell = list[int]
"""One number that can be added to in place."""


class Counters:
    """The numbers of one server process."""

    def __init__(self) -> None:
        self._queries: dict[tuple[str, int, int, bool], Cell] = {}  # (transport, type or 0 for others, rcode, cut)
        self.drops: Counter[str] = Counter()
        self.kept_answers = 0  # given without asking the zone
        self._kept_and_timed = 0
        self.forwarded: Counter[str] = Counter()  # hit, miss, stale, refused, failed
        self.upstream_failures: Counter[str] = Counter()
        self.connections = 0  # TCP, open now
        self._latency = [0] * (len(_BOUNDS) + 1)
        self._latency_sum = 0.0

    def cell(self, transport: str, qtype: int, rcode: int, *, cut: bool) -> Cell:
        """The number of queries answered so."""
        return self._queries.setdefault((transport, qtype if qtype in _TYPES else 0, rcode, cut), [0])

    def answered(self, cell: Cell, seconds: float) -> None:
        cell[0] += 1
        self._time(seconds, 1)

    def time_kept(self, seconds: float) -> None:
        """Notes how long the kept answers since the last call took at most: they come in bursts."""
        if count := self.kept_answers - self._kept_and_timed:
            self._kept_and_timed = self.kept_answers
            self._time(seconds, count)

    def _time(self, seconds: float, count: int) -> None:
        self._latency[bisect_left(_BOUNDS, seconds)] += count
        self._latency_sum += seconds * count

    def families(self) -> Iterable[Family]:
        answered: Counter[tuple[str, int, int]] = Counter()
        for (transport, qtype, rcode, _), (count,) in self._queries.items():
            answered[transport, qtype, rcode] += count
        yield _counter("queries", "Queries answered.", [
            Sample(count, {"transport": transport, "type": _TYPES.get(qtype, "other"),
                           "rcode": _RCODES.get(rcode, str(rcode))})
            for (transport, qtype, rcode), count in answered.items()])  # fmt: skip
        yield _counter("drops", "Queries and connections dropped.", _by("reason", self.drops))
        cut = sum(count for (*_, cut), (count,) in self._queries.items() if cut)
        yield _counter("truncated", "Answers cut to the client's UDP size.", [Sample(cut)])
        yield _counter("kept_answers", "Answers given from packets packed before.", [Sample(self.kept_answers)])
        yield _counter(
            "forwarded", "Queries for names of others, by what became of them.", _by("result", self.forwarded)
        )
        yield _counter("upstream_failures", "Failed tries, by upstream.", _by("upstream", self.upstream_failures))
        yield Family("mesh_dns_tcp_connections", "TCP connections open.", "gauge", [Sample(self.connections)])
        yield Family(
            "mesh_dns_latency_seconds", "From a query's arrival to its answer.", "histogram", self._histogram()
        )

    def _histogram(self) -> list[Sample]:
        samples, count = [], 0
        for bound, found in zip((*map(str, _BOUNDS), "+Inf"), self._latency, strict=True):
            count += found
            samples.append(Sample(count, {"le": bound}, "_bucket"))
        return [*samples, Sample(self._latency_sum, suffix="_sum"), Sample(count, suffix="_count")]


def _counter(name: str, text: str, samples: list[Sample]) -> Family:
    return Family(f"mesh_dns_{name}", text, "counter", samples)


def _by(label: str, counts: Counter[str]) -> list[Sample]:
    return [Sample(count, {label: value}) for value, count in counts.items()]
