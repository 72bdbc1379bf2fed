"""What services are asked for, from the answers of agents: exact between answers, and careful about who is silent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.autoscaling.demand import STALE, Demand
from mesh.autoscaling.readings import Moment, read
from mesh.autoscaling.troubles import NEVER_READY, STANDS, Troubles
from mesh.dataplane.load import EndpointReport, Load, LoadReport, ReplicaUsage, ServiceReport, Total
from mesh.model import Assignment, Release, ReplicaReport, ReplicaState, Rollout, RolloutState, ServicePlan, Want
from mesh.scheduler.autoscale.followed import is_busy
from mesh.scheduler.autoscale.model import Reading, ReplicaReading, Sample
from mesh.scheduler.classify import Replica
from mesh.scheduler.hosts import Condition
from mesh.spec.scale import Scale
from mesh.spec.service import parse_spec

PORTS = {"http": "http", "db": "tcp"}


def protocols(service: str) -> dict[str, str] | None:
    return PORTS if service == "web" else None


def answer(time: float, *, node: str = "n1", usage: Any = None, **ports: Load) -> LoadReport:
    endpoints = {"web-1-aaaa": EndpointReport(rps=3.0, in_flight_now=2, success_ratio=1.0, ejected=False)}
    service = ServiceReport(ports=ports, endpoints=endpoints, queued=4)
    return LoadReport(node=node, time=time, window=10.0, services={"web": service} if ports else {}, usage=usage or {})


def http(requests: int, busy: float, open_now: int = 0, **more: Any) -> Load:
    return Load(total=Total(requests=requests, busy=busy), in_flight_now=open_now, **more)


def test_two_answers_tell_exactly_what_came_between() -> None:
    demand = Demand()
    demand.expect(["n1"])
    demand.take("n1", answer(100.0, http=http(1000, 50.0)), protocols, 1.0)
    demand.take("n1", answer(102.0, http=http(1300, 90.0, 7)), protocols, 3.0)
    carried = demand.of("web", 3.0)
    assert (carried.requests, carried.in_flight, carried.queued) == (150.0, 20.0, 4)
    assert carried.traffic == 307, "what came, and what is under way"


def test_the_first_answer_is_no_burst() -> None:
    demand = Demand()
    demand.expect(["n1"])
    demand.take("n1", answer(100.0, http=http(1_000_000, 9e9, rps=5.0, in_flight=2.0)), protocols, 1.0)
    carried = demand.of("web", 1.0)
    assert (carried.requests, carried.in_flight) == (5.0, 2.0)


def test_an_agent_that_was_restarted_counts_anew() -> None:
    demand = Demand()
    demand.expect(["n1"])
    demand.take("n1", answer(100.0, http=http(1000, 50.0)), protocols, 1.0)
    demand.take("n1", answer(101.0, http=http(30, 2.0)), protocols, 2.0)
    assert demand.of("web", 2.0).requests == 30.0


def test_a_service_that_was_idle_is_measured_from_where_it_stood() -> None:
    demand = Demand()
    demand.expect(["n1"])
    demand.take("n1", answer(100.0, http=http(1000, 50.0)), protocols, 1.0)
    demand.take("n1", answer(101.0), protocols, 2.0)
    assert demand.of("web", 2.0).traffic == 0.0
    demand.take("n1", answer(102.0, http=http(1010, 50.0)), protocols, 3.0)
    assert demand.of("web", 3.0).requests == 10.0


def test_connections_of_tcp_count_as_requests_do() -> None:
    demand = Demand()
    demand.expect(["n1"])
    demand.take("n1", answer(100.0, db=Load(total=Total(connections=10), connections=4)), protocols, 1.0)
    demand.take("n1", answer(101.0, db=Load(total=Total(connections=16), connections=9)), protocols, 2.0)
    carried = demand.of("web", 2.0)
    assert (carried.requests, carried.in_flight, carried.traffic) == (6.0, 9.0, 15.0)


def test_nodes_add_up_and_a_silent_one_is_named() -> None:
    demand = Demand()
    demand.expect(["n1", "n2"])
    for node in ("n1", "n2"):
        demand.take(node, answer(100.0, http=http(0, 0.0)), protocols, 1.0)
        demand.take(node, answer(101.0, http=http(10, 5.0)), protocols, 2.0)
    assert demand.of("web", 2.0).requests == 20.0
    demand.take("n1", answer(105.0, http=http(50, 5.0)), protocols, 2.0 + STALE)
    assert demand.silent(2.0 + STALE) == ("n2",)
    assert demand.of("web", 2.0 + STALE).requests == 10.0, "of the one that is known"
    demand.expect(["n1"])
    assert demand.silent(2.0 + STALE) == ()


def test_services_that_do_not_scale_are_not_looked_at() -> None:
    demand = Demand()
    demand.expect(["n1"])
    report = LoadReport(
        node="n1", time=1.0, window=10.0, services={"other": ServiceReport(ports={"http": http(9, 9.0)})}
    )
    demand.take("n1", report, protocols, 1.0)
    assert demand.active == set()


# ── readings ─────────────────────────────────────────────────────────────────────────────────

SPEC = parse_spec({"name": "web", "image": "web", "resources": {"cpu": "500m", "memory": "100M"}})
PLAN = ServicePlan(service="web", desired=2, releases=[Release(number=1, hash="h", spec=SPEC.canonical())])


def scale(*metrics: dict[str, Any]) -> Scale:
    return Scale.model_validate({"max": 9, "metrics": [*metrics]})


def replica(name: str, state: ReplicaState, *, node: str = "n1", want: Want = Want.RUN,
            condition: Condition = Condition.ACTIVE) -> Replica:  # fmt: skip
    assignment = Assignment(id=name, service="web", slot=1, release=1, want=want)
    report = ReplicaReport(id=name, service="web", slot=1, release=1, state=state, started=50.0)
    return Replica(assignment, node, condition, "h", report, ready=state is ReplicaState.READY, since=60.0)


def reading(scaling: Scale, demand: Demand, *replicas: Replica, held: int = 0, now: float = 2.0) -> Reading:
    def elsewhere(url: str, query: str) -> Sample:
        return Sample(value=7.0)

    return read(scaling, PLAN, 2, {"n1": replicas}, demand, elsewhere, held, Moment(now, 1000.0))


def asked(**usage: ReplicaUsage) -> Demand:
    demand = Demand()
    demand.expect(["n1"])
    told = {name.replace("_", "-"): each for name, each in usage.items()}
    demand.take("n1", answer(100.0, http=http(0, 0.0)), protocols, 1.0)
    demand.take("n1", answer(101.0, http=http(30, 12.0, 3), usage=told), protocols, 2.0)
    return demand


def test_a_release_that_takes_another_s_place_keeps_its_service_awake() -> None:
    def awake(state: RolloutState, releases: int = 2) -> bool:
        plan = msgspec.structs.replace(PLAN, rollout=Rollout(state=state), releases=PLAN.releases[:1] * releases)
        return is_busy(read(scale({"in_flight": 10}), plan, 1, {}, demand, lambda *_: Sample(), 0, Moment(2.0, 1000.0)))

    demand = Demand()
    assert [state for state in RolloutState if awake(state)] == ["rolling", "canary", "paused"]
    assert not awake(RolloutState.ROLLING, releases=1)


def test_a_reading_has_the_whole_and_each_replicas_part() -> None:
    scaling = scale({"in_flight": 10}, {"requests_per_second": 5})
    found = reading(
        scaling, asked(), replica("web-1-aaaa", ReplicaState.READY), replica("web-2-bbbb", ReplicaState.READY)
    )
    assert (found.metrics["in_flight"].value, found.metrics["requests_per_second"].value) == (12.0, 30.0)
    assert [one.values for one in found.replicas] == [
        {"in_flight": 2.0, "requests_per_second": 3.0},
        {"in_flight": 0.0, "requests_per_second": 0.0},
    ]
    assert (found.current, found.waiting, found.traffic) == (2, 0, 33.0)
    assert (found.replicas[0].started, found.replicas[0].changed) == (50.0, 60.0)


def test_cpu_and_memory_are_shares_of_what_is_reserved() -> None:
    usage = {"web_1_aaaa": ReplicaUsage(cpu=400.0, memory=50_000_000, window=10.0),
             "web_2_bbbb": ReplicaUsage(cpu=None, memory=100_000_000, window=0.0)}  # fmt: skip
    replicas = [replica("web-1-aaaa", ReplicaState.READY), replica("web-2-bbbb", ReplicaState.READY),
                replica("web-3-cccc", ReplicaState.READY)]  # fmt: skip
    found = reading(scale({"cpu": "70%"}, {"memory": "80%"}), asked(**usage), *replicas)
    assert found.metrics["cpu"].value == pytest.approx(0.8)
    assert found.metrics["memory"].value == pytest.approx(0.75)
    assert [one.values.keys() for one in found.replicas] == [{"cpu", "memory"}, {"memory"}, set()]
    assert found.replicas[0].measured_from == 990.0


def test_without_any_figure_of_cpu_the_metric_fails() -> None:
    found = reading(scale({"cpu": "70%"}), asked(), replica("web-1-aaaa", ReplicaState.READY))
    assert (found.metrics["cpu"].value, found.metrics["cpu"].fault) == (None, "no replica tells its cpu")


def test_who_leaves_has_left_or_is_lost_does_not_count() -> None:
    found = reading(
        scale({"in_flight": 10}),
        asked(),
        replica("web-1-aaaa", ReplicaState.READY),
        replica("web-2-bbbb", ReplicaState.DRAINING),
        replica("web-3-cccc", ReplicaState.FAILED),
        replica("web-4-dddd", ReplicaState.READY, want=Want.STOP),
        replica("web-5-eeee", ReplicaState.READY, condition=Condition.LOST),
        replica("web-6-ffff", ReplicaState.STARTING),
    )
    assert [one.id for one in found.replicas] == ["web-1-aaaa", "web-6-ffff"]


def test_a_silent_node_makes_it_a_part_and_the_traffic_unknown() -> None:
    found = reading(scale({"in_flight": 10}), asked(), replica("web-1-aaaa", ReplicaState.READY), now=2.0 + STALE)
    assert found.traffic is None
    assert "n1" in found.metrics["in_flight"].fault


def test_what_waits_counts_until_a_replica_is_ready() -> None:
    scaling = scale({"in_flight": 10})
    assert reading(scaling, asked(), replica("web-1-aaaa", ReplicaState.STARTING), held=9).waiting == 9
    assert reading(scaling, asked(), replica("web-1-aaaa", ReplicaState.STARTING)).waiting == 4, "what is queued"
    assert reading(scaling, asked(), replica("web-1-aaaa", ReplicaState.READY), held=9).waiting == 0


# ── what is told ─────────────────────────────────────────────────────────────────────────────


def test_a_prometheus_that_fails_for_long_is_told_once_and_taken_back_when_it_is_well_for_long() -> None:
    troubles, down = Troubles(), Reading(current=1, metrics={"prometheus: q": Sample(fault="http://p is down")})
    well = Reading(current=1, metrics={"prometheus: q": Sample(value=1.0)})
    assert troubles.update(down, 100.0) == []
    told = troubles.update(down, 100.0 + STANDS)
    assert told == ["prometheus: q: http://p is down: nothing is scaled down meanwhile"]
    other = Reading(current=1, metrics={"prometheus: q": Sample(fault="http://p is still down, for 7 s")})
    assert troubles.update(other, 110.0) == told, "one sentence for one trouble"
    assert troubles.update(well, 111.0) == told
    assert troubles.update(down, 112.0) == told
    assert troubles.update(well, 120.0) == told
    assert troubles.update(well, 120.0 + STANDS) == []


def test_replicas_that_never_become_ready_while_requests_wait_are_told() -> None:
    troubles = Troubles()
    starting = ReplicaReading(id="web-1", state=ReplicaState.STARTING)
    waits = Reading(current=1, replicas=[starting], waiting=5)
    assert troubles.update(waits, 100.0) == []
    (told,) = troubles.update(waits, 100.0 + NEVER_READY)
    assert told == "requests wait, and none of its replicas has become ready for 30 s"
    ready = Reading(current=1, replicas=[ReplicaReading(id="web-1", state=ReplicaState.READY)], waiting=0)
    assert troubles.update(ready, 140.0) == []
