"""Work that ends: jobs, and cron services that run by the clock."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mesh.model import Run, RunState, Want
from tests.scheduler.world import Behaviour, World

DONE = Behaviour(done_after=3.0)


def job(world: World, behaviour: Behaviour = DONE, name: str = "web", **fields: Any) -> World:
    world.behave[f"{name}:1"] = behaviour
    world.apply(name, kind="job", **fields)
    return world


def last_run(world: World, name: str = "web") -> Run:
    return world.plans[name].runs[-1]


def alive(world: World, name: str = "web") -> int:
    return len(world.running(name))


def ended(world: World, name: str = "web") -> bool:
    return bool(world.plans[name].runs) and not any(run.state == "running" for run in world.plans[name].runs)


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────


def test_a_job_runs_to_its_end_and_is_not_started_again() -> None:
    world = job(World(2), job={"completions": 5, "parallelism": 2})
    most = 0
    while not (world.plans and ended(world)):
        world.run(0.2)
        most = max(most, alive(world))
    assert most == 2
    run = last_run(world)
    assert (run.state, run.completed, run.failures) == (RunState.SUCCEEDED, "1-5", 0)
    world.run(1000)
    assert not alive(world)
    assert len(world.plans["web"].runs) == 1
    assert world.plans["web"].desired == 0
    assert world.reconcile().changes == 0


def test_the_last_replicas_of_a_job_are_kept_for_their_output_but_hold_no_room() -> None:
    world = job(World(1), resources={"cpu": 4}, job={"completions": 7})
    world.run_until(lambda: bool(world.plans) and ended(world))
    records = world.node_plans["n1"].replicas
    assert [one.want for one in records] == [Want.KEEP] * 5
    assert [one.slot for one in records] == [3, 4, 5, 6, 7]
    world.apply("other", resources={"cpu": 4})
    world.run_until(lambda: world.ready("other") != [])
    world.delete("web")
    world.run_until(lambda: "web" not in world.plans)
    assert {one.service for one in world.node_plans["n1"].replicas} == {"other"}


def test_failures_are_tried_again_on_another_node_with_back_off() -> None:
    world = job(World(2), Behaviour(crash_after=0.5), job={"retries": 3})
    nodes: list[str] = []
    while not (world.plans and ended(world)):
        world.run(0.1)
        for report in world.running():
            if not nodes or world.node_of(report.id) != nodes[-1]:
                nodes.append(world.node_of(report.id))
    run = last_run(world)
    assert (run.state, run.failures) == (RunState.FAILED, 4)
    assert run.message == "4 of its replicas failed, 3 may (job.retries)"
    assert nodes[:2] == ["n1", "n2"]
    assert run.ended - run.started > 3.5  # 1 + 2 + 4 seconds from attempt to attempt, less the first
    world.run(1000)
    assert not alive(world)


def test_a_slot_that_failed_is_done_when_it_succeeds() -> None:
    world = job(World(2), Behaviour(crash_after=0.5), job={"completions": 2, "parallelism": 2, "retries": 4})
    world.run(0.2)
    world.behave["web:1"] = DONE
    world.run_until(lambda: ended(world))
    run = last_run(world)
    assert (run.state, run.completed, run.failures) == (RunState.SUCCEEDED, "1-2", 2)
    assert not world.plans["web"].slots


def test_a_job_that_takes_too_long_has_failed_and_is_stopped() -> None:
    world = job(World(1), Behaviour(), job={"completions": 3, "deadline": "20s"})
    world.run_until(lambda: bool(world.plans) and ended(world))
    world.run(2)
    run = last_run(world)
    assert (run.state, run.message) == (RunState.FAILED, "not done within 20s (job.deadline)")
    assert run.ended - run.started == pytest.approx(20, abs=0.2)
    assert not alive(world)


def test_a_new_release_runs_the_job_again_once_the_old_run_has_stopped() -> None:
    world = job(World(1), Behaviour())
    world.run(2)
    world.behave["web:2"] = DONE
    world.apply("web", kind="job", image="web:2")
    world.run(0.1)
    assert [run.state for run in world.plans["web"].runs] == ["replaced", "running"]
    assert "waits until web-1-0000 has stopped" in world.plans["web"].pending[0].reasons
    world.run_until(lambda: ended(world))
    assert [(run.release, run.state) for run in world.plans["web"].runs] == [(1, "replaced"), (2, "succeeded")]
    world.apply("web", kind="job", image="web:2", replicas=7)  # no release
    world.run(30)
    assert len(world.plans["web"].runs) == 2


def test_a_lost_or_drained_replica_of_a_job_has_not_failed() -> None:
    world = job(World(3), Behaviour(done_after=60.0), job={"retries": 0})
    world.run(2)
    world.set_node(world.node_of(world.ready()[0]), "drain", deadline=world.now)
    world.run_until(lambda: len(world.ready()) == 1 and world.ready() != ["web-1-0000"])
    world.lose(world.node_of(world.ready()[0]))
    world.run_until(lambda: ended(world))
    assert (last_run(world).state, last_run(world).failures) == (RunState.SUCCEEDED, 0)


def test_an_ordinary_service_that_exits_with_code_0_is_replaced() -> None:
    world = World(1)
    world.behave["web:1"] = Behaviour(done_after=5.0)
    world.apply()
    world.run(300)
    assert world.plans["web"].slots["1"].failures > 3


def test_a_service_may_become_a_job_and_a_job_a_service() -> None:
    world = World(2)
    world.apply(replicas=3)
    world.settle()
    world.behave["web:2"] = DONE
    world.apply(kind="job", image="web:2")
    world.run_until(lambda: ended(world))
    assert not alive(world)
    world.apply(image="web:3", replicas=2)
    world.settle()
    assert [report.slot for report in world.running()] == [1, 2]
    assert world.plans["web"].runs == []


def test_a_new_leader_goes_on_with_the_run() -> None:
    world = job(World(2), job={"completions": 6, "parallelism": 2, "retries": 1})
    for _ in range(8):
        world.run(1.0)
        world.change_leader()
    world.run_until(lambda: ended(world))
    assert (last_run(world).state, last_run(world).completed) == (RunState.SUCCEEDED, "1-6")
    assert len(world.plans["web"].runs) == 1


# ── by the clock ─────────────────────────────────────────────────────────────────────────────


NOON = datetime(2026, 3, 1, 12, 0, 10, tzinfo=UTC).timestamp()


def cron(behaviour: Behaviour = DONE, schedule: str = "*/5 * * * *", overlap: str = "skip", **fields: Any) -> World:
    world = World(2)
    world.now = NOON
    world._timers.clear()
    world._every_while()
    world.behave["web:1"] = behaviour
    world.apply("web", kind="cron", schedule={"cron": schedule, "overlap": overlap}, **fields)
    world.run(0.1)
    return world


def due(world: World) -> list[str]:
    return [datetime.fromtimestamp(run.due, UTC).strftime("%H:%M") for run in world.plans["web"].runs]


def test_a_cron_service_runs_when_it_is_due() -> None:
    world = cron()
    assert world.plans["web"].runs == []
    assert world.plans["web"].next_run == NOON + 290
    world.run(289)
    assert not alive(world)
    world.run(2)
    assert alive(world) == 1
    world.run(605)
    assert due(world) == ["12:05", "12:10", "12:15"]
    assert [run.state for run in world.plans["web"].runs] == ["succeeded"] * 3
    assert [run.number for run in world.plans["web"].runs] == [1, 2, 3]
    world.run(6000)
    assert len(world.plans["web"].runs) == 10


@pytest.mark.parametrize(
    ("overlap", "states", "runs"),
    [
        ("skip", ["running"], ["12:05"]),
        ("allow", ["running"] * 3, ["12:05", "12:10", "12:15"]),
        ("replace", ["replaced", "replaced", "running"], ["12:05", "12:10", "12:15"]),
    ],
)
def test_a_run_that_is_due_while_one_still_runs(overlap: str, states: list[str], runs: list[str]) -> None:
    world = cron(Behaviour(), overlap=overlap)
    world.run(290 + 660)
    assert [run.state for run in world.plans["web"].runs] == states
    assert due(world) == runs
    assert alive(world) == states.count("running")
    if overlap == "skip":
        assert any("left out the run of 2026-03-01 12:10Z: run 1 has not ended" in event for event in world.events())


def test_runs_side_by_side_are_bounded() -> None:
    world = cron(Behaviour(), "* * * * *", "allow", job={"deadline": "10h"})
    world.run(60 * 30)
    assert alive(world) == 10


def test_of_missed_runs_only_the_newest_is_made_up_for() -> None:
    world = cron()
    world.now += 3600 * 5 + 100  # no scheduler led
    world.change_leader()
    world.run(1)
    assert due(world) == ["17:00"]
    assert any("missed the runs from 2026-03-01 12:05Z on" in event for event in world.events())
    world.run(300)
    assert due(world) == ["17:00", "17:05"]


def test_a_new_schedule_counts_from_now_and_a_run_keeps_its_release() -> None:
    world = cron(Behaviour(done_after=120.0))
    world.run(300)
    assert alive(world) == 1
    world.behave["web:2"] = DONE
    world.apply("web", kind="cron", image="web:2", schedule={"cron": "0 * * * *"})
    world.run(1)
    assert [report.release for report in world.running()] == [1]
    assert world.plans["web"].next_run == NOON + 3600 - 10
    world.run(3600)
    assert [(run.release, run.state) for run in world.plans["web"].runs] == [(1, "succeeded"), (2, "succeeded")]


def test_a_failed_run_is_over_when_the_next_is_due() -> None:
    world = cron(Behaviour(crash_after=0.3), job={"retries": 1})
    world.run(290 + 400)
    assert [(run.state, run.failures) for run in world.plans["web"].runs] == [("failed", 2), ("failed", 2)]


def test_a_deleted_cron_service_is_forgotten() -> None:
    world = cron(Behaviour())
    world.run(300)
    world.delete("web")
    world.run(5)
    assert not world.plans
    assert not any(plan.replicas for plan in world.node_plans.values())
