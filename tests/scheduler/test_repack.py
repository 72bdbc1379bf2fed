"""The rebalance planner: what it never does, over random clusters, and what it achieves on known ones."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model import Capacity
from mesh.scheduler.blueprint import Blueprint, draw
from mesh.scheduler.placement import Holding, Node, Placement, Request, place
from mesh.scheduler.repack import Move, repack
from mesh.spec.service import ServiceSpec

GI = 2**30


def blueprint(name: str, cpu: int = 1000, memory: int = GI, **rest: Any) -> Blueprint:
    resources = {"cpu": f"{cpu}m", "memory": memory, **rest.pop("counts", {})}
    written = {"name": name, "image": "any", "resources": resources, **rest}
    return draw(ServiceSpec.model_validate(written), written)


class World:
    """Nodes of 8 cores and 16 GiB, and replicas that are put on them by hand."""

    def __init__(self, count: int = 0, **labels: Sequence[str]) -> None:
        self.nodes = [
            Node(
                f"n{at}", Capacity(cpu=8000, memory=16 * GI), {name: values[at] for name, values in labels.items()}, []
            )
            for at in range(count)
        ]
        self.blueprints: dict[str, Blueprint] = {}

    def put(self, node: int, plan: Blueprint, count: int = 1, *, movable: bool = True) -> None:
        for _ in range(count):
            number = sum(len(one.holdings) for one in self.nodes) + 1
            held = Holding(plan.spec.name, plan.demand, id=f"{plan.spec.name}-{number}", slot=number)
            self.nodes[node] = replace(self.nodes[node], holdings=[*self.nodes[node].holdings, held])
            if movable:
                self.blueprints[held.id] = plan

    def plan(self, share: float = 1.0, strategy: str = "binpack") -> list[Move]:
        return repack(self.nodes, self.blueprints, share=share, strategy=strategy)


def after(nodes: Sequence[Node], moves: Sequence[Move]) -> list[Node]:
    """The nodes when the moves have been made."""
    holdings = {node.name: list(node.holdings) for node in nodes}
    for move in moves:
        held = next(one for one in holdings[move.source] if one.id == move.id)
        holdings[move.source].remove(held)
        holdings[move.target].append(held)
    return [replace(node, holdings=holdings[node.name]) for node in nodes]


def in_use(nodes: Sequence[Node]) -> int:
    return sum(bool(node.holdings) for node in nodes)


# ── binpack ──────────────────────────────────────────────────────────────────────────────────────


def test_the_emptiest_node_is_emptied() -> None:
    world = World(3)
    web = blueprint("web")
    for node, count in enumerate((5, 4, 2)):
        world.put(node, web, count)
    moves = world.plan()
    assert {(move.source, move.target) for move in moves} <= {("n2", "n0"), ("n2", "n1")}
    assert in_use(after(world.nodes, moves)) == 2


def test_a_node_is_not_begun_that_cannot_be_emptied_with_the_moves_there_are() -> None:
    world = World(2)
    world.put(0, blueprint("web"), 4)
    world.put(1, blueprint("web"), 4)
    assert world.plan(share=0.49) == []
    assert len(world.plan(share=0.5)) == 4


def test_a_smaller_replica_makes_way() -> None:
    world = World(3)
    world.put(0, blueprint("big", cpu=5000))
    world.put(1, blueprint("six", cpu=6000))
    world.put(1, blueprint("small", cpu=1000))
    world.put(2, blueprint("two", cpu=2000))
    world.put(2, blueprint("four", cpu=4000))
    assert in_use(after(world.nodes, world.plan())) == 3  # 18 cores do not fit on two nodes
    world = World(3)
    world.put(0, blueprint("four", cpu=4000))
    world.put(1, blueprint("three", cpu=3000))
    world.put(1, blueprint("two", cpu=2000))
    world.put(2, blueprint("five", cpu=5000))
    moves = world.plan()
    assert in_use(after(world.nodes, moves)) == 2


@pytest.mark.parametrize(
    "rest",
    [
        {"volumes": {"data": {"path": "/data"}}},
        {"singleton": True},
        {"placement": {"strategy": "spread"}},
        {"placement": {"constraints": ["name == n1"]}},
        {"placement": {"max_per_node": 1}},
        {"placement": {"affinities": [{"match": "name == n1", "weight": 10}]}},
        {"placement": {"affinities": [{"service": "other", "weight": 10}]}},
        {"ports": {"db": {"port": 5432, "host_port": 5432}}},
    ],
)
def test_what_a_rule_holds_stays(rest: dict[str, Any]) -> None:
    world = World(2, name=["n0", "n1"])
    held = blueprint("held", **rest)
    world.put(0, held, movable=False)
    world.put(1, held)
    assert world.plan() == []


def test_what_may_not_move_keeps_its_node_in_use() -> None:
    world = World(2)
    world.put(0, blueprint("web"), 3)
    world.put(1, blueprint("web"), movable=False)
    moves = world.plan()
    assert {move.target for move in moves} == {"n1"}
    assert in_use(after(world.nodes, moves)) == 1


def test_spread_is_not_made_worse() -> None:
    world = World(3, zone=["a", "b", "c"])
    web = blueprint("web", placement={"spread": [{"label": "zone"}]})
    for node in range(3):
        world.put(node, web)
    assert world.plan() == []
    world = World(3, zone=["a", "a", "b"])
    for node in range(3):
        world.put(node, web)
    assert in_use(after(world.nodes, world.plan())) == 2


# ── spread ───────────────────────────────────────────────────────────────────────────────────────


def test_a_new_node_gets_its_share() -> None:
    world = World(3)
    web = blueprint("web")
    world.put(0, web, 6)
    world.put(1, web, 6)
    moved = after(world.nodes, world.plan(strategy="spread"))
    assert [len(node.holdings) for node in moved] == [4, 4, 4]


def test_the_fullest_give_first() -> None:
    world = World(3)
    world.put(0, blueprint("web"), 7)
    world.put(1, blueprint("web"), 6)
    (move,) = world.plan(share=0.08, strategy="spread")
    assert (move.source, move.target) == ("n0", "n2")


def test_the_replicas_of_a_service_come_no_closer_together() -> None:
    world = World(2)
    world.put(0, blueprint("web"))
    world.put(0, blueprint("db"), 5)
    world.put(1, blueprint("web"))
    moves = world.plan(strategy="spread")
    assert {move.service for move in moves} == {"db"}


def test_small_differences_are_left_alone() -> None:
    world = World(2)
    world.put(0, blueprint("web", cpu=200), 3)
    world.put(1, blueprint("web", cpu=200), 2)
    assert world.plan(strategy="spread") == []


# ── invariants ───────────────────────────────────────────────────────────────────────────────────


class Chance(World):
    """A random cluster, filled by placement, from which some replicas have gone since."""

    def __init__(self, seed: int, strategy: str) -> None:
        super().__init__()
        chance = random.Random(seed)
        services = [self._service(chance, f"s{number}") for number in range(chance.randint(1, 12))]
        self.nodes = [
            Node(
                f"n{number}",
                Capacity(cpu=chance.choice([2000, 4000]), memory=8 * GI, resources={"gpu": chance.choice([0, 2])}),
                {"zone": chance.choice("abc"), "rack": chance.choice("12"), "disk": chance.choice(["ssd", "hdd"])},
                barred=chance.choice(["", "", "", "is paused"]),
            )
            for number in range(chance.randint(1, 12))
        ]
        requests = [
            Request(plan.spec.name, slot + 1, plan) for plan in services for slot in range(chance.randint(1, 8))
        ]
        for answer in place(
            requests, [replace(node, barred="") for node in self.nodes], chance.choice(["spread", "binpack"])
        ):
            if isinstance(answer, Placement) and chance.random() < 0.7:
                at = next(number for number, node in enumerate(self.nodes) if node.name == answer.node)
                self.put(at, answer.request.blueprint, movable=chance.random() < 0.9)

    def _service(self, chance: random.Random, name: str) -> Blueprint:
        placement: dict[str, Any] = {}
        if chance.random() < 0.3:
            placement["constraints"] = ["disk == ssd"]
        if chance.random() < 0.3:
            placement["max_per_node"] = chance.randint(1, 3)
        if chance.random() < 0.3:
            placement["max_per"] = {"rack": chance.randint(1, 4)}
        if chance.random() < 0.4:
            placement["spread"] = [{"label": "zone"}, {"label": "rack"}][: chance.randint(1, 2)]
        rest: dict[str, Any] = {}
        if chance.random() < 0.15:
            rest["ports"] = {"http": {"port": 80, "host_port": chance.randint(8000, 8002)}}
        counts = {"gpu": 1} if chance.random() < 0.2 else {}
        return blueprint(name, chance.choice([100, 250, 500, 1000]), chance.choice([1, 2]) * GI // 2,
                         counts=counts, placement=placement, **rest)  # fmt: skip


def check_rules(nodes: Sequence[Node], blueprints: Mapping[str, Blueprint], move: Move) -> None:
    """A move is allowed, and has room, with the replica on its source still counted."""
    target = next(node for node in nodes if node.name == move.target)
    plan = blueprints[move.id]
    held = [*(one.demand for one in target.holdings), plan.demand]
    assert not target.barred
    assert sum(one.cpu for one in held) <= target.capacity.cpu
    assert sum(one.memory for one in held) <= target.capacity.memory
    assert sum(one.resources.get("gpu", 0) for one in held) <= target.capacity.resources["gpu"]
    assert max(Counter(port for one in held for port in one.ports).values(), default=0) <= 1
    assert all(constraint.allows(target.attributes) for constraint in plan.constraints)


def counts(nodes: Sequence[Node], service: str, *labels: str) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(node.attributes[label] for label in labels)
        for node in nodes for held in node.holdings if held.service == service
    )  # fmt: skip


def check_limits(before: Sequence[Node], nodes: Sequence[Node], plan: Blueprint) -> None:
    """Limits hold and no spread is worse than it was."""
    rules, name = plan.spec.placement, plan.spec.name
    for node in nodes:
        here = sum(held.service == name for held in node.holdings)
        assert rules.max_per_node is None or here <= rules.max_per_node
    for label, most in rules.max_per.items():
        assert max(counts(nodes, name, label).values(), default=0) <= most
    labels = [spread.label for spread in rules.spread]
    for depth in range(len(labels)):
        assert max(counts(nodes, name, *labels[: depth + 1]).values(), default=0) <= max(
            counts(before, name, *labels[: depth + 1]).values(), default=0
        )


def together(nodes: Sequence[Node], service: str) -> int:
    """The most replicas of a service on one node."""
    return max(sum(held.service == service for held in node.holdings) for node in nodes)


@given(
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    strategy=st.sampled_from(["spread", "binpack"]),
)
@settings(max_examples=150, deadline=None)
def test_no_plan_breaks_a_rule_at_any_step(seed: int, share: float, strategy: str) -> None:
    world = Chance(seed, strategy)
    moves = world.plan(share, strategy)
    total = sum(len(node.holdings) for node in world.nodes)
    assert len(moves) <= share * total
    assert len({move.id for move in moves}) == len(moves)
    assert moves == world.plan(share, strategy)
    nodes: Sequence[Node] = world.nodes
    for move in moves:
        check_rules(nodes, world.blueprints, move)
        nodes = after(nodes, [move])
        check_limits(world.nodes, nodes, world.blueprints[move.id])
    if strategy == "spread":
        assert all(together(nodes, name) <= together(world.nodes, name) for name in {move.service for move in moves})
    if strategy == "binpack":
        assert in_use(nodes) < in_use(world.nodes) or not moves


@given(seed=st.integers(0, 2**32), strategy=st.sampled_from(["spread", "binpack"]))
@settings(max_examples=50, deadline=None)
def test_repeated_it_comes_to_rest(seed: int, strategy: str) -> None:
    world = Chance(seed, strategy)
    nodes: Sequence[Node] = world.nodes
    for _ in range(40):
        moves = repack(nodes, world.blueprints, share=0.5, strategy=strategy)
        if not moves:
            return
        nodes = after(nodes, moves)
    pytest.fail("it still moves replicas after forty plans")


def test_nothing_gives_no_moves() -> None:
    assert repack([], {}, strategy="binpack") == []
    assert repack([], {}, strategy="spread") == []
    assert World(3).plan() == []
