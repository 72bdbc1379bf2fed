"""A change of a config rolls the services that name it."""

from mesh.model import RolloutState
from tests.scheduler.world import Behaviour, World

QUICK = {"min_healthy": "2s", "healthy_deadline": "30s", "progress_deadline": "60s"}
MODE = {"MODE": {"config": "mode"}, "PLAIN": "as it is"}


def with_config() -> World:
    world = World(3)
    world.compared = True
    world.set_config("mode", "slow")
    world.apply(replicas=3, env=MODE, update=QUICK)
    world.apply("other", replicas=1)
    world.settle()
    world.run(10)
    return world


def test_a_release_keeps_the_values_of_its_configs() -> None:
    world = with_config()
    assert world.plans["web"].releases[-1].spec["env"] == {"MODE": "slow", "PLAIN": "as it is"}


def test_a_change_rolls_the_services_that_name_it_and_no_other() -> None:
    world = with_config()
    floor = []
    world.watch = lambda: floor.append(len(world.ready()))
    world.set_config("mode", "fast")
    world.settle()
    assert {one.release for one in world.running()} == {2}
    assert world.plans["web"].releases[-1].cause == "config mode changed"
    assert min(floor) == 3
    assert len(world.plans["other"].releases) == 1
    assert world.reconcile().changes == 0


def test_a_change_of_a_mounted_config_rolls_the_service_too() -> None:
    world = World(3)
    world.compared = True
    world.set_config("site", "colour = blue")
    mounts = [{"source": "/etc/ssl", "path": "/etc/ssl"}, {"config": "site", "path": "/etc/site.conf"}]
    world.apply(replicas=2, env=MODE | {"MODE": "x"}, mounts=mounts, update=QUICK)
    world.settle()
    before = world.plans["web"].releases[-1].spec["mounts"]
    assert before[1] == {"content": "colour = blue", "path": "/etc/site.conf"}
    world.set_config("site", "colour = red")
    world.settle()
    plan = world.plans["web"]
    assert (plan.releases[-1].cause, len(plan.releases)) == ("config site changed", 2)
    assert plan.releases[-1].spec["mounts"][1]["content"] == "colour = red"
    assert world.reconcile().changes == 0


def test_a_mounted_config_that_is_missing_is_an_error() -> None:
    world = World(1)
    world.apply(mounts=[{"config": "site", "path": "/etc/site.conf"}])
    world.run(1)
    assert world.plans["web"].errors == ["mounts.0: there is no config 'site': write it to desired/configs/site"]


def test_a_config_that_nobody_names_changes_nothing() -> None:
    world = with_config()
    world.set_config("unused", "x")
    assert world.reconcile().changes == 0


def test_a_bad_value_is_rolled_back_to_the_old_one_and_not_tried_again() -> None:
    world = with_config()
    world.behave["web:1"] = Behaviour(ready_after=None)
    world.set_config("mode", "broken")
    world.run_until(lambda: len(world.plans["web"].releases) == 3, within=40)
    world.settle()
    assert world.plans["web"].releases[-1].spec["env"]["MODE"] == "slow"
    world.run(300)
    assert len(world.plans["web"].releases) == 3
    world.behave["web:1"] = Behaviour()
    world.set_config("mode", "mended")
    world.settle()
    assert world.plans["web"].releases[-1].spec["env"]["MODE"] == "mended"


def test_a_config_that_is_missing_is_an_error_that_ends_when_it_is_there() -> None:
    world = World(1)
    world.apply(replicas=1, env=MODE, update=QUICK)
    world.run(1)
    assert world.plans["web"].errors == ["env.MODE: there is no config 'mode': write it to desired/configs/mode"]
    assert not world.running()
    world.set_config("mode", "slow")
    world.settle()
    assert not world.plans["web"].errors


def test_a_config_that_goes_away_leaves_what_runs() -> None:
    world = with_config()
    world.set_config("mode", None)
    world.run(1)
    assert world.plans["web"].errors
    world.crash(world.ready()[0])
    world.run_until(lambda: len(world.ready()) == 3)
    world.set_config("mode", "slow")
    world.settle()
    assert (world.plans["web"].errors, len(world.plans["web"].releases)) == ([], 1)


def test_a_new_leader_does_not_roll_again() -> None:
    world = with_config()
    world.change_leader()
    assert world.reconcile().changes == 0


def test_a_job_does_not_run_again() -> None:
    world = World(1)
    world.set_config("mode", "slow")
    world.behave["web:1"] = Behaviour(done_after=2.0)
    world.apply(kind="job", env=MODE, job={"completions": 1})
    world.run(30)
    world.set_config("mode", "fast")
    world.run(30)
    plan = world.plans["web"]
    assert (len(plan.releases), len(plan.runs), plan.rollout.state) == (1, 1, RolloutState.IDLE)
