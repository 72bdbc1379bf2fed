"""What runs is moved to better places when operators ask for it: live, on the virtual clock."""

from __future__ import annotations

import pytest

from mesh.model import ClusterConfig, Rebalance, Want
from tests.scheduler.world import Behaviour, FakeNode, World

ALWAYS = Rebalance(share=1.0, interval=60.0)
SPREAD_OUT = {"n1": 2, "n2": 2, "n3": 2}


def where(world: World) -> dict[str, int]:
    """Replicas on each node that has any."""
    counts = {node: sum(one.want is Want.RUN for one in plan.replicas) for node, plan in world.node_plans.items()}
    return {node: count for node, count in counts.items() if count}


def moving(world: World) -> bool:
    return any(one.target for plan in world.node_plans.values() for one in plan.replicas)


@pytest.fixture
def world() -> World:
    """Three nodes of four cores with two cores in use on each."""
    world = World(3)
    for service in ("web", "api"):
        world.apply(service, replicas=3, resources={"cpu": "1", "memory": "1Mi"})
    world.settle()
    assert where(world) == SPREAD_OUT
    return world


def test_nothing_moves_unless_asked_for(world: World) -> None:
    world.config = ClusterConfig(strategy="binpack")
    world.run(3600)
    assert where(world) == SPREAD_OUT


def test_a_node_is_emptied_while_every_replica_stays_available(world: World) -> None:
    world.config = ClusterConfig(strategy="binpack", rebalance=ALWAYS)
    ready: list[int] = []
    world.watch = lambda: ready.append(len(world.ready("web")) + len(world.ready("api")))
    world.run(300)
    assert sorted(where(world).values()) == [2, 4]
    assert min(ready) == 6
    assert any(event.cause.startswith("rebalanced to n") for event in world.plans["web"].events)
    assert world.settled()


def test_a_share_is_the_most_that_moves_at_a_time(world: World) -> None:
    world.config = ClusterConfig(strategy="binpack", rebalance=Rebalance(share=0.3, interval=60.0))
    world.run(300)
    assert where(world) == SPREAD_OUT  # no node can be emptied with one move


def test_a_new_node_gets_its_share() -> None:
    world = World(1)
    world.config = ClusterConfig(rebalance=ALWAYS)
    world.apply("web", replicas=4, resources={"cpu": "1", "memory": "1Mi"})
    world.settle()
    world.nodes["n2"] = FakeNode("n2")
    world.run(300)
    assert where(world) == {"n1": 2, "n2": 2}


def test_a_successor_that_fails_ends_the_move_and_the_replica_stays(world: World) -> None:
    running = {service: set(world.ready(service)) for service in ("web", "api")}
    world.config = ClusterConfig(strategy="binpack", rebalance=Rebalance(share=1.0, interval=600.0))
    for service in running:
        world.behave[f"{service}:1"] = Behaviour(crash_after=0.05)
    world.run_until(lambda: moving(world), within=700)
    world.run(100)
    assert not moving(world)
    assert {service: set(world.ready(service)) for service in running} == running


def test_a_target_that_takes_nothing_by_then_ends_the_move(world: World) -> None:
    world.config = ClusterConfig(strategy="binpack", rebalance=ALWAYS)
    world.run_until(lambda: moving(world))
    for name in world.nodes:
        world.set_node(name, "pause")
    world.run(100)
    assert not moving(world)
    assert sum(where(world).values()) == 6
    assert not any(plan.pending for plan in world.plans.values())


def test_a_new_leader_goes_on_with_the_moves(world: World) -> None:
    world.config = ClusterConfig(strategy="binpack", rebalance=ALWAYS)
    world.run_until(lambda: moving(world))
    world.change_leader()
    world.run(50)  # before it would look for better places itself
    assert sorted(where(world).values()) == [2, 4]


def test_nothing_is_moved_while_something_else_is_under_way(world: World) -> None:
    world.apply("stuck", replicas=1, resources={"cpu": "8", "memory": "1Mi"})
    world.config = ClusterConfig(strategy="binpack", rebalance=ALWAYS)
    world.run(300)
    assert where(world) == SPREAD_OUT
