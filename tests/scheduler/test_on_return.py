"""A lost node returns with replicas that were replaced: one of the two stays, as the service says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from mesh.model import ReplicaState, Want
from tests.scheduler.world import Behaviour, World

AWAY = 12.0
"""Seconds: a node without probes is given up five seconds after its session's end."""


def lost(seconds: float = AWAY, *, kill: bool = False, **spec: Any) -> tuple[World, str]:
    """Three replicas on three nodes, of which `n1` is cut off for so long; and the id of the one that it has."""
    world = World(3)
    world.compared = True
    world.apply(replicas=3, **spec)
    world.settle()
    (old,) = (one.id for one in world.node_plans["n1"].replicas)
    world.lose("n1", kill=kill)
    world.run(seconds)
    return world, old


def returns(world: World) -> None:
    """The node comes back; never again is a slot without a ready replica, and none ends with two."""
    floor: list[int] = []
    world.watch = lambda: floor.append(len({one.slot for one in world.running() if one.state is ReplicaState.READY}))
    world.bring_back("n1")
    world.settle()
    world.run(60)
    assert min(floor) == 3
    assert set(Counter(one.slot for one in world.running()).values()) == {1}
    assert world.settled()


def test_by_default_the_new_replica_stays() -> None:
    world, old = lost()
    assert not world.node_plans["n1"].replicas
    returns(world)
    assert old not in world.ready()


def test_the_old_replica_stays_where_that_is_wanted() -> None:
    world, old = lost(on_return="keep-old")
    assert len(world.ready()) == 4, "the old one serves on, on its side of the fault"
    assert world.node_plans["n1"].lost
    returns(world)
    assert old in world.ready()
    assert not world.node_plans["n1"].lost


def test_the_old_replica_stays_also_if_the_new_one_is_not_ready_yet() -> None:
    world, old = lost(3.0, on_return="keep-old")
    world.behave["web:1"] = Behaviour(ready_after=None)
    world.run(AWAY)
    assert len(world.running()) == 4
    returns(world)
    assert old in world.ready()


def test_an_old_replica_that_died_with_its_node_is_not_begun_again() -> None:
    world, old = lost(kill=True, on_return="keep-old")
    returns(world)
    assert old not in world.ready()


def test_what_its_agent_said_in_an_earlier_life_brings_no_node_back() -> None:
    """The agent has its key again, with the old report in it: in that, what the power cut killed is ready."""
    world, old = lost(kill=True, on_return="keep-old")
    world.claim("n1")
    world.run(1)
    assert world.node_plans["n1"].lost
    assert world.cluster.nodes["n1"].why == "is back, and has not seen its engine yet: what it ran is replaced"
    returns(world)
    assert old not in world.ready()


def test_an_old_replica_that_is_ready_no_more_makes_way() -> None:
    world, old = lost(on_return="keep-old")
    world.nodes["n1"].up = True  # it reports, and its session is not yet there again
    world.set_ready(old, False)
    world.run(0.1)
    returns(world)
    assert old not in world.ready()


def test_until_its_node_has_reported_again_nothing_is_stopped_for_an_old_replica() -> None:
    world, old = lost(on_return="keep-old")
    before = set(world.ready()) - {old}
    world.nodes["n1"].up = True
    world.run(5)
    assert {one.id for plan in world.node_plans.values() for one in plan.replicas if one.want is Want.RUN} == {
        *before,
        old,
    }
    returns(world)
    assert old in world.ready()


@pytest.mark.parametrize("later", ["image", "scale", "delete", "keep-new"])
def test_what_was_changed_meanwhile_counts(later: str) -> None:
    world, old = lost(on_return="keep-old")
    match later:
        case "image":
            world.apply(image="web:2", replicas=3, on_return="keep-old")
        case "scale":
            world.rescale("web", 0)
        case "delete":
            world.delete("web")
        case "keep-new":
            world.apply(replicas=3)
    world.run(60)
    world.bring_back("n1")
    world.run(60)
    assert old not in {one.id for one in world.running()}
    assert world.settled()


def test_a_singleton_never_keeps_the_old_one() -> None:
    world = World(2)
    world.apply(on_return="keep-old", singleton=True)
    world.settle()
    (old,) = world.ready()
    world.lose(home := world.node_of(old))
    world.run_until(lambda: world.ready() not in ([], [old]))
    assert not world.node_plans[home].replicas
    world.bring_back(home)
    world.settle()
    assert old not in world.ready()


def test_a_global_service_keeps_its_old_replica() -> None:
    world = World(2)
    world.apply("agent", kind="global", on_return="keep-old")
    world.settle()
    before = set(world.ready("agent"))
    world.lose("n1", kill=False)
    world.run(AWAY)
    assert world.plans["agent"].desired == 1
    world.bring_back("n1")
    world.settle()
    assert set(world.ready("agent")) == before


def test_an_old_replica_keeps_its_room_for_its_return() -> None:
    world, old = lost(on_return="keep-old", resources={"memory": "2Gi"})
    world.apply("other", replicas=6, resources={"memory": "2Gi"})
    world.run(5)
    world.bring_back("n1")
    world.run(30)  # `check` has watched the capacity
    assert old in world.ready()


def test_a_new_leader_keeps_the_old_one_too() -> None:
    world, old = lost(on_return="keep-old")
    world.change_leader()
    world.run(20)
    returns(world)
    assert old in world.ready()
