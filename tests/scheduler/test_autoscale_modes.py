"""`kpa` and `predictive`, sleep and waking, schedules, hands, and what a new leader knows: on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest

from mesh.autoscaling.live import memories_of
from mesh.model import ReplicaState, ScaleChange, ScaleState
from mesh.scheduler.autoscale.autoscaler import Autoscaler
from mesh.scheduler.autoscale.model import Decision, Memory, Reading, ReplicaReading, Sample, Target
from mesh.spec.scale import Scale
from mesh.view import View, encode_document

READY, STARTING = ReplicaState.READY, ReplicaState.STARTING


def target(held: int | None = None, **scale: Any) -> Target:
    return Target(scale=Scale.model_validate({"max": 100, "metrics": [{"in_flight": 10}], **scale}), held=held)


def reading(current: int, load: float | None, ready: int | None = None, **more: Any) -> Reading:
    """`current` replicas are wanted, `ready` of them are; together they carry `load`."""
    ready = current if ready is None else ready
    states = [READY] * ready + [STARTING] * (current - ready)
    replicas = [ReplicaReading(id=f"web-{number}", state=state) for number, state in enumerate(states)]
    metrics = {"in_flight": Sample(value=load, fault="" if load is not None else "the proxies are silent")}
    return Reading(current=current, replicas=replicas, metrics=metrics, **more)


class Loop:
    """One service whose replicas are ready `start` seconds after they were decided on."""

    def __init__(self, given: Target, replicas: int = 2, start: float = 0, now: float = 0) -> None:
        self.autoscaler = Autoscaler(now)
        self.autoscaler.follow({"web": given})
        self.current = self.ready = replicas
        self.start, self.now = start, now
        self.starting: list[tuple[float, int]] = []
        self.decisions: list[Decision] = []

    def tick(self, load: float | None, **more: Any) -> Decision:
        """A second passes."""
        self.now += 1
        self.ready += sum(count for at, count in self.starting if at <= self.now)
        self.starting = [one for one in self.starting if one[0] > self.now]
        given = reading(self.current, load, min(self.ready, self.current), **more)
        for decision in self.autoscaler.tick(self.now, {"web": given}):
            if decision.replicas > self.current:
                self.starting.append((self.now + self.start, decision.replicas - self.current))
            else:
                self.ready = min(self.ready, decision.replicas)
            self.current = decision.replicas
            self.decisions.append(decision)
        return self.autoscaler.explain("web")

    def run(self, loads: Iterable[float | None], **more: Any) -> Loop:
        for load in loads:
            self.tick(load, **more)
        return self


def steady(load: float, seconds: int = 120) -> list[float]:
    return [load] * seconds


# ── kpa ──────────────────────────────────────────────────────────────────────────────────────


def test_kpa_follows_the_mean_of_the_stable_minute() -> None:
    loop = Loop(target(mode="kpa"), replicas=4).run(steady(40, 60))
    found = loop.run(steady(60, 30)).autoscaler.explain("web")
    # 30 s of 40 and 30 s of 60: 50 in the mean, ceil(50/10) = 5
    assert (found.recommendation, found.replicas, found.window) == (5, 5, "stable 60s")


def test_kpa_panics_when_six_seconds_ask_for_twice_what_is_ready() -> None:
    loop = Loop(target(mode="kpa"), replicas=4, start=100).run(steady(40, 60))
    # panic window after n seconds of 100: ((6 − n) · 40 + n · 100)/6: 50, 60, 70, and after the fourth 80: 8 ≥ 2 · 4
    assert [loop.tick(100).replicas for _ in range(4)] == [5, 5, 5, 8]
    assert loop.autoscaler.explain("web").window == "panic 6s"


def test_kpa_shrinks_nothing_in_a_panic_and_for_a_minute_after() -> None:
    loop = Loop(target(mode="kpa"), replicas=4).run(steady(40, 60)).run(steady(200, 6))
    assert loop.current == 20
    loop.run(steady(10, 50))
    assert loop.current == 20
    assert loop.autoscaler.explain("web").limit == "stabilisation"
    loop.run(steady(10, 20))
    assert loop.current < 20


def test_kpa_goes_down_to_half_of_what_is_ready_at_once() -> None:
    loop = Loop(target(mode="kpa"), replicas=20).run(steady(200, 70))
    found = []
    for _ in range(80):
        before = loop.current
        loop.tick(0)
        found.append(loop.current >= before // 2)
    assert all(found)
    assert loop.current == 1


def test_a_delay_holds_the_highest() -> None:
    for mode in ("kpa", "predictive"):
        loop = Loop(target(mode=mode, scale_down_delay=300), replicas=4).run(steady(40, 301)).run(steady(20, 299))
        assert loop.current == 4
        assert loop.autoscaler.explain("web").limit == "stabilisation"
        assert loop.run(steady(20, 120)).current == 2


# ── predictive ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("factor", [2, 10, 50])
def test_a_step_is_answered_within_two_seconds(factor: int) -> None:
    loop = Loop(target(max=1000), replicas=3, start=3).run(steady(20, 120))
    loop.run([20 * factor] * 2)
    assert loop.current >= math.ceil(20 * factor / 10)
    loop.run([20 * factor] * 3)
    assert loop.ready >= math.ceil(20 * factor / 10)
    assert loop.run([20 * factor] * 60).current <= 1.2 * math.ceil(20 * factor / 10)


@pytest.mark.parametrize("before", [5, 10, 20])
def test_a_step_after_a_few_steady_seconds_is_answered_as_soon(before: int) -> None:
    loop = Loop(target(max=1000), replicas=3, start=3).run(steady(20, before)).run([60] * 2)
    assert loop.current >= 6
    assert loop.autoscaler.explain("web").window == "jump 2s"
    assert loop.run([60] * 20).current <= 7


def test_a_ramp_is_met_ahead_of_it() -> None:
    ahead, behind = (Loop(target(mode=mode, max=1000), replicas=5, start=3) for mode in ("predictive", "kpa"))
    ramp = [*steady(50, 60), *(50 + 5 * second for second in range(100))]
    short = {"predictive": 0, "kpa": 0}
    for load in ramp:
        for mode, loop in (("predictive", ahead), ("kpa", behind)):
            loop.tick(load)
            short[mode] += load > 14 * loop.ready
    assert short["predictive"] < 5 < 20 < short["kpa"]


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.15, 0.2])
def test_noise_around_a_constant_load_turns_it_at_most_once_a_minute(noise: float) -> None:
    random = np.random.default_rng(7)
    loop = Loop(target(), replicas=10, start=3)
    counts = [loop.tick(100 * (1 + noise * random.standard_normal())).replicas for _ in range(1200)]
    changes = [(second, after > before) for second, (before, after) in enumerate(pairwise(counts))
               if after != before]  # fmt: skip
    turns = [second for (_, before), (second, after) in pairwise(changes) if before != after]
    assert all(later - earlier >= 60 for earlier, later in pairwise(turns))


DAY = 86400.0


def office_hours(time: float) -> float:
    return 400 if 9 <= time % DAY / 3600 < 17 else 40


@pytest.fixture(scope="module")
def taught() -> Autoscaler:
    """One that has led for four days, with a reading every five minutes."""
    autoscaler, current = Autoscaler(0), 4
    autoscaler.follow({"web": target()})
    for number in range(4 * 288):
        time = 300.0 * number + 240
        for decision in autoscaler.tick(time, {"web": reading(current, office_hours(time))}):
            current = decision.replicas
    return autoscaler


def heir_of(autoscaler: Autoscaler, since: float = 0) -> Loop:
    """The next leader, a quarter of an hour before nine: it knows what the store has kept, through the document."""
    loop = Loop(target(), replicas=4, start=30, now=4 * DAY + 8.75 * 3600)
    for memory in autoscaler.memories(since):
        document = encode_document(ScaleState(season=memory.season, season_at=memory.time))
        kept = {memory.service: msgspec.json.decode(document, type=ScaleState)}
        loop.autoscaler.restore(memories_of(View(scaled=kept)))
    loop.autoscaler.follow({"web": target()})
    return loop


def short(loop: Loop, seconds: int) -> int:
    """For how many seconds of the next ones more came than the ready replicas carry."""
    found = 0
    for _ in range(seconds):
        load = office_hours(loop.now + 1)
        loop.tick(load)
        found += load > 14 * loop.ready
    return found


def test_a_peak_of_every_day_is_met_ahead_of_it_also_by_the_next_leader(taught: Autoscaler) -> None:
    heir = heir_of(taught)
    assert short(heir, 13 * 60) == 0
    assert heir.current == 4
    assert short(heir, 4 * 60) == 0  # it is nine o'clock after two of them
    (ahead,) = (one for one in heir.decisions if one.replicas > one.current)
    assert ahead.window == "season"
    assert ahead.replicas == pytest.approx(40, abs=2)
    assert 9 * 3600 - 61 <= ahead.time % DAY < 9 * 3600
    assert "this time of day asks for" in ahead.why
    assert all(len(memory.season) < 4000 for memory in taught.memories(since=0))


def test_a_leader_without_a_history_follows_what_it_sees(taught: Autoscaler) -> None:
    assert taught.memories(since=4 * DAY) == []  # nothing was learnt since
    heir = heir_of(taught, since=4 * DAY)
    assert short(heir, 17 * 60) in range(30, 35)  # a start, and two seconds
    assert heir.decisions[0].time % DAY == pytest.approx(9 * 3600, abs=2)
    assert [one.replicas for one in heir.decisions] == [10, 40]  # the last 6 s, then the jump


def test_the_rates_hold_across_a_change_of_leader() -> None:
    given = target(behavior={"scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}})
    changes = [ScaleChange(time=80, current=2, replicas=4)]
    heir = Loop(given, replicas=4, now=100)
    heir.autoscaler.restore(memories_of(View(scaled={"web": ScaleState(changes=changes)})))
    counts = [heir.tick(400).replicas for _ in range(60)]
    assert [counts[0], counts[38], counts[41]] == [4, 4, 6]


def test_a_memory_that_cannot_be_read_is_forgotten() -> None:
    autoscaler = Autoscaler(0)
    autoscaler.restore([Memory(service="web", time=0, season=b"\x00")])
    autoscaler.follow({"web": target()})
    assert autoscaler.tick(1, {"web": reading(2, 40)})[0].replicas == 4


# ── what keeps the count ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["predictive", "kpa"])
def test_a_new_leader_scales_nothing_down_in_its_first_window(mode: str) -> None:
    loop = Loop(target(mode=mode), replicas=20)
    loop.run(steady(10, 59))
    found = loop.autoscaler.explain("web")
    assert (loop.current, found.recommendation, found.limit) == (20, 1, "first window")
    assert loop.run(steady(10, 30)).current < 20


@pytest.mark.parametrize("mode", ["predictive", "kpa", "hpa"])
def test_a_metric_that_fails_scales_nothing_down(mode: str) -> None:
    metrics = [{"in_flight": 10}, {"prometheus": {"url": "http://p", "query": "q", "target": 5}}]
    autoscaler = Autoscaler(0)
    autoscaler.follow({"web": target(mode=mode, metrics=metrics)})
    given = reading(8, 20)
    broken = {**given.metrics, "prometheus: q": Sample(value=math.inf)}
    for second in range(700):
        decisions = autoscaler.tick(second, {"web": Reading(current=8, replicas=given.replicas, metrics=broken)})
        assert decisions == []
    found = autoscaler.explain("web")
    assert (found.replicas, found.limit) == (8, "missing metrics")
    assert "prometheus: q fails (inf is no number to go by)" in found.why
    more = {**broken, "in_flight": Sample(value=500)}
    given = Reading(current=8, replicas=given.replicas, metrics=more)
    assert autoscaler.tick(720, {"web": given})[0].replicas > 8
    assert "prometheus: q fails" in autoscaler.explain("web").why


@pytest.mark.parametrize("mode", ["predictive", "kpa", "hpa"])
def test_a_service_that_never_gets_ready_is_no_runaway(mode: str) -> None:
    autoscaler = Autoscaler(0)
    autoscaler.follow({"web": target(mode=mode)})
    for second in range(300):
        given = reading(3, 10.0 * second, ready=0, waiting=10 * second)
        assert autoscaler.tick(second, {"web": given}) == []
    assert "ready" in autoscaler.explain("web").why


def test_a_tolerance_holds_in_every_mode() -> None:
    behavior = {"scaleUp": {"tolerance": 0.2}}
    loop = Loop(target(behavior=behavior), replicas=10).run(steady(115))
    assert (loop.current, loop.autoscaler.explain("web").limit) == (10, "tolerance")


def test_policies_hold_in_every_mode() -> None:
    behavior = {"scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 30}]}}
    loop = Loop(target(behavior=behavior), replicas=2)
    counts = [loop.tick(400).replicas for _ in range(62)]
    assert [counts[0], counts[29], counts[31], counts[61]] == [4, 4, 6, 8]


# ── zero ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["predictive", "kpa", "hpa"])
def test_it_sleeps_after_a_while_without_requests_and_wakes_for_one(mode: str) -> None:
    loop = Loop(target(mode=mode, to_zero_after=30), replicas=2, start=2).run(steady(15, 60))
    loop.run(steady(0, 29))
    assert loop.current >= 1
    found = loop.tick(0) and loop.tick(0)
    assert (loop.current, found.why) == (0, "it sleeps: nobody asks for it")
    assert loop.decisions[-1].why == "no request for 30s: it sleeps until somebody asks for it"
    loop.run(steady(0, 600))
    assert loop.current == 0
    found = loop.tick(1, waiting=1)
    assert loop.current == 1
    assert loop.decisions[-1].why == "1 request waits: wake 1 replica"


@pytest.mark.parametrize("mode", ["predictive", "kpa", "hpa"])
def test_a_burst_of_first_requests_is_one_decision(mode: str) -> None:
    loop = Loop(target(mode=mode, to_zero_after=30, metrics=[{"in_flight": 20}]), replicas=0, start=2)
    loop.tick(0)
    made = len(loop.decisions)
    loop.tick(200, waiting=200)
    loop.tick(200, waiting=200)
    loop.tick(180)  # ready: those that waited are served in this second
    loop.run([30, *steady(5, 40)])  # and what they were woken for holds for a first window
    # 200/20; HPA without `behavior` grows to 4 at first
    assert [one.replicas for one in loop.decisions[made:]] == [4 if mode == "hpa" else 10]


def test_waking_goes_by_the_rates_as_well() -> None:
    behavior = {"scaleUp": {"policies": [{"type": "Pods", "value": 3, "periodSeconds": 60}]}}
    loop = Loop(target(behavior=behavior, to_zero_after=30), replicas=0)
    assert loop.tick(200, waiting=200).limit == "rate"
    assert loop.current == 3


@pytest.mark.parametrize("mode", ["predictive", "kpa", "hpa"])
def test_it_wakes_with_min_replicas_in_one_decision(mode: str) -> None:
    behavior = {"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}
    loop = Loop(target(mode=mode, min=3, max=9, behavior=behavior, to_zero_after=30), replicas=0, start=2)
    loop.tick(0)
    loop.tick(1, waiting=1)
    loop.run(steady(1, 10))
    assert [one.replicas for one in loop.decisions] == [3]
    assert loop.decisions[0].why == "1 request waits: wake 3 replicas; min is 3"


def test_traffic_keeps_it_awake_and_so_does_not_knowing() -> None:
    loop = Loop(target(to_zero_after=30), replicas=1)
    for second in range(100):
        loop.tick(0, traffic=1 if second % 20 == 0 else 0)
    assert loop.current == 1
    assert loop.run([None] * 100).current == 1


def test_a_node_that_is_silent_keeps_it_awake() -> None:
    loop = Loop(target(to_zero_after=30), replicas=1)
    partly = {"in_flight": Sample(value=0, fault="node-b: not known what the proxies there carry")}
    for second in range(100):
        given = msgspec.structs.replace(reading(1, 0), metrics=partly, traffic=None)
        assert loop.autoscaler.tick(second, {"web": given}) == []


@pytest.mark.parametrize("mode", ["predictive", "kpa", "hpa"])
def test_a_prometheus_metric_keeps_awake_what_it_would_wake(mode: str) -> None:
    metrics = [{"prometheus": {"url": "http://prometheus", "query": "jobs", "target": 2}}]
    given = target(mode=mode, metrics=metrics, to_zero_after=30)
    autoscaler = Autoscaler(0)
    autoscaler.follow({"web": given})
    current, counts = 1, []
    for second, jobs in enumerate([*steady(6, 100), *[None] * 100, *steady(0, 100), *steady(6, 100)]):
        sample = Sample(value=jobs, fault="" if jobs is not None else "it is down")
        now = msgspec.structs.replace(reading(current, 0, traffic=0), metrics={"prometheus: jobs": sample})
        for decision in autoscaler.tick(second, {"web": now}):
            current = decision.replicas
            counts.append(current)
    assert [count for count in counts if count != 2] == [3, 0, 3]  # 2: on the way to zero


def test_zero_by_hand_stays_zero() -> None:
    autoscaler = Autoscaler(0)
    autoscaler.follow({"web": target(held=0, to_zero_after=30)})
    assert autoscaler.tick(0, {"web": reading(0, 50, waiting=50)}) == []
    assert autoscaler.explain("web").limit == "override"
    autoscaler.follow({"web": target(to_zero_after=30)})
    assert [one.replicas for one in autoscaler.tick(1, {"web": reading(0, 50, waiting=50)})] == [5]


# ── bounds, hands, comings and goings ────────────────────────────────────────────────────────


def test_the_schedule_that_began_last_holds() -> None:
    schedules = [{"cron": "0 8 * * *", "min": 5, "max": 50}, {"cron": "0 20 * * *", "min": 1, "max": 3}]
    loop = Loop(target(schedules=schedules), replicas=2, now=7 * 3600 + 3590)
    loop.run(steady(10, 9))
    assert loop.current == 2  # the evening's of the day before: 1 to 3
    loop.run(steady(10, 2))
    assert (loop.current, loop.decisions[-1].limit) == (5, "schedule")
    loop.now = 20 * 3600 - 2
    loop.run(steady(500, 5))
    assert loop.current == 3
    assert loop.autoscaler.explain("web").limit == "schedule"


def test_a_hand_holds_until_it_lets_go() -> None:
    loop = Loop(target(held=7), replicas=2).run(steady(400, 5))
    assert loop.current == 7
    found = loop.autoscaler.explain("web")
    assert found.limit == "override"
    assert found.recommendation > 7
    loop.autoscaler.follow({"web": target()})
    assert loop.run(steady(400, 3)).current == 40


def test_what_is_no_longer_followed_is_forgotten_and_the_others_stay() -> None:
    autoscaler = Autoscaler(0)
    autoscaler.follow({"a": target(), "b": target(), "c": target(mode="hpa")})
    for second in range(100):
        autoscaler.tick(second, {name: reading(4, 40) for name in "abc"})
    autoscaler.follow({"b": target(), "d": target()})
    with pytest.raises(KeyError):
        autoscaler.explain("a")
    autoscaler.tick(100, {name: reading(4, 20) for name in "abd"})
    assert autoscaler.explain("b").limit != "first window"
    assert autoscaler.explain("d").limit == "first window"
    autoscaler.follow({})
    assert autoscaler.tick(101, {"b": reading(4, 20)}) == []


def test_a_metric_that_is_added_keeps_what_is_known_of_the_others() -> None:
    autoscaler = Autoscaler(0)
    autoscaler.follow({"web": target()})
    for second in range(100):
        autoscaler.tick(second, {"web": reading(4, 40)})
    more = [{"requests_per_second": 5}, {"in_flight": 10}]
    autoscaler.follow({"web": target(metrics=more)})
    autoscaler.tick(100, {"web": reading(4, 40)})
    asked = {one.metric: one.recommendation for one in autoscaler.explain("web").metrics}
    assert asked == {"requests_per_second": None, "in_flight": 4}


def test_a_decision_is_repeated_until_it_is_carried_out() -> None:
    autoscaler = Autoscaler(0)
    autoscaler.follow({"web": target()})
    for second in range(3):
        assert [one.replicas for one in autoscaler.tick(second, {"web": reading(2, 60)})] == [6]
    assert [one.replicas for one in autoscaler.tick(3, {})] == [6]  # nothing is news
    assert autoscaler.tick(4, {"web": reading(6, 60)}) == []


def test_without_metrics_only_the_bounds_hold() -> None:
    loop = Loop(target(metrics=[], min=3, max=5), replicas=1).run([None] * 5)
    assert loop.current == 3
    assert "no metrics" in loop.autoscaler.explain("web").why
