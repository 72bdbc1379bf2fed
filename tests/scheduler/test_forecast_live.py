"""What is forecast of the running cluster is what becomes of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mesh.model import Capacity, Want
from mesh.scheduler.forecast.end_state import Forecast, forecast
from mesh.scheduler.forecast.headroom import no_room_to_begin
from mesh.scheduler.forecast.live_cluster import live_cluster
from tests.scheduler.world import GI, World

Places = dict[tuple[str, object], str]


def ahead(world: World) -> Forecast:
    return forecast(live_cluster(world.view()))


def places(outcome: Forecast) -> Places:
    return {(one.service, one.slot): one.node for one in outcome.replicas}


def actual(world: World) -> Places:
    return {(one.service, one.slot): node for node, plan in world.node_plans.items()
            for one in plan.replicas if one.want is Want.RUN}  # fmt: skip


def is_quiet(outcome: Forecast) -> bool:
    return not (outcome.placed or outcome.stopped)


def made(seed: int) -> World:
    """A random cluster before anything runs on it."""
    chance = random.Random(seed)
    world = World(chance.randint(3, 6), seed=seed)
    for number, node in enumerate(world.nodes.values()):
        node.capacity = Capacity(cpu=chance.randint(2, 6) * 1000, memory=8 * GI)
        node.labels = {"zone": "abc"[number % 3]}
    for number in range(chance.randint(2, 6)):
        placement: dict[str, Any] = {"priority": chance.choice([30, 50, 70])}
        placement |= chance.choice([{}, {"spread": [{"label": "zone"}]}, {"max_per_node": 1}, {"strategy": "binpack"}])
        world.apply(
            f"s{number}",
            kind=chance.choice(["service"] * 4 + ["global"]),
            replicas=chance.randint(1, 5),
            resources={"cpu": chance.choice([0.25, 0.5, 1]), "memory": "64Mi"},
            placement=placement,
        )
    return world


@pytest.mark.parametrize("seed", range(25))
def test_from_nothing_everything_comes_where_it_was_forecast(seed: int) -> None:
    world = made(seed)
    outcome = ahead(world)
    world.run(120)
    assert actual(world) == places(outcome), world.story()
    assert is_quiet(ahead(world))
    waiting = {(one.service, slot) for one in outcome.waiting for slot in one.slots}
    assert waiting == {(plan.service, pending.slot) for plan in world.plans.values() for pending in plan.pending}


@pytest.mark.parametrize("seed", range(15))
def test_a_lost_node_leaves_what_was_forecast(seed: int) -> None:
    world = made(seed)
    world.run(120)
    world.lose("n1")
    outcome = ahead(world)
    world.run(120)
    assert actual(world) == places(outcome), world.story()
    assert is_quiet(ahead(world))


@pytest.mark.parametrize("seed", range(15))
def test_what_settles_after_changes_is_an_end_state(seed: int) -> None:
    world = made(seed)
    world.run(120)
    chance = random.Random(seed)
    for name in sorted(world.wishes):
        world.apply(name, image=f"{name}:2", replicas=chance.randint(0, 4), resources={"cpu": 0.25, "memory": "64Mi"})
    world.set_node("n2", "drain")
    outcome = ahead(world)
    world.run(600)
    count = {name: sum(one.service == name for one in outcome.replicas) for name in world.wishes}
    assert count == {name: sum(service == name for service, _ in actual(world)) for name in world.wishes}
    assert is_quiet(ahead(world)), world.story()
    assert "n2" not in actual(world).values()


@pytest.mark.parametrize(
    ("count", "nodes", "update", "told"),
    [(1, 1, {}, True), (1, 2, {}, False), (3, 1, {"max_unavailable": 1}, False), (3, 2, {}, False)],
)
def test_an_update_that_has_no_room_to_begin_is_told(
    count: int, nodes: int, update: dict[str, Any], told: bool
) -> None:
    world = World(nodes)
    for node in world.nodes.values():
        node.capacity = Capacity(cpu=1000, memory=GI)
    asked: dict[str, Any] = {
        "replicas": count,
        "resources": {"cpu": 0.6 if count == 1 else 0.3, "memory": "64Mi"},
        "update": update,
    }
    world.apply(**asked)
    world.run(60)
    world.apply(image="web:2", **asked)
    cluster = live_cluster(world.view())
    outcome = forecast(cluster)
    assert len(outcome.placed) == count
    assert not outcome.waiting
    sentences = list(no_room_to_begin(cluster, outcome))
    assert bool(sentences) is told
    assert all("n1: needs 600m cpu, 400m free" in one and "after 10m" in one for one in sentences)


@pytest.mark.parametrize("count", [1, 3])
def test_an_update_without_room_stops_an_old_one_first_where_that_is_allowed(count: int) -> None:
    world = World(1)
    world.nodes["n1"].capacity = Capacity(cpu=1000, memory=GI)
    asked: dict[str, Any] = {"replicas": count, "resources": {"cpu": 0.6 if count == 1 else 0.3, "memory": "64Mi"}}
    asked["update"] = {"min_healthy": "1s", "max_unavailable": 1}
    world.apply(**asked)
    world.settle()
    ready = [count]
    world.watch = lambda: ready.append(len(world.ready()))
    world.apply(image="web:2", **asked)
    world.settle(within=120)
    assert {one.release for one in world.running()} == {2}
    assert min(ready) == count - 1
