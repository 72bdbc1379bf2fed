"""Whose count holds: an operator's by hand, the autoscaler's, the spec's; and what becomes of it in a rollout."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.model import RolloutState, ScaleState
from mesh.scheduler.count import bounded, count_of
from mesh.spec.errors import SpecError
from mesh.spec.service import parse_spec
from tests.scheduler.world import World

SCALE = {"min": 1, "max": 5, "metrics": [{"in_flight": 10}]}


def world(**spec: Any) -> World:
    made = World(3)
    made.apply(**{"scale": SCALE, **spec})
    made.settle()
    return made


def test_the_autoscalers_count_holds_until_an_operator_says_another() -> None:
    here = world(replicas=2)
    assert here.plans["web"].desired == 2
    here.autoscale("web", 4)
    here.settle()
    assert len(here.ready()) == 4
    here.rescale("web", 1)
    here.settle()
    assert len(here.ready()) == 1
    here.rescale("web", None)
    here.settle()
    assert len(here.ready()) == 4


def test_every_change_is_an_event_with_the_autoscalers_sentence() -> None:
    here = world()
    here.autoscale("web", 3, "in_flight is 25 per replica, 10 are wanted")
    here.settle()
    told = [event for event in here.plans["web"].events if event.text.startswith("scaled")]
    assert told[-1].text == "scaled from 1 to 3: in_flight is 25 per replica, 10 are wanted"
    assert told[-1].cause == "autoscaler"


def test_a_change_that_the_bounds_make_is_told_as_theirs() -> None:
    here = world()
    here.autoscale("web", 3, "in_flight is 25 per replica, 10 are wanted")
    here.settle()
    here.apply(scale={**SCALE, "min": 4})
    here.settle()
    here.rescale("web", 9)
    here.settle()
    here.autoscale("web", 9)  # from where the operator's hand left it
    here.rescale("web", None)
    here.settle()
    told = [event.text for event in here.plans["web"].events if event.text.startswith("scaled")]
    assert told[-3:] == ["scaled from 3 to 4: min is 4", "scaled from 4 to 9", "scaled from 9 to 5: max is 5"]


def test_max_holds_whatever_the_autoscaler_says() -> None:
    here = world()
    here.autoscale("web", 1_000_000)
    here.settle()
    assert here.plans["web"].desired == 5


def test_a_service_sleeps_only_by_the_autoscalers_zero() -> None:
    ports = {"http": {"port": 80, "protocol": "http"}}
    here = world(scale={**SCALE, "min": 0, "to_zero_after": "30s"}, ports=ports)
    here.autoscale("web", 0, "no requests for 30 s")
    here.settle()
    plan = here.plans["web"]
    assert (plan.desired, plan.asleep, here.ready()) == (0, True, [])
    assert plan.vip, "name and address stay"
    here.rescale("web", 0)
    here.settle()
    assert (here.plans["web"].desired, here.plans["web"].asleep) == (0, False), "an operator's zero is no sleep"
    here.rescale("web", None)
    here.settle()
    here.autoscale("web", 1)
    here.run_until(lambda: here.plans["web"].desired == 1)
    assert (here.ready(), here.plans["web"].asleep) == ([], True), "who comes meanwhile is held as well"
    here.settle()
    assert (len(here.ready()), here.plans["web"].asleep) == (1, False)
    here.set_ready(here.ready()[0], False)
    here.run(1.0)
    assert not here.plans["web"].asleep, "it fails, it does not wake"


def test_zero_replicas_in_the_spec_switch_the_autoscaler_off() -> None:
    here = world(replicas=0)
    here.autoscale("web", 3)
    here.settle()
    assert (here.plans["web"].desired, here.plans["web"].asleep) == (0, False)


def test_without_scale_the_specs_count_holds_again() -> None:
    here = world(replicas=2)
    here.autoscale("web", 4)
    here.settle()
    here.apply(replicas=2)
    here.settle()
    assert len(here.ready()) == 2
    assert len(here.plans["web"].releases) == 1, "scale makes no release"


def test_a_broken_spec_changes_nothing_of_the_count() -> None:
    here = world()
    here.autoscale("web", 4)
    here.settle()
    here.apply(scale={"min": 9, "max": 2})
    here.settle()
    assert len(here.ready()) == 4
    assert "must not be above max" in here.plans["web"].errors[0]


@pytest.mark.parametrize("count", [2, 5])
def test_a_count_that_changes_amid_a_rollout_is_one_of_slots_whatever_their_release(count: int) -> None:
    here = world(replicas=3)
    here.apply(replicas=3, scale=SCALE, tags=["v2"])
    here.run_until(lambda: here.plans["web"].rollout.state is RolloutState.ROLLING)
    here.autoscale("web", count)
    here.settle()
    plan = here.plans["web"]
    assert (plan.desired, plan.rollout.state, len(here.ready())) == (count, RolloutState.IDLE, count)
    assert {report.release for report in here.running()} == {2}


def test_a_service_deleted_amid_scaling_leaves_nothing() -> None:
    here = world()
    here.autoscale("web", 5)
    here.run(0.1)
    here.delete("web")
    here.settle()
    assert not here.plans
    assert not here.running()


def test_what_keeps_the_autoscaler_from_its_work_is_told_when_it_begins_and_when_it_ends() -> None:
    here = world()
    here.autoscale("web", 2, "more load", "prometheus is down")
    here.settle()
    assert here.plans["web"].warnings == ["prometheus is down"]
    here.autoscale("web", 2)
    here.settle()
    texts = [event.text for event in here.plans["web"].events]
    assert "autoscaler: prometheus is down" in texts
    assert texts[-1] == "autoscaler: no longer so: prometheus is down"
    assert here.plans["web"].warnings == []


def test_bounds_are_the_widest_of_all_schedules() -> None:
    scale = parse_spec({"name": "web", "image": "web", "scale": {
        "min": 2, "max": 4, "schedules": [{"cron": "0 8 * * *", "min": 1, "max": 9}]}}).scale  # fmt: skip
    assert scale
    assert [bounded(count, scale) for count in (0, 1, 7, 12)] == [1, 1, 7, 9]


@pytest.mark.parametrize(
    ("fields", "asleep"), [({"min": 1}, False), ({"min": 0}, True), ({"min": 1, "to_zero_after": "5m"}, True)]
)
def test_who_may_not_sleep_is_closed_at_zero(fields: dict[str, Any], asleep: bool) -> None:
    closed = {"cron": "0 20 * * *", "min": 0, "max": 0}
    spec = parse_spec({"name": "web", "image": "web", "ports": {"http": {"port": 80, "protocol": "http"}},
                       "scale": {**fields, "max": 4, "schedules": [closed]}})  # fmt: skip
    assert count_of(spec, None, ScaleState(replicas=0), 3)[::3] == (0, asleep)


def test_a_first_count_is_the_specs_within_bounds() -> None:
    spec = parse_spec({"name": "web", "image": "web", "replicas": 9, "scale": SCALE})
    assert count_of(spec, None, None, 0).replicas == 5
    assert count_of(spec, None, ScaleState(problems=["…"]), 0).replicas == 5


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"kind": "global"}, "scale: only kind service follows its load, this is kind global"),
        ({"kind": "job"}, "scale: only kind service follows its load, this is kind job"),
        ({"singleton": True}, "scale: a singleton has at most 1: set max to 1"),
    ],
)
def test_what_cannot_follow_its_load_is_refused(spec: dict[str, Any], fault: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec({"name": "web", "image": "web", "scale": SCALE, **spec})
    assert fault in refused.value.errors
