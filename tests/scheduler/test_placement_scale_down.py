"""Who goes when a service shrinks: the order, and that the forecast and the running scheduler choose the same."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mesh.scheduler.forecast.end_state import forecast
from mesh.scheduler.forecast.live_cluster import live_cluster
from mesh.units import parse_numbers
from tests.scheduler.test_forecast import ask
from tests.scheduler.world import World

WEB = {"image": "web:1", "replicas": 1, "resources": {"cpu": 0.1, "memory": "16Mi"}}
DB = {"image": "db:1", "replicas": 1, "resources": {"cpu": 2, "memory": "16Mi"}}


def left(nodes: Any, *replicas: dict[str, Any], of: int = 1, others: tuple[dict[str, Any], ...] = ()) -> set[object]:
    """The slots of `web` that remain of these replicas when so many are desired."""
    here = [{"service": "web", "release": 1, "state": "ready", **replica} for replica in replicas]
    services = {"web": {**WEB, "replicas": of}, **({"db": DB} if others else {})}
    answer = ask(nodes, services, [*here, *others])
    return {one["slot"] for one in here} - {slot for (_, slot), why in answer.why.items() if "not needed" in why}


def nodes(*names: str, **more: Any) -> dict[str, Any]:
    return {name: {"cpu": 4, "memory": "1Gi", **more} for name in names}


def test_what_is_not_ready_goes_before_what_is_of_an_older_release() -> None:
    old, new = {"slot": 1, "node": "n1", "release": 1}, {"slot": 2, "node": "n2", "release": 2, "state": "starting"}
    assert left(nodes("n1", "n2"), old, new) == {1}


def test_a_draining_node_gives_up_its_replicas_first() -> None:
    cluster = {**nodes("n1", availability="drain"), **nodes("n2")}
    assert left(cluster, {"slot": 1, "node": "n1"}, {"slot": 2, "node": "n2", "state": "starting"}) == {2}


def test_the_last_ready_one_in_a_zone_stays() -> None:
    cluster = {**nodes("n1", "n2", labels={"zone": "a"}), **nodes("n3", labels={"zone": "b"})}
    there = [{"slot": number, "node": f"n{number}"} for number in (1, 2, 3)]
    lodger = {"service": "db", "slot": 1, "node": "n1", "release": 1, "state": "ready"}
    fuller = {"service": "db", "slot": 2, "node": "n2", "release": 1, "state": "ready"}
    assert 3 in left(cluster, *there, of=2, others=(lodger, fuller)), "although its node is the emptiest"


def test_the_emptiest_node_gives_up_its_replica_before_age_counts() -> None:
    lodger = {"service": "db", "slot": 1, "node": "n2", "release": 1, "state": "ready"}
    assert left(nodes("n1", "n2"), {"slot": 1, "node": "n1"}, {"slot": 2, "node": "n2"}, others=(lodger,)) == {2}


@pytest.mark.parametrize("seed", range(12))
def test_the_running_scheduler_gives_up_what_was_forecast(seed: int) -> None:
    chance = random.Random(seed)
    world = World(5, seed=seed)
    for number, node in enumerate(world.nodes.values()):
        node.labels = {"zone": "ab"[number % 2]}
    size = {"cpu": 0.5, "memory": "64Mi"}
    world.apply("db", replicas=chance.randint(1, 4), resources=size, placement={"strategy": "binpack"})
    world.apply("web", replicas=6, resources=size, update={"min_healthy": "1s", "max_surge": 2})
    world.settle()
    world.apply("web", image="web:2", replicas=6, resources=size, update={"min_healthy": "1s", "max_surge": 2})
    world.run(chance.choice([0.05, 2.0, 30.0]))
    for id in chance.sample(world.ready(), chance.randint(0, 1)):
        world.set_ready(id, False)
    world.run(0.05)
    world.scale["web"] = chance.randint(1, 5)
    stops = {one.replica.slot for one in forecast(live_cluster(world.view())).stopped if "not needed" in one.why}
    world.reconcile()
    plan = world.plans["web"]
    kept = set(parse_numbers(plan.seats)) if plan.seats else set(range(1, plan.desired + 1))
    assert kept == set(range(1, 7)) - stops, world.story()
