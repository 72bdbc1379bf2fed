"""A batch equals one at a time: the engine beside a plain greedy, over random clusters with all features mixed."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model import Capacity
from mesh.scheduler.blueprint import Blueprint, draw
from mesh.scheduler.placement import Holding, Node, Placement, Request, place
from mesh.spec.service import parse_spec
from tests.scheduler.greedy import greedy

MI = 2**20


class Chance:
    """A random cluster and what is asked of it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.plainness = self.random.choice([1.0, 0.3, 0.1])

    def maybe(self, share: float) -> bool:
        return self.random.random() < share

    def feature(self, share: float) -> bool:
        """One that is used less in plain clusters, so that the paths for plain services are gone as well."""
        return self.maybe(share * self.plainness)

    def nodes(self, count: int, services: list[Blueprint]) -> list[Node]:
        return [self.node(f"n{number}", services) for number in range(count)]

    def node(self, name: str, services: list[Blueprint]) -> Node:
        chance = self.random
        labels = {"name": name, "runtime": chance.choice(["docker", "docker", "docker", "process"])}
        if self.maybe(0.9):
            labels["zone"] = chance.choice(["a", "b", "c"])
        if self.maybe(0.8):
            labels["rack"] = chance.choice(["1", "2"])
        if self.maybe(0.3):
            labels["disk"] = chance.choice(["ssd", "hdd"])
        capacity = Capacity(
            cpu=chance.choice([0, 500, 1000, 2000, 2000, 4000]),
            memory=chance.choice([0, 256, 1024, 2048]) * MI,
            resources={"gpu": chance.randint(0, 3)} if self.maybe(0.3) else {},
        )
        holdings = [
            Holding(plan.spec.name, plan.demand, stays=self.maybe(0.8))
            for plan in chance.choices(services, k=chance.choice([0, 0, 1, 2]))
        ] if services else []  # fmt: skip
        return Node(name, capacity, labels, holdings, "is paused" if self.maybe(0.05) else "")

    def service(self, name: str, others: list[str]) -> Blueprint:
        chance = self.random
        placement: dict[str, Any] = {"priority": chance.choice([50, 50, 20, 80])}
        if self.maybe(0.5):
            placement["strategy"] = chance.choice(["spread", "binpack"])
        if self.feature(0.3):
            placement["constraints"] = chance.choice(
                [["disk == ssd"], ["zone != b"], ["disk exists"], ["zone in a, b"], ["rack not in 1"]]
            )
        if self.feature(0.5):
            labels = chance.choice([["zone"], ["rack"], ["zone", "rack"], ["zone", "disk"], ["nowhere"]])
            placement["spread"] = [{"label": label, **self.targets(label)} for label in labels]
        if self.maybe(0.3):
            placement["max_per_node"] = chance.randint(1, 3)
        if self.feature(0.15):
            placement["max_per"] = {chance.choice(["zone", "rack"]): chance.randint(1, 4)}
        if self.feature(0.4):
            placement["affinities"] = [self.affinity(name, others) for _ in range(chance.randint(1, 2))]
        resources = {
            "cpu": f"{chance.choice([0, 50, 100, 100, 250, 900])}m",
            "memory": f"{chance.choice([0, 16, 64, 300])}Mi",
            **({"gpu": chance.randint(1, 2)} if self.feature(0.2) else {}),
        }
        ports = {"p": {"port": 1, "host_port": chance.choice([80, 81]), "protocol": chance.choice(["tcp", "udp"])}}
        fields = {"placement": placement, "resources": resources, "ports": ports if self.feature(0.15) else {}}
        spec = parse_spec({"name": name, "image": "x", **fields}, name)
        return draw(spec, spec.canonical())

    def targets(self, label: str) -> dict[str, Any]:
        if not self.maybe(0.4):
            return {}
        named = {"zone": ["a", "b"], "rack": ["1", "2"], "disk": ["ssd"], "nowhere": ["x"]}[label]
        shares = self.random.choice([[50, 50], [70, 30], [20, 0], [100, 0]])
        return {"targets": {value: f"{share}%" for value, share in zip(named, shares, strict=False)}}

    def affinity(self, name: str, others: list[str]) -> dict[str, Any]:
        weight = self.random.choice([-100, -20, 20, 50, 100])
        if self.maybe(0.5):
            return {"match": self.random.choice(["zone == a", "disk == ssd", "rack != 1"]), "weight": weight}
        return {"service": self.random.choice([*others, name]), "weight": weight}

    def requests(self, services: list[Blueprint], nodes: list[Node]) -> list[Request]:
        found: list[Request] = []
        for plan in services:
            count = self.random.choice([1, 2, 3, 5, 8, 20])
            avoid = frozenset(node.name for node in nodes if self.maybe(0.3)) if self.feature(0.2) else frozenset[str]()
            only = self.random.choice(nodes).name if nodes and self.feature(0.05) else None
            found += [Request(plan.spec.name, slot, plan, only, avoid) for slot in range(1, count + 1)]
        if self.feature(0.2):
            self.random.shuffle(found)
        return found


def compare(seed: int, most_nodes: int) -> None:
    chance = Chance(seed)
    names = [f"s{number}" for number in range(chance.random.randint(1, 5))]
    services = [chance.service(name, names) for name in names]
    nodes = chance.nodes(chance.random.randint(0, most_nodes), services)
    requests = chance.requests(services, nodes)
    strategy = chance.random.choice(["spread", "binpack"])
    answers = place(requests, nodes, strategy)
    assert [answer.request for answer in answers] == requests
    found = [answer.node if isinstance(answer, Placement) else None for answer in answers]
    assert found == greedy(requests, nodes, strategy)
    assert answers == place(requests, list(reversed(nodes)), strategy)


@given(st.integers(0, 2**32))
@settings(max_examples=250, deadline=None)
def test_a_batch_equals_one_at_a_time(seed: int) -> None:
    compare(seed, 9)


@pytest.mark.parametrize("seed", range(12))
def test_a_batch_equals_one_at_a_time_where_not_all_nodes_are_looked_at(seed: int) -> None:
    compare(seed, 90)
