"""The engine, driven directly: services as shapes, rules and terms; placements as arrays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.placement.mix import ZONES, Mix, Service, rounds
from bench.traces import AzureVMs
from mesh.scheduler.placement.batch import fill
from mesh.scheduler.placement.cluster import MAX_AMOUNT, Cluster, Groups, Ints, Staying
from mesh.scheduler.placement.kinds import Ground, Kind, Shape
from mesh.scheduler.placement.terms import Terms, Tier

EMPTY = np.zeros(ZONES, np.int64)

Progress = Callable[[int], None]
"""Told how many services have been looked at so far."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A run: CPU seconds in all, wall seconds of each batch, and what was asked and placed."""

    cpu: float
    each: NDArray[np.float64]
    asked: int
    placed: int


class Placed:
    """A cluster on which a mix has been placed, service by service, in the order of the mix."""

    def __init__(self, mix: Mix, strategy: str, progress: Progress) -> None:
        self.mix = mix
        self.cluster = mix.cluster()
        packing = strategy == "binpack"
        shapes = [Shape(self.cluster, needs, packing=packing) for needs in mix.shapes]
        grounds = [Ground(rule, mix.rules[1:] if packing else None) for rule in mix.rules]
        self._kinds = [[Kind(shape, ground) for ground in grounds] for shape in shapes]
        self._zones = Groups(mix.zones, ZONES)
        self._own_terms = {
            (spread, per_node): self._terms(spread, per_node)
            for spread, per_node in {(service.spread, service.per_node) for service in mix.services}
        }
        self.nodes, self.timed = self._place(progress)

    def _terms(self, spread: bool, per_node: int | None) -> Terms:
        return Terms(max_per_node=per_node, tiers=[Tier(self._zones, EMPTY)] if spread else ())

    def _kind(self, service: Service) -> Kind:
        return self._kinds[service.shape][service.rule]

    def _place(self, progress: Progress) -> tuple[list[Ints], Timed]:
        """The node of each replica, by service."""
        each = np.zeros(len(self.mix.services))
        asked = [(self._kind(service), self._own_terms[service.spread, service.per_node], service.count)
                 for service in self.mix.services]  # fmt: skip
        nodes: list[Ints] = []
        begun = time.process_time()
        for number, (kind, terms, count) in enumerate(asked):
            start = time.perf_counter()
            nodes.append(fill(self.cluster, kind, terms, count))
            each[number] = time.perf_counter() - start
            if number % 5000 == 0:
                progress(number)
        cpu = time.process_time() - begun
        return nodes, Timed(cpu, each, self.mix.replicas, sum(one.size for one in nodes))

    def lose(self, share: float, seed: int = 2) -> Timed:
        """Loses so many of the nodes, finds what ran there, and places it elsewhere: the complete new plan."""
        lost = np.zeros(self.mix.nodes, bool)
        lost[np.random.default_rng(seed).choice(self.mix.nodes, int(share * self.mix.nodes), replace=False)] = True
        where, sizes = np.concatenate(self.nodes), np.array([one.size for one in self.nodes])
        services = np.repeat(np.arange(sizes.size), sizes)
        begun = time.process_time()
        self.cluster.take([("cpu", MAX_AMOUNT)], lost.nonzero()[0])
        gone = lost[where]
        counts = np.bincount(services[gone], minlength=sizes.size)
        staying = where[~gone]
        ends = (sizes - counts).cumsum().tolist()
        each, placed = [], 0
        for number in counts.nonzero()[0].tolist():
            start = time.perf_counter()
            service = self.mix.services[number]
            terms = self._terms_with(service, staying[ends[number - 1] if number else 0 : ends[number]])
            placed += fill(self.cluster, self._kind(service), terms, int(counts[number])).size
            each.append(time.perf_counter() - start)
        cpu = time.process_time() - begun
        return Timed(cpu, np.array(each), int(counts.sum()), placed)

    def _terms_with(self, service: Service, staying: Ints) -> Terms:
        """What a service asks for that has replicas already."""
        tiers = []
        if service.spread:
            tiers.append(Tier(self._zones, np.bincount(self._zones.of[staying], minlength=ZONES)))
        return Terms(own=Staying(staying, self.mix.nodes), max_per_node=service.per_node, tiers=tiers)


def azure(trace: AzureVMs, nodes: int, strategy: str, round_size: int) -> Timed:
    """The stream of VM requests on equal nodes, `round_size` requests at a time; 1: in the order of arrival.

    Within a round requests of one flavour are placed as one batch; in arrival order as many as follow one another.
    """
    total = trace.sizes[trace.flavour].sum(axis=0)
    room = total * 10 // 7 // nodes + trace.sizes.max(axis=0)
    names = [f"n{number:06}" for number in range(nodes)]
    cluster = Cluster(names, {"cpu": np.full(nodes, room[0]), "memory": np.full(nodes, room[1])})
    anywhere = Ground(np.ones(nodes, bool))
    kinds = [
        Kind(Shape(cluster, (("cpu", int(cpu)), ("memory", int(memory))), packing=strategy == "binpack"), anywhere)
        for cpu, memory in trace.sizes
    ]
    terms = Terms()
    runs = _runs(trace.flavour) if round_size == 1 else _rounds(trace, round_size)
    each, placed = np.zeros(len(runs)), 0
    begun = time.process_time()
    for number, (flavour, count) in enumerate(runs):
        start = time.perf_counter()
        placed += fill(cluster, kinds[flavour], terms, count).size
        each[number] = time.perf_counter() - start
    return Timed(time.process_time() - begun, each, trace.flavour.size, placed)


def _runs(flavours: Ints) -> list[tuple[int, int]]:
    """Flavours that follow one another, with how many."""
    starts = np.concatenate(([0], np.flatnonzero(np.diff(flavours)) + 1))
    return list(zip(flavours[starts].tolist(), np.diff(np.append(starts, flavours.size)).tolist(), strict=True))


def _rounds(trace: AzureVMs, size: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for part in rounds(trace.flavour.size, size):
        counts = np.bincount(trace.flavour[part.start : part.stop], minlength=len(trace.sizes))
        runs += [(flavour, int(counts[flavour])) for flavour in counts.nonzero()[0].tolist()]
    return runs
