"""Canaries, blue/green, and what operators may want of a rollout: the script of each, on a virtual clock."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model import RolloutState, Want
from tests.scheduler.world import Behaviour, World

QUICK = {"min_healthy": "2s", "healthy_deadline": "30s", "progress_deadline": "60s"}
CANARY = {**QUICK, "canary": 1}


def settled(replicas: int = 3, nodes: int = 3, **spec: Any) -> World:
    world = World(nodes)
    world.apply(replicas=replicas, **{"update": QUICK, **spec})
    world.settle()
    world.run(10)
    return world


def with_canaries(replicas: int = 3, canary: int | str = 1, **update: Any) -> World:
    """Release 2 has begun."""
    world = settled(replicas)
    world.apply(image="web:2", replicas=replicas, update={**QUICK, "canary": canary, **update})
    return world


def by_release(world: World) -> dict[int, int]:
    """How many replicas of each release are ready."""
    return dict(Counter(one.release for one in world.running() if one.state == "ready"))


def state(world: World) -> tuple[RolloutState, int]:
    return world.plans["web"].rollout.state, world.plans["web"].rollout.release


# ── canaries ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("replicas", "canary", "count"), [(3, 1, 1), (4, "50%", 2), (3, "50%", 2), (3, "100%", 3), (2, 5, 2)]
)
def test_canaries_run_beside_all_old_replicas_until_they_are_promoted(
    replicas: int, canary: int | str, count: int
) -> None:
    world = with_canaries(replicas, canary)
    world.run(2000)
    assert by_release(world) == {1: replicas, 2: count}
    assert state(world) == (RolloutState.CANARY, 2)
    assert world.reconcile().changes == 0
    world.command("promote", release=2)
    world.settle()
    assert by_release(world) == {2: replicas}
    assert world.plans["web"].releases[-1].good


def test_blue_green_changes_all_at_once() -> None:
    world = with_canaries(4, "100%")
    world.run(10)
    world.command("promote")
    world.run(1)
    assert by_release(world) == {2: 4}
    assert state(world) == (RolloutState.IDLE, 2)


def test_canaries_promote_themselves_when_told_so() -> None:
    world = with_canaries(4, 2, auto_promote=True)
    floor = []
    world.watch = lambda: floor.append(len(world.ready()))
    world.settle()
    assert by_release(world) == {2: 4}
    assert min(floor) == 4
    assert "release 2: its 2 canaries are healthy: promoted" in world.events()


def test_a_promotion_before_the_canaries_are_healthy_waits_for_them() -> None:
    world = with_canaries(3)
    world.behave["web:2"] = Behaviour(ready_after=8.0)
    world.run(1)
    world.command("promote", release=2)
    world.run(5)
    assert state(world) == (RolloutState.CANARY, 2)
    world.settle()
    assert by_release(world) == {2: 3}


@pytest.mark.parametrize("behaviour", [Behaviour(ready_after=None), Behaviour(ready_after=0.1, crash_after=0.3)])
def test_canaries_that_fail_are_taken_back(behaviour: Behaviour) -> None:
    world = settled(3)
    world.behave["web:2"] = behaviour
    floor = []
    world.watch = lambda: floor.append(
        len([one for one in world.running() if one.release == 1 and one.state == "ready"])
    )
    world.apply(image="web:2", replicas=3, update=CANARY)
    world.run_until(lambda: len(world.plans["web"].releases) == 3, within=40)
    world.settle()
    assert by_release(world) == {1: 3}
    assert min(floor) == 3
    assert world.plans["web"].releases[-1].rollback_of == 2


def test_a_canary_that_fails_after_a_long_wait_has_its_time_again() -> None:
    world = with_canaries(3)
    world.run(5000)
    canary = next(one for one in world.running() if one.release == 2)
    world.crash(canary.id)
    world.run(10)
    assert (state(world), by_release(world)) == ((RolloutState.CANARY, 2), {1: 3, 2: 1})


def test_an_old_replica_that_crashes_beside_its_canary_comes_back_as_it_was() -> None:
    world = with_canaries(3)
    world.run(10)
    slot = next(one.slot for one in world.running() if one.release == 2)
    world.crash(next(one.id for one in world.running() if one.release == 1 and one.slot == slot))
    world.run(10)
    assert by_release(world) == {1: 3, 2: 1}


def test_a_new_spec_sends_canaries_away() -> None:
    world = with_canaries(3)
    world.run(10)
    world.apply(image="web:3", replicas=3, update=CANARY)
    world.run(10)
    assert by_release(world) == {1: 3, 3: 1}


def test_the_first_release_needs_no_canaries() -> None:
    world = World(2)
    world.apply(replicas=2, update=CANARY)
    world.settle()
    assert by_release(world) == {1: 2}


@pytest.mark.parametrize(
    "spec", [{"ports": {"db": {"port": 5432, "host_port": 5432}}}, {"volumes": {"v": {"path": "/v"}}}]
)
def test_canaries_take_places_where_two_cannot_live_side_by_side(spec: dict[str, Any]) -> None:
    world = settled(3, **spec)
    world.apply(image="web:2", replicas=3, update=CANARY, **spec)
    world.run(60)
    assert by_release(world) == {1: 2, 2: 1}
    world.command("promote")
    world.settle()
    assert by_release(world) == {2: 3}


def test_a_drain_while_canaries_wait_moves_the_old_replicas() -> None:
    world = with_canaries(3)
    world.run(10)
    canary = next(one for one in world.running() if one.release == 2)
    world.set_node(
        world.node_of(next(one.id for one in world.running() if (one.slot, one.release) == (canary.slot, 1))), "drain"
    )
    world.run(60)
    assert by_release(world) == {1: 3, 2: 1}


def test_a_new_scale_while_canaries_wait_is_of_old_replicas() -> None:
    world = with_canaries(3)
    world.run(10)
    world.rescale("web", 5)
    world.run(10)
    assert by_release(world) == {1: 5, 2: 1}
    world.rescale("web", 1)
    world.run(10)
    assert by_release(world) == {1: 1, 2: 1}
    world.rescale("web", 0)
    world.settle()


# ── commands ─────────────────────────────────────────────────────────────────────────────────


def test_a_paused_rollout_admits_nothing_more_and_meets_no_deadline_until_it_is_resumed() -> None:
    world = settled(6)
    world.apply(image="web:2", replicas=6, update=QUICK)
    world.run(4)
    world.command("pause", release=2)
    world.run(500)
    paused = by_release(world)
    assert state(world) == (RolloutState.PAUSED, 2)
    assert set(paused) == {1, 2}
    world.run(500)
    assert by_release(world) == paused
    world.command("resume", release=2)
    world.settle()
    assert by_release(world) == {2: 6}


def test_an_aborted_rollout_goes_back_start_first_as_a_new_release() -> None:
    world = settled(4)
    world.apply(image="web:2", replicas=4, update=QUICK)
    world.run(8)
    assert set(by_release(world)) == {1, 2}
    floor = []
    world.watch = lambda: floor.append(len(world.ready()))
    world.command("abort")
    world.settle()
    plan = world.plans["web"]
    assert (plan.releases[-1].hash, plan.releases[-1].rollback_of) == (plan.releases[0].hash, 2)
    assert set(by_release(world)) == {1, 3}, "what still ran release 1 was left alone"
    assert min(floor) == 4


def test_aborted_canaries_stop() -> None:
    world = with_canaries(3)
    world.run(10)
    world.command("abort", release=2)
    world.settle()
    assert by_release(world) == {1: 3}


def test_undo_takes_a_release_back_and_undo_again_brings_it_back() -> None:
    world = settled(2)
    world.apply(image="web:2", replicas=2, update=QUICK)
    world.settle()
    world.command("undo")
    world.settle()
    plan = world.plans["web"]
    assert plan.releases[-1].spec["image"] == "web:1"
    world.apply(image="web:2", replicas=3, update=QUICK)
    world.settle()
    assert world.plans["web"].releases[-1].spec["image"] == "web:1", "a change of the count does not undo the undo"
    world.command("undo")
    world.settle()
    assert world.plans["web"].releases[-1].spec["image"] == "web:2"


def test_undo_to_a_release_needs_no_canaries() -> None:
    world = settled(2, update=CANARY)
    for version in (2, 3):
        world.apply(image=f"web:{version}", replicas=2, update={**CANARY, "auto_promote": True})
        world.settle()
    world.command("undo", to=1)
    world.settle()
    assert world.plans["web"].releases[-1].number == 4
    assert world.plans["web"].releases[-1].spec["image"] == "web:1"


@pytest.mark.parametrize(
    ("action", "release", "to", "why"),
    [
        ("pause", 0, 0, "pause ignored: there is nothing to pause: the rollout of release 1 is idle"),
        ("resume", 0, 0, "resume ignored: there is nothing to resume: the rollout of release 1 is idle"),
        ("promote", 0, 0, "promote ignored: there is nothing to promote: release 1 has no canaries that wait"),
        ("abort", 0, 0, "abort ignored: there is nothing to abort: release 1 is in force (undo takes it back)"),
        ("undo", 0, 0, "undo ignored: there is no other good release to go back to"),
        ("undo", 0, 7, "undo ignored: there is no release 7 (any more): 1 are kept"),
        ("undo", 0, 1, "undo ignored: release 1, the newest, equals release 1"),
        ("pause", 9, 0, "pause ignored: it is meant for release 9, and release 1 is the newest"),
    ],
)
def test_a_command_that_makes_no_sense_does_nothing_and_says_why(action: str, release: int, to: int, why: str) -> None:
    world = settled(1)
    world.command(action, release, to)
    world.run(1)
    assert why in world.events()
    assert len(world.plans["web"].releases) == 1
    assert world.reconcile().changes == 0


def test_a_command_is_obeyed_once_whoever_leads() -> None:
    world = settled(2)
    world.apply(image="web:2", replicas=2, update=QUICK)
    world.settle()
    world.command("undo")
    for _ in range(3):
        world.run(2)
        world.change_leader()
    world.settle()
    assert len(world.plans["web"].releases) == 3


def test_a_command_from_before_the_service_was_there_is_not_about_it() -> None:
    world = World(1)
    world.command("pause")
    world.apply(replicas=1, update=QUICK)
    world.settle()
    assert by_release(world) == {1: 1}


def test_a_command_to_a_job_or_to_a_deleted_service_is_not_about_what_comes_after() -> None:
    world = settled(1)
    world.apply(kind="job", update=QUICK)
    world.run(1)
    world.command("pause")
    world.run(1)
    world.apply(image="web:2", replicas=1, update=QUICK)
    world.settle()
    world.delete("web")
    world.run(0.05)
    world.command("pause")
    world.run(0.05)
    world.apply(image="web:3", replicas=1, update=QUICK)
    world.settle()


# ── what must hold ───────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(
    replicas=st.integers(1, 6),
    surge=st.integers(0, 3),
    unavailable=st.integers(0, 3),
    canary=st.sampled_from([0, 1, 2, "50%", "100%"]),
    works=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.floats(0.0, 40.0), st.sampled_from(["pause", "resume", "promote", "abort", "undo", "lead", "crash"])
        ),
        max_size=6,
    ),
)
def test_whatever_operators_do_a_rollout_keeps_what_it_promises(
    replicas: int, surge: int, unavailable: int, canary: int | str, works: bool, steps: list[tuple[float, str]]
) -> None:
    if not surge and not unavailable:
        return
    update = {**QUICK, "max_surge": surge, "max_unavailable": unavailable, "canary": canary}
    world = World(3)
    world.compared = True
    world.apply(replicas=replicas, update=update)
    world.settle()
    world.run(5)
    if not works:
        world.behave["web:2"] = Behaviour(ready_after=None)
    crashed = 0

    def look() -> None:
        wanted = [one for plan in world.node_plans.values() for one in plan.replicas if one.want is Want.RUN]
        count = replicas if canary == "100%" else (replicas + 1) // 2 if canary == "50%" else min(int(canary), replicas)
        assert len(wanted) <= replicas + max(surge, count), world.story()
        assert len(world.ready()) >= replicas - unavailable - crashed, world.story()

    world.watch = look
    world.apply(image="web:2", replicas=replicas, update=update)
    for pause, action in steps:
        world.run(pause)
        if action == "lead":
            world.change_leader()
        elif action != "crash":
            world.command(action)
        elif ready := world.ready():
            crashed += 1
            world.crash(ready[0])
    world.run(5)
    for action in ("resume", "promote"):
        world.command(action)
        world.run(1)
    world.settle()
    assert len(world.ready()) == replicas
    assert world.reconcile().changes == 0
