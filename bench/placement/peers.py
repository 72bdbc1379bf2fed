"""Two plain schedulers on the same services and nodes, one replica at a time, in plain Python.

Both keep what ours keeps: room, rules, at most so many of a service on a node, zones spread. The first looks at every
node for every replica. The second samples as Nomad does for services: nodes in random order until log2(n) of them will
do, of which the best is taken (nomad/scheduler/stack.go; its score is BestFit v3, `structs.ScoreFitBinPack`).
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator

from bench.placement.mix import Mix, Service


class Plain:
    """A cluster in lists, and one replica after the other."""

    def __init__(self, mix: Mix, *, sampling: bool) -> None:
        self._mix = mix
        self._sample = max(2, math.ceil(math.log2(mix.nodes))) if sampling else None
        self._cpu, self._memory = mix.cpu.tolist(), mix.memory.tolist()
        self._cpu_free, self._memory_free = mix.cpu.tolist(), mix.memory.tolist()
        self._zones = mix.zones.tolist()
        self._rules = [rule.tolist() for rule in mix.rules]
        self._nodes = list(range(mix.nodes))
        self._random = random.Random(1)

    def run(self, seconds: float) -> tuple[float, int]:
        """Places for so long; returns the CPU seconds and the replicas placed."""
        begun = time.process_time()
        placed = 0
        for service in self._mix.services:
            own: Counter[int] = Counter()
            zones: Counter[int] = Counter()
            for _ in range(service.count):
                node = self._choose(service, own, zones)
                if node is not None:
                    self._take(service, node)
                    own[node] += 1
                    zones[self._zones[node]] += 1
                    placed += 1
            if time.process_time() - begun > seconds:
                break
        return time.process_time() - begun, placed

    def _demand(self, service: Service) -> tuple[int, int]:
        needs = dict(self._mix.shapes[service.shape])
        return needs["cpu"], needs["memory"]

    def _take(self, service: Service, node: int) -> None:
        cpu, memory = self._demand(service)
        self._cpu_free[node] -= cpu
        self._memory_free[node] -= memory

    def _choose(self, service: Service, own: Counter[int], zones: Counter[int]) -> int | None:
        best: int | None = None
        best_rank: tuple[float, float] = (math.inf, math.inf)
        cpu, memory = self._demand(service)
        found = 0
        for node in self._order():
            if self._cpu_free[node] < cpu or self._memory_free[node] < memory or not self._rules[service.rule][node]:
                continue
            if service.per_node is not None and own[node] >= service.per_node:
                continue
            left = (
                (self._cpu_free[node] - cpu) / self._cpu[node],
                (self._memory_free[node] - memory) / self._memory[node],
            )
            score = 10 ** left[0] + 10 ** left[1] if self._sample else left[0] + left[1]
            rank = (zones[self._zones[node]] if service.spread else 0.0, score)
            if rank < best_rank:
                best, best_rank = node, rank
            found += 1
            if found == self._sample:
                break
        return best

    def _order(self) -> Iterator[int]:
        """All nodes; for a sample in random order, drawn as they are needed."""
        if self._sample is None:
            yield from self._nodes
            return
        nodes = self._nodes
        for position in range(len(nodes)):
            other = self._random.randrange(position, len(nodes))
            nodes[position], nodes[other] = nodes[other], nodes[position]
            yield nodes[position]
