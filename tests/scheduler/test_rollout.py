"""Rolling updates, rollbacks, drains: the script of each, on a virtual clock."""

from collections.abc import Callable
from typing import Any

import pytest

from mesh.model import RolloutState, Want
from tests.scheduler.world import Behaviour, World

QUICK = {"min_healthy": "2s", "healthy_deadline": "30s", "progress_deadline": "60s"}


class Floor:
    """Watches how few replicas of one service are ready, and how many are wanted, at every reconcile."""

    def __init__(self, world: World, service: str = "web") -> None:
        self._world, self._service = world, service
        self.ready = 10**9
        self.wanted = 0
        world.watch = self.look

    def look(self) -> None:
        self.ready = min(self.ready, len(self._world.ready(self._service)))
        wanted = sum(
            1 for plan in self._world.node_plans.values() for one in plan.replicas
            if one.service == self._service and one.want is Want.RUN
        )  # fmt: skip
        self.wanted = max(self.wanted, wanted)


def running(replicas: int = 3, nodes: int = 3, **spec: Any) -> tuple[World, Floor]:
    """A service that has settled, and the floor beneath it."""
    world = World(nodes)
    world.apply(replicas=replicas, **{"update": QUICK, **spec})
    world.settle()
    world.run(10)
    return world, Floor(world)


def releases(world: World) -> set[int]:
    return {report.release for report in world.running()}


def state(world: World) -> tuple[RolloutState, int]:
    return world.plans["web"].rollout.state, world.plans["web"].rollout.release


def test_a_new_release_takes_over_one_by_one_and_never_lacks_a_replica() -> None:
    world, floor = running(3)
    world.apply(image="web:2", replicas=3, update=QUICK)
    took = world.settle()
    assert releases(world) == {2}
    assert (floor.ready, floor.wanted) == (3, 4)
    assert took >= 6, "each replica must be healthy for two seconds before the next"
    assert state(world) == (RolloutState.IDLE, 2)
    assert "release 2 is in force" in world.events()


@pytest.mark.parametrize(
    ("surge", "unavailable", "ready", "wanted"),
    [(1, 0, 4, 5), (2, 0, 4, 6), ("50%", "0%", 4, 6), (0, 1, 3, 4), (0, 2, 2, 4), (1, 1, 3, 5), ("25%", "25%", 3, 5)],
)
def test_surge_and_unavailable_are_kept(surge: int | str, unavailable: int | str, ready: int, wanted: int) -> None:
    world, floor = running(4)
    world.apply(image="web:2", replicas=4, update={**QUICK, "max_surge": surge, "max_unavailable": unavailable})
    world.settle()
    assert releases(world) == {2}
    assert (floor.ready, floor.wanted) == (ready, wanted)


def test_slots_that_are_not_ready_are_replaced_first() -> None:
    world, _ = running(3)
    world.set_ready(world.ready()[1], False)
    world.run(1)
    world.apply(image="web:2", replicas=3, update=QUICK)
    world.run(0.5)
    assert [report.slot for report in world.running() if report.release == 2] == [2]


def test_a_release_that_never_gets_ready_is_rolled_back_as_a_new_release() -> None:
    world, floor = running(3)
    world.behave["web:2"] = Behaviour(ready_after=None)
    world.apply(image="web:2", replicas=3, update=QUICK)
    world.run_until(lambda: len(world.plans["web"].releases) == 3, within=40)
    world.settle()
    plan = world.plans["web"]
    assert (plan.releases[2].hash, plan.releases[2].rollback_of) == (plan.releases[0].hash, 2)
    assert floor.ready == 3
    assert {report.slot for report in world.running()} == {1, 2, 3}
    assert "release 2: a replica was not healthy within 30s; rolled back" in plan.rollout.message
    assert any("rolling back to release 1" in event for event in world.events())


def test_after_a_rollback_the_same_wish_is_not_tried_again_but_a_new_one_is() -> None:
    world, _ = running(2)
    world.behave["web:2"] = Behaviour(ready_after=None)
    world.apply(image="web:2", replicas=2, update=QUICK)
    world.run_until(lambda: len(world.plans["web"].releases) == 3)
    world.apply(image="web:2", replicas=3, update=QUICK)
    world.settle()
    assert len(world.plans["web"].releases) == 3
    assert len(world.ready()) == 3
    world.apply(image="web:3", replicas=3, update=QUICK)
    world.settle()
    assert world.plans["web"].releases[-1].number == 4
    assert releases(world) == {4}


def test_a_crash_loop_is_rolled_back_too_and_touches_one_slot_only() -> None:
    world, floor = running(3)
    world.behave["web:2"] = Behaviour(ready_after=0.1, crash_after=0.3)
    world.apply(image="web:2", replicas=3, update=QUICK)
    world.run_until(lambda: len(world.plans["web"].releases) == 3, within=40)
    world.settle()
    assert floor.ready == 3
    assert not world.plans["web"].slots, "the failures of a release that is gone are forgotten"
    failed = [event for event in world.events() if event.startswith("failed")]
    assert failed
    assert all("web-1-" in event for event in failed)


def test_while_a_rollout_stands_a_crashed_replica_of_the_old_release_comes_back_as_it_was() -> None:
    world, _ = running(3)
    world.behave["web:2"] = Behaviour(ready_after=None)
    world.apply(image="web:2", replicas=3, update={**QUICK, "on_failure": "pause"})
    world.run(5)
    world.crash(next(report.id for report in world.running() if report.slot == 3))
    world.run(5)
    assert {(report.slot, report.release) for report in world.running()} == {(1, 1), (1, 2), (2, 1), (3, 1)}


def test_a_paused_rollout_stays_until_a_new_spec() -> None:
    world, floor = running(3)
    world.behave["web:2"] = Behaviour(ready_after=None)
    world.apply(image="web:2", replicas=3, update={**QUICK, "on_failure": "pause"})
    world.run(600)
    assert state(world) == (RolloutState.PAUSED, 2)
    assert floor.ready == 3
    world.apply(image="web:3", replicas=3, update=QUICK)
    world.settle()
    assert (releases(world), floor.ready) == ({3}, 3)


def test_on_failure_continue_goes_on_with_a_message() -> None:
    world, _ = running(3)
    world.behave["web:2"] = Behaviour(ready_after=40.0)
    world.apply(image="web:2", replicas=3, update={**QUICK, "on_failure": "continue"})
    world.run(35)
    assert "going on" in world.plans["web"].rollout.message
    world.settle()
    assert releases(world) == {2}


def test_the_first_release_has_nothing_to_go_back_to_and_keeps_trying() -> None:
    world = World(2)
    world.behave["web:1"] = Behaviour(ready_after=None)
    world.apply(replicas=2, update=QUICK)
    world.run(100)
    assert state(world) == (RolloutState.FAILED, 1)
    world.set_ready(world.running()[0].id, True)
    world.set_ready(world.running()[1].id, True)
    world.settle()
    assert state(world) == (RolloutState.IDLE, 1)


def test_a_first_release_that_never_got_ready_makes_way_for_the_next_at_once() -> None:
    world = World(2)
    world.behave["web:1"] = Behaviour(ready_after=None)
    world.apply(replicas=6)
    world.run(20)
    world.apply(image="web:2", replicas=6)
    assert world.run_until(lambda: len(world.ready()) == 6) < 2


def test_a_rollback_is_never_rolled_back() -> None:
    world, _ = running(2)
    world.behave["web:2"] = Behaviour(ready_after=None)
    world.apply(image="web:2", replicas=2, update=QUICK)
    world.run(20)
    world.behave["web:1"] = Behaviour(ready_after=None)
    for id in list(world.ready()):
        world.set_ready(id, False)
    world.run(300)
    plan = world.plans["web"]
    assert [release.rollback_of for release in plan.releases] == [0, 0, 2]
    assert plan.rollout.state is RolloutState.FAILED
    assert plan.rollout.message.endswith("this was a rollback already; still trying")


def test_a_failed_rollback_goes_on_elsewhere_when_the_slot_it_tried_is_no_more() -> None:
    one_by_one: dict[str, Any] = {"update": QUICK, "volumes": {"data": {"path": "/data"}}}
    world, _ = running(3, **one_by_one)
    world.apply(image="web:2", replicas=3, **one_by_one)
    world.run_until(lambda: sum(one.release == 2 and one.id in world.ready() for one in world.running()) == 2)
    world.behave["web:2"] = world.behave["web:1"] = Behaviour(ready_after=None)
    world.run_until(lambda: state(world) == (RolloutState.FAILED, 3))
    world.behave["web:1"] = Behaviour()
    world.rescale("web", 2)
    world.settle()
    assert (state(world), releases(world)) == ((RolloutState.IDLE, 3), {3})


def test_a_spec_changed_in_mid_rollout_goes_straight_to_the_newest() -> None:
    world, floor = running(4)
    world.apply(image="web:2", replicas=4, update=QUICK)
    world.run(4)
    assert releases(world) == {1, 2}
    world.apply(image="web:3", replicas=4, update=QUICK)
    world.settle()
    assert (releases(world), floor.ready) == ({3}, 4)


def test_a_replica_that_crashes_late_in_a_long_rollout_does_not_fail_it() -> None:
    world, _ = running(12)
    world.apply(image="web:2", replicas=12, update={**QUICK, "min_healthy": "5s"})
    world.run(45)
    world.crash(next(report.id for report in world.running() if report.slot == 1))
    world.settle()
    assert len(world.plans["web"].releases) == 2


def test_a_change_of_replicas_in_mid_rollout_is_followed() -> None:
    world, floor = running(3)
    world.apply(image="web:2", replicas=3, update=QUICK)
    world.run(3)
    world.apply(image="web:2", replicas=5, update=QUICK)
    world.settle()
    assert (releases(world), len(world.ready()), floor.ready) == ({2}, 5, 3)


def test_without_room_to_surge_the_rollout_waits_says_why_and_is_rolled_back() -> None:
    world, floor = running(2, nodes=1, resources={"memory": "2Gi"})
    world.apply(image="web:2", replicas=2, resources={"memory": "2Gi"}, update=QUICK)
    world.run(5)
    assert world.plans["web"].pending[0].reasons == ["n1: needs 2Gi memory, 0 free"]
    world.settle()
    assert world.plans["web"].releases[-1].rollback_of == 2
    assert floor.ready == 2
    assert not world.plans["web"].pending


def test_a_new_leader_in_mid_rollout_changes_nothing_but_the_time_it_takes() -> None:
    world, floor = running(3)
    world.apply(image="web:2", replicas=3, update=QUICK)
    for _ in range(5):
        world.run(1.1)
        world.change_leader()
    world.settle()
    assert (releases(world), floor.ready, floor.wanted) == ({2}, 3, 4)


def test_a_volume_of_the_old_release_is_not_shared_while_the_new_one_has_none() -> None:
    world, _ = running(3, volumes={"data": {"path": "/data"}})
    world.apply(image="web:2", replicas=3, update={**QUICK, "min_healthy": "8s"})
    world.run(1)
    world.rescale("web", 2)
    world.run(0.05)
    world.rescale("web", 3)
    world.run(0.05)
    assert "has stopped" in world.plans["web"].pending[-1].reasons[0]
    world.run(5)  # `check` has watched the volumes
    assert {(report.slot, report.release) for report in world.running()} >= {(2, 1), (3, 1)}


@pytest.mark.parametrize("disturb", [World.change_leader, lambda world: world.lose("n3"), lambda world: None])
def test_a_rollout_over_all_kinds_of_trouble_ends(disturb: Callable[[World], None]) -> None:
    world, _ = running(4, nodes=4)
    world.apply(image="web:2", replicas=4, update=QUICK)
    world.run(3)
    disturb(world)
    world.settle()
    assert releases(world) == {2}
