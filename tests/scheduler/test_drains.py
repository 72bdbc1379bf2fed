"""A drained node is emptied start-first, within what services allow; at its deadline the rest is stopped."""

import pytest

from mesh.model import RunState, Want
from tests.scheduler.test_rollout import QUICK, running
from tests.scheduler.world import Behaviour, World


def test_a_drained_node_is_emptied_start_first() -> None:
    world, floor = running(6)
    world.set_node("n1", "drain")
    world.settle()
    world.run_until(lambda: "n1" not in world.spread())
    assert (len(world.ready()), floor.ready, floor.wanted) == (6, 6, 7)
    assert any(event.cause == "drain of n1" for event in world.plans["web"].events)


def test_several_at_a_time_leave_as_the_service_allows() -> None:
    world, floor = running(12, nodes=2, update={**QUICK, "max_surge": 2, "max_unavailable": 1})
    world.set_node("n1", "drain")
    world.run_until(lambda: world.spread() == {"n2": 12})
    assert floor.ready == 11
    assert floor.wanted <= 14


def test_a_drain_with_nowhere_to_go_stops_nothing_and_says_why() -> None:
    world, floor = running(2, nodes=1)
    world.set_node("n1", "drain")
    world.run(60)
    assert floor.ready == 2
    assert world.plans["web"].pending[0].reasons == ["n1: is draining"]
    world.set_node("n1")
    world.run(1)
    assert not world.plans["web"].pending


def test_a_drain_moves_a_static_port_start_first_to_another_node() -> None:
    world, floor = running(1, nodes=2, ports={"db": {"port": 5432, "host_port": 5432}})
    home = world.node_of(world.ready()[0])
    world.set_node(home, "drain")
    world.run_until(lambda: home not in world.spread())
    world.settle()
    assert floor.ready == 1


def test_a_drain_moves_a_singleton_stop_first() -> None:
    world, _ = running(1, nodes=2, singleton=True)
    home = world.node_of(world.ready()[0])
    world.set_node(home, "drain")
    alive = []
    world.watch = lambda: alive.append(len(world.running()))
    world.run_until(lambda: home not in world.spread())
    world.settle()
    assert max(alive) == 1


def test_a_drain_leaves_a_volume_where_it_is_and_says_so() -> None:
    world, floor = running(1, nodes=2, volumes={"data": {"path": "/data"}})
    world.set_node("n1", "drain")
    world.run(60)
    assert floor.ready == 1
    assert "cannot move" in world.plans["web"].pending[0].reasons[0]


def test_a_paused_node_keeps_what_it_has_and_gets_nothing() -> None:
    world, _ = running(2, nodes=2)
    world.set_node("n1", "pause")
    world.rescale("web", 4)
    world.run_until(lambda: len(world.ready()) == 4)
    assert world.spread() == {"n1": 1, "n2": 3}


def test_a_global_service_is_the_last_to_leave_a_drained_node() -> None:
    world = World(2)
    world.apply("agent", kind="global")
    world.apply("web", replicas=2)
    world.settle()
    world.set_node("n1", "drain")
    while world.spread("web").get("n1"):
        assert world.spread("agent").get("n1") == 1
        world.run(0.1)
    world.settle()
    assert (world.spread("agent"), world.spread("web")) == ({"n2": 1}, {"n2": 2})
    assert any(event.cause == "drain of n1" for event in world.plans["agent"].events)


def test_a_drain_that_is_taken_back_keeps_the_old_replicas() -> None:
    world, floor = running(4, nodes=2)
    world.behave["web:1"] = Behaviour(ready_after=30.0)
    before = set(world.ready())
    world.set_node("n1", "drain")
    world.run(5)
    assert len(world.running()) == 5
    world.set_node("n1")
    world.settle()
    assert (set(world.ready()), floor.ready) == (before, 4)


def test_a_drain_goes_on_under_a_new_leader() -> None:
    world, floor = running(6)
    world.compared = True
    world.set_node("n1", "drain", deadline=world.now + 600)
    for _ in range(4):
        world.run(1)
        world.change_leader()
    world.run_until(lambda: "n1" not in world.spread())
    assert floor.ready == 6


# ── the deadline ─────────────────────────────────────────────────────────────────────────────


def test_at_the_deadline_what_has_not_moved_is_stopped_and_begun_elsewhere() -> None:
    world, floor = running(4, nodes=2)
    world.compared = True
    world.behave["web:1"] = Behaviour(ready_after=20.0)
    world.set_node("n1", "drain", deadline=world.now + 10)
    world.run(9.9)
    assert floor.ready == 4
    world.run(0.5)
    assert not [one for one in world.node_plans["n1"].replicas if one.want is Want.RUN]
    world.settle()
    assert world.spread() == {"n2": 4}
    causes = {event.cause for event in world.plans["web"].events}
    assert {"drain of n1", "drain of n1, whose deadline has passed"} <= causes


def test_at_the_deadline_a_volume_stops_and_its_slot_waits_for_the_node() -> None:
    world, _ = running(1, nodes=2, volumes={"data": {"path": "/data"}})
    home = world.node_of(world.ready()[0])
    world.set_node(home, "drain", deadline=world.now + 5)
    world.run(10)
    assert not world.running()
    assert f"{home}: is draining" in world.plans["web"].pending[0].reasons
    world.set_node(home)
    world.settle()
    assert world.spread() == {home: 1}


def test_at_the_deadline_nothing_is_begun_twice_where_two_cannot_live() -> None:
    world, _ = running(1, nodes=2, singleton=True)
    home = world.node_of(world.ready()[0])
    alive = []
    world.watch = lambda: alive.append(len(world.running()))
    world.set_node(home, "drain", deadline=world.now)
    world.settle()
    assert (max(alive), home in world.spread()) == (1, False)


def test_a_global_service_leaves_after_all_others_also_at_the_deadline() -> None:
    world = World(2)
    world.apply("agent", kind="global")
    world.apply("web", replicas=2)
    world.settle()
    world.set_node("n1", "drain", deadline=world.now)
    reported = world.nodes["n1"].reported
    while any(one.service == "web" and not one.state.ended for one in reported):
        assert world.spread("agent").get("n1") == 1
        world.run(0.02)
        reported = world.nodes["n1"].reported
    world.settle()
    assert world.spread("agent") == {"n2": 1}


def test_a_surplus_replica_that_waits_for_others_stops_at_the_deadline() -> None:
    world, _ = running(3, nodes=3)
    world.behave["web:2"] = Behaviour(ready_after=None)
    world.set_node("n1", "drain", deadline=world.now + 3)
    world.rescale("web", 2)
    world.run(10)
    assert "n1" not in world.spread()


@pytest.mark.parametrize("patience", [100.0, 5.0])
def test_a_job_may_end_on_a_drained_node_until_the_deadline(patience: float) -> None:
    world = World(2)
    world.behave["web:1"] = Behaviour(done_after=30.0)
    world.apply(kind="job", job={"completions": 2, "parallelism": 2})
    world.run(2)
    first = {report.id for report in world.running()}
    world.set_node("n1", "drain", deadline=world.now + patience)
    world.run(4)
    assert {report.id for report in world.running()} == first
    world.run(2)
    assert len({report.id for report in world.running()} & first) == (2 if patience > 5 else 1)
    world.run_until(lambda: world.plans["web"].runs[-1].state is RunState.SUCCEEDED, within=80)
    assert world.plans["web"].runs[-1].failures == 0


def test_a_deadline_without_a_drain_means_nothing() -> None:
    world, floor = running(4, nodes=2)
    world.set_node("n1", "pause", deadline=world.now + 1)
    world.run(10)
    assert (floor.ready, world.spread()) == (4, {"n1": 2, "n2": 2})
