"""What rollouts and healing promise over a long time."""

from __future__ import annotations

from mesh.model import RolloutState
from tests.scheduler.test_rollout import QUICK, running
from tests.scheduler.world import Behaviour, World


def test_each_newly_healthy_replica_extends_the_progress_deadline() -> None:
    world, floor = running(6, update={**QUICK, "progress_deadline": "20s"})
    world.behave["web:2"] = Behaviour(ready_after=12.0)
    world.apply(image="web:2", replicas=6, update={**QUICK, "progress_deadline": "20s"})
    assert world.settle() > 6 * 12
    assert (world.plans["web"].releases[-1].number, floor.ready) == (2, 6)


def test_a_replica_that_gets_healthy_and_crashes_again_and_again_does_not_extend_it() -> None:
    world, _ = running(3, update={**QUICK, "healthy_deadline": "1h", "progress_deadline": "60s"})
    world.behave["web:2"] = Behaviour(ready_after=0.5, crash_after=6.0)
    world.apply(image="web:2", replicas=3, update={**QUICK, "healthy_deadline": "1h", "progress_deadline": "60s"})
    world.run_until(lambda: world.plans["web"].releases[-1].rollback_of == 2, within=400)
    world.settle()
    assert world.plans["web"].rollout.state is RolloutState.IDLE


def test_ten_releases_are_kept_and_the_last_good_one_with_them() -> None:
    world, _ = running(1)
    for number in range(2, 15):
        world.apply(image=f"web:{number}", replicas=1, update=QUICK)
        world.settle()
    plan = world.plans["web"]
    assert [release.number for release in plan.releases] == [*range(5, 15)]
    for number in range(15, 30):
        world.behave[f"web:{number}"] = Behaviour(ready_after=None)
        world.apply(image=f"web:{number}", replicas=1, update={**QUICK, "on_failure": "pause"})
        world.run(2)
    plan = world.plans["web"]
    assert plan.releases[0].number == 14
    assert plan.releases[0].good
    assert len(plan.releases) == 11


def test_a_release_that_crashes_everywhere_does_not_eat_the_cluster() -> None:
    world = World(5)
    world.behave["bad:1"] = Behaviour(ready_after=None, crash_after=0.3)
    world.apply("web", replicas=10)
    world.apply("bad", replicas=5)
    world.run(10)
    placed: set[str] = set()
    world.watch = lambda: placed.update(
        one.id for plan in world.node_plans.values() for one in plan.replicas if one.service == "bad"
    )
    serving = set(world.ready("web"))
    world.run(3600)
    assert len(placed) <= 5 * (3600 / 60 + 10), "each slot is tried about once in restart.max_delay"
    assert set(world.ready("web")) == serving
    assert {state.failures > 20 for state in world.plans["bad"].slots.values()} == {True}
    tried = {node for state in world.plans["bad"].slots.values() for node in state.nodes}
    assert tried == set(world.nodes), "the node that failed it comes last, so it was tried on every one"
