"""Lost and failed replicas come back in waves; what is meant to start at once does."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.model import Capacity, ClusterConfig, Want
from tests.scheduler.world import GI, Behaviour, World

MOST = 8


def crowd(nodes: int = 4, services: int = 5, each: int = 80, **spec: Any) -> World:
    """Many replicas on every node, by default 100."""
    world = World(nodes)
    for node in world.nodes.values():
        node.capacity = Capacity(cpu=100_000, memory=100 * GI)
    for number in range(services):
        world.apply(f"web{number}", replicas=each, **spec)
    world.settle()
    assert {len(plan.replicas) for plan in world.node_plans.values()} == {services * each // nodes}
    return world


def busiest(world: World) -> list[int]:
    """Grows with the most replacements that any node has begun and that are not ready, at each look."""
    found: list[int] = []

    def look() -> None:
        for name, plan in world.node_plans.items():
            ready = {report.id for report in world.nodes[name].reported if report.state == "ready"}
            begun = [one for one in plan.replicas if one.replacement and one.want is Want.RUN and one.id not in ready]
            found.append(len(begun))

    world.watch = look
    return found


def test_a_hundred_lost_replicas_come_back_in_waves() -> None:
    world = crowd()
    starting = busiest(world)
    world.lose("n1")
    world.run_until(lambda: world.node_plans["n1"].lost)
    reasons = {reason for plan in world.plans.values() for one in plan.pending for reason in one.reasons}
    assert reasons == {f"waits for its turn: each node starts at most {MOST} replacements at a time"}
    took = world.settle()
    assert max(starting) == MOST
    assert took < 10, "five waves of 24, each of half a second"
    assert not any(plan.vacant for plan in world.plans.values())


def test_few_replicas_are_not_held_up() -> None:
    world = World(5)
    world.apply(replicas=10)
    world.settle()
    world.lose("n1")
    world.run_until(lambda: world.node_plans["n1"].lost)
    assert sum(world.spread().values()) == 10


def test_the_bound_is_a_setting_of_the_cluster() -> None:
    world = crowd(services=2, each=40)
    world.config = ClusterConfig(replacements_per_node=2)
    starting = busiest(world)
    world.lose("n1")
    world.settle()
    assert max(starting) == 2


def test_a_new_leader_holds_back_too_also_what_is_not_written_down_one_by_one() -> None:
    world = crowd(services=1, each=240)
    starting = busiest(world)
    world.lose("n1")
    for _ in range(90):
        world.run(0.1)
        if world.node_plans["n1"].lost:
            world.change_leader()
    world.settle()
    assert max(starting) == MOST


def test_replacements_that_never_get_ready_do_not_hold_others_for_long() -> None:
    world = crowd(each=20)
    world.behave["web0:1"] = Behaviour(ready_after=None)
    world.lose("n1")
    world.run(5)
    assert world.run_until(lambda: all(len(world.ready(f"web{number}")) == 20 for number in range(1, 5)), 200) < 100


def test_the_most_important_come_first() -> None:
    world = crowd(services=1, each=200)
    world.apply("db", replicas=4, placement={"priority": 90, "max_per_node": 1})
    world.settle()
    world.lose("n1")
    world.nodes["n5"] = type(world.nodes["n2"])("n5", capacity=Capacity(cpu=100_000, memory=100 * GI))
    world.run_until(lambda: world.node_plans["n1"].lost)
    assert sum(world.spread("db").values()) == 4


def test_what_an_operator_asks_for_starts_at_once() -> None:
    world = World(2)
    for node in world.nodes.values():
        node.capacity = Capacity(cpu=100_000, memory=100 * GI)
    world.apply(replicas=200)
    world.run(0.05)
    assert sum(world.spread().values()) == 200
    world.rescale("web", 300)
    world.run(0.05)
    assert sum(world.spread().values()) == 300


@pytest.mark.parametrize("kind", ["service", "job"])
def test_failures_all_at_once_come_back_in_waves(kind: str) -> None:
    """As when an engine is restarted with all that it runs."""
    world = World(2)
    for node in world.nodes.values():
        node.capacity = Capacity(cpu=100_000, memory=100 * GI)
    spec: dict[str, Any] = {"replicas": 60}
    if kind == "job":
        spec = {"kind": "job", "job": {"completions": 60, "parallelism": 60, "retries": 100}}
        world.behave["web:1"] = Behaviour(done_after=60.0)
    world.apply(**spec)
    world.run(5)
    starting = busiest(world)
    for id in [report.id for report in world.running() if world.node_of(report.id) == "n1"]:
        world.crash(id)
    world.run_until(lambda: len(world.ready()) == 60)
    assert max(starting) == MOST
