"""Mode `hpa` against tables computed by hand from Kubernetes' rules (replica_calculator.go, horizontal.go).

The last column of each row shows the arithmetic.
"""

from __future__ import annotations

from typing import Any

import pytest

from mesh.cli.replay_file import script_of
from mesh.model import ReplicaState
from mesh.scheduler.autoscale import hpa
from mesh.scheduler.autoscale.model import Decision, Reading, ReplicaReading, Sample
from mesh.scheduler.autoscale.replay import replay
from mesh.spec.scale import Metric, Scale

READY, STARTING, RUNNING = ReplicaState.READY, ReplicaState.STARTING, ReplicaState.RUNNING
DRAINING, FAILED = ReplicaState.DRAINING, ReplicaState.FAILED


def played(replicas: int, *series: dict[str, Any], **scale: Any) -> list[Decision]:
    """What mode `hpa` says about a series: in flight, target 10, 1 to 100 replicas, unless said otherwise."""
    given = {"mode": "hpa", "min": 1, "max": 100, "metrics": [{"in_flight": 10}], **scale}
    return replay(script_of({"scale": given, "replicas": replicas, "series": list(series)}))


# ── the formula, on one look ─────────────────────────────────────────────────────────────────

# current, load, ready, unready, missing → recommendation
FORMULA = [
    (3, 60, 3, 0, 0, 6),  # 20/10 = 2.0: ceil(2.0 · 3)
    (3, 33, 3, 0, 0, 3),  # 11/10 = 1.1: within the tolerance
    (3, 34, 3, 0, 0, 4),  # 11.33/10 = 1.133: ceil(3.4)
    (3, 27, 3, 0, 0, 3),  # 9/10 = 0.9: within the tolerance
    (3, 26, 3, 0, 0, 3),  # 8.67/10 = 0.867: ceil(2.6)
    (3, 20, 3, 0, 0, 2),  # 6.67/10: ceil(2.0)
    (10, 120, 10, 0, 0, 12),  # 1.2 · 10 = 12, no rounding error makes it 13
    (5, 0, 5, 0, 0, 0),  # 0: no replica is needed
    (5, 60, 3, 2, 0, 6),  # 20/10 = 2.0 up: (60 + 2·0)/5 = 12: 1.2 · 5 = 6
    (5, 45, 3, 2, 0, 5),  # 15/10 = 1.5 up: 45/5 = 9: 0.9, the direction turns: stay
    (5, 15, 3, 2, 0, 2),  # 5/10 = 0.5 down: unready ones are left out: ceil(0.5 · 3)
    (4, 60, 3, 0, 1, 6),  # 2.0 up: the missing one as 0: 60/4 = 15: 1.5 · 4
    (4, 36, 3, 0, 1, 4),  # 1.2 up: 36/4 = 9: 0.9: stay
    (4, 15, 3, 0, 1, 3),  # 0.5 down: the missing one at the target: (15 + 10)/4 = 6.25: ceil(0.625 · 4) = ceil(2.5)
    (4, 24, 3, 0, 1, 4),  # 0.8 down: (24 + 10)/4 = 8.5: ceil(0.85 · 4) = ceil(3.4)
    (6, 80, 4, 1, 1, 8),  # 2.0 up: (80 + 0 + 0)/6 = 13.3: ceil(1.33 · 6)
    (5, 10, 0, 0, 5, 5),  # none of the ready ones tells: the metric fails: stay
    (6, 16, 4, 1, 1, 3),  # 0.4 down: (16 + 10)/5 = 5.2 without the unready one: ceil(0.52 · 5) = ceil(2.6)
]


@pytest.mark.parametrize(("current", "load", "ready", "unready", "missing", "expected"), FORMULA)
def test_the_formula(current: int, load: float, ready: int, unready: int, missing: int, expected: int) -> None:
    point = {"time": 0, "load": load, "ready": ready, "unready": unready, "missing": missing}
    (decision,) = played(current, point)
    assert decision.recommendation == expected


def test_dying_and_failed_replicas_are_left_out() -> None:
    replicas = {
        "a": {"metrics": {"in_flight": 20}},
        "b": {"metrics": {"in_flight": 20}},
        "c": {"state": "dying", "metrics": {"in_flight": 90}},
        "d": {"state": "failed"},
    }
    (decision,) = played(2, {"time": 0, "replicas": replicas})
    assert decision.recommendation == 4  # 20/10 = 2.0: ceil(2.0 · 2)


def test_from_zero_it_is_the_ratio_without_tolerance() -> None:
    (decision,) = played(0, {"time": 0, "load": 25, "waiting": 25}, min=0)
    assert (decision.recommendation, decision.replicas) == (3, 3)  # ceil(25/10)
    (decision,) = played(0, {"time": 0, "load": 9.5, "waiting": 9}, min=0)
    assert decision.replicas == 1  # ceil(0.95), though 0.95 is within the tolerance
    (decision,) = played(0, {"time": 0, "load": 0}, min=0)
    assert decision.replicas == 0


def test_a_count_of_zero_that_min_forbids_is_an_operators() -> None:
    (decision,) = played(0, {"time": 0, "load": 50})
    assert (decision.replicas, decision.limit) == (0, "override")


def test_prometheus_is_an_external_metric_with_an_average() -> None:
    metrics = [{"prometheus": {"url": "http://p:9090", "query": "queue", "target": 30}}]
    rows = [
        (3, 98, 3),  # 98/(30 · 3) = 1.089: within the tolerance
        (3, 100, 4),  # 1.11: ceil(100/30)
        (3, 80, 3),  # 0.889: ceil(80/30)
        (3, 30, 1),  # ceil(30/30)
    ]
    for current, value, expected in rows:
        (decision,) = played(current, {"time": 0, "metrics": {"prometheus": value}}, metrics=metrics)
        assert decision.recommendation == expected


# ── CPU ──────────────────────────────────────────────────────────────────────────────────────

CPU = Metric.model_validate({"cpu": "50%"})
NOW = 1000.0


def pod(state: ReplicaState, cpu: float | None, started: float = 0, changed: float = 10, since: float = 900) -> Any:
    values = {} if cpu is None else {"cpu": cpu}
    return ReplicaReading(id="x", state=state, started=started, changed=changed, measured_from=since, values=values)


CPU_ROWS = [
    # ready for long: 0.9/0.5 = 1.8: ceil(1.8 · 3) = ceil(5.4)
    ([pod(READY, 0.9)] * 3, 6),
    # the third started 100 s ago and is not ready: aside. 1.8 up: (0.9 + 0.9 + 0)/3 = 0.6: ceil(1.2 · 3) = ceil(3.6)
    ([pod(READY, 0.9)] * 2 + [pod(RUNNING, 0.9, started=900, changed=910, since=950)], 4),
    # young and ready, but measured from before it was: aside. As above
    ([pod(READY, 0.9)] * 2 + [pod(READY, 0.9, started=900, changed=960, since=950)], 4),
    # young, ready, and measured since: it counts. ceil(1.8 · 3)
    ([pod(READY, 0.9)] * 2 + [pod(READY, 0.9, started=900, changed=940, since=950)], 6),
    # old, not ready, never was (not ready since 20 s after its start): aside
    ([pod(READY, 0.9)] * 2 + [pod(RUNNING, 0.9, started=0, changed=20)], 4),
    # old, not ready, but was ready before: it counts
    ([pod(READY, 0.9)] * 2 + [pod(RUNNING, 0.9, started=0, changed=600)], 6),
    # pending, without a value: aside
    ([pod(READY, 0.9)] * 2 + [pod(STARTING, None)], 4),
    # missing on the way down: as 100 % of its request. (0.1 + 0.1 + 1)/3 = 0.4: ceil(0.8 · 3) = ceil(2.4)
    ([pod(READY, 0.1)] * 2 + [pod(READY, None)], 3),
    # … with four that tell: (0.4 + 1)/5 = 0.28: ceil(0.56 · 5) = ceil(2.8), not ceil(0.2 · 4) = 1
    ([pod(READY, 0.1)] * 4 + [pod(READY, None)], 3),
    # missing on the way up: as 0. (1.8 + 0)/3 = 0.6: ceil(1.2 · 3)
    ([pod(READY, 0.9)] * 2 + [pod(READY, None)], 4),
    # aside on the way down: left out. 0.1/0.5 = 0.2: ceil(0.2 · 2)
    ([pod(READY, 0.1)] * 2 + [pod(STARTING, None)], 1),
    # leaving ones count for nothing
    ([pod(READY, 0.9), pod(DRAINING, 0.1), pod(FAILED, None)], 2),
]


@pytest.mark.parametrize(("replicas", "expected"), CPU_ROWS)
def test_cpu_counts_those_of_which_it_says_something(replicas: list[ReplicaReading], expected: int) -> None:
    current = sum(replica.state not in (DRAINING, FAILED) for replica in replicas)
    reading = Reading(current=current, replicas=replicas, metrics={"cpu": Sample(value=0.5)})
    assert hpa.proposal(CPU, reading, NOW, hpa.Tolerance()).recommendation == expected


def test_memory_of_a_replica_that_is_not_ready_counts() -> None:
    metric = Metric.model_validate({"memory": "50%"})
    replicas = [
        ReplicaReading(id="a", state=READY, values={"memory": 0.9}),
        ReplicaReading(id="b", state=RUNNING, started=990, changed=995, values={"memory": 0.9}),
    ]
    reading = Reading(current=2, replicas=replicas, metrics={"memory": Sample(value=0.9)})
    assert hpa.proposal(metric, reading, NOW, hpa.Tolerance()).recommendation == 4  # ceil(1.8 · 2)


# ── several metrics ──────────────────────────────────────────────────────────────────────────

TWO = [{"in_flight": 10}, {"requests_per_second": 100}]


def test_the_largest_wins() -> None:
    point = {"time": 0, "metrics": {"in_flight": 40, "requests_per_second": 600}}
    (decision,) = played(3, point, metrics=TWO)  # ceil(40/10) = 4, ceil(600/100) = 6
    assert (decision.recommendation, decision.metric) == (6, "requests_per_second")
    assert [one.recommendation for one in decision.metrics] == [4, 6]


@pytest.mark.parametrize("broken", [None, "nan", "inf", -5])
def test_one_that_fails_blocks_the_way_down_and_not_the_way_up(broken: object) -> None:
    down = {"time": 0, "metrics": {"in_flight": 5, "requests_per_second": broken}}
    later = {**down, "time": 400}
    _, decision = played(3, down, later, metrics=TWO)
    assert (decision.replicas, decision.limit) == (3, "missing metrics")
    up = {"time": 0, "metrics": {"in_flight": 50, "requests_per_second": broken}}
    (decision,) = played(3, up, metrics=TWO)
    assert (decision.replicas, decision.limit) == (5, "")


def test_when_all_fail_the_count_stays() -> None:
    (decision,) = played(3, {"time": 0, "metrics": {"in_flight": None, "requests_per_second": "inf"}}, metrics=TWO)
    assert (decision.replicas, decision.limit) == (3, "missing metrics")
    assert "in_flight fails" in decision.why


# ── over time ────────────────────────────────────────────────────────────────────────────────


def counts(decisions: list[Decision]) -> list[tuple[float, int, str]]:
    return [(one.time, one.replicas, one.limit) for one in decisions]


def steps(load: float, *times: float) -> list[dict[str, Any]]:
    return [{"time": time, "load": load} for time in times]


def percent(value: int, period: int) -> dict[str, Any]:
    return {"type": "Percent", "value": value, "periodSeconds": period}


def pods(value: int, period: int) -> dict[str, Any]:
    return {"type": "Pods", "value": value, "periodSeconds": period}


def test_without_behavior_it_at_most_doubles_or_grows_to_four() -> None:
    found = played(1, *steps(400, 0, 15, 30, 45, 60, 75))
    # max(2 · 1, 4) = 4, 8, 16, 32, then 40 are asked for
    assert counts(found) == [
        (0, 4, "rate"), (15, 8, "rate"), (30, 16, "rate"), (45, 32, "rate"), (60, 40, ""), (75, 40, "")
    ]  # fmt: skip


def test_it_looks_every_fifteen_seconds() -> None:
    found = played(4, *steps(40, 0), *steps(80, 5, 10, 14.9, 15))
    assert [(one.time, one.replicas) for one in found] == [(0, 4), (5, 4), (10, 4), (14.9, 4), (15, 8)]


def test_down_holds_the_highest_of_the_last_five_minutes_its_far_end_included() -> None:
    found = played(4, *steps(80, 0), *steps(10, 15, 285, 300, 315))
    # 8 is recommended at 0; it counts until 300, and no longer at 315
    assert [(one.time, one.replicas) for one in found] == [(0, 8), (15, 8), (285, 8), (300, 8), (315, 1)]
    assert found[1].limit == "first window"


def test_nothing_is_scaled_down_in_the_first_window() -> None:
    found = played(6, *steps(20, 0, 150, 300, 315))
    # what it finds counts as recommended at 0
    assert counts(found) == [(0, 6, "first window"), (150, 6, "first window"), (300, 6, "first window"), (315, 2, "")]


def test_with_behavior_the_far_end_of_the_window_is_not_included() -> None:
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 60}}
    found = played(4, *steps(40, 0), *steps(10, 15, 45, 60, 75), behavior=behavior)
    assert [(one.time, one.replicas) for one in found] == [(0, 4), (15, 4), (45, 4), (60, 1), (75, 1)]


def test_an_up_window_waits_for_the_lowest() -> None:
    behavior = {"scaleUp": {"stabilizationWindowSeconds": 60, "policies": [percent(1000, 15)]}}
    found = played(2, *steps(20, 0), *steps(90, 15, 30, 45), *steps(50, 60), *steps(90, 75, 90), behavior=behavior)
    # the lowest of the last 60 s: 2 (of 0) until 45, then that of (0, 60] is 5, until 60 is over at 120
    assert [one.replicas for one in found] == [2, 2, 2, 2, 5, 5, 5]


def test_policies_max() -> None:
    behavior = {"scaleUp": {"policies": [percent(100, 60), pods(4, 60)]}}
    found = played(3, *steps(500, 0, 15, 30, 45, 60, 75), behavior=behavior)
    # 0: max(ceil(3 · 2), 3 + 4) = 7; until 60 the period began with 7 − 4 = 3: 7
    # 60: the change of 0 is 60 s old and counts no more: max(14, 11) = 14; 75: 14 − 7 = 7: 14
    assert [one.replicas for one in found] == [7, 7, 7, 7, 14, 14]
    assert found[1].limit == "rate"


def test_policies_min() -> None:
    behavior = {"scaleUp": {"selectPolicy": "Min", "policies": [percent(50, 15), pods(4, 15)]}}
    found = played(3, *steps(500, 0, 15, 30, 45), behavior=behavior)
    # min(ceil(4.5) = 5, 7) = 5; min(ceil(7.5) = 8, 9) = 8; min(12, 12) = 12; min(18, 16) = 16
    assert [one.replicas for one in found] == [5, 8, 12, 16]


def test_policies_go_by_the_changes_of_both_directions() -> None:
    down, up = {"stabilizationWindowSeconds": 0}, {"policies": [pods(2, 60)]}
    points = [{"time": 0, "load": 50}, {"time": 15, "load": 500}, {"time": 30, "load": 500}]
    found = played(10, *points, behavior={"scaleUp": up, "scaleDown": down})
    # 15: the period began with 5 + 5 = 10: 12; 30: with 12 − 7 + 5 = 10
    assert [one.replicas for one in found] == [5, 12, 12]


def test_policies_down() -> None:
    down: dict[str, Any] = {"stabilizationWindowSeconds": 0, "policies": [percent(30, 30), pods(2, 30)]}
    behavior = {"scaleDown": down}
    found = played(20, *steps(10, 0, 15, 30, 45, 60, 75, 90), behavior=behavior)
    # 0: min(int(20 · 0.7) = 14, 18) = 14; 15: the period began with 14 + 6 = 20: 14
    # 30: the change is 30 s old: min(int(9.8) = 9, 12) = 9; 60: min(int(6.3) = 6, 7) = 6; 90: min(int(4.2), 4) = 4
    assert [one.replicas for one in found] == [14, 14, 9, 9, 6, 6, 4]
    down["selectPolicy"] = "Min"
    found = played(20, *steps(10, 0, 15, 30), behavior=behavior)
    assert [one.replicas for one in found] == [18, 18, 16]  # max(14, 18); max(int(12.6), 16)


def test_disabled_is_never() -> None:
    behavior = {"scaleDown": {"selectPolicy": "Disabled"}, "scaleUp": {"selectPolicy": "Disabled"}}
    found = played(5, *steps(10, 0, 400), *steps(500, 415), behavior=behavior)
    assert [one.replicas for one in found] == [5, 5, 5]
    assert found[1].limit == "rate"


def test_with_behavior_the_other_direction_has_the_defaults() -> None:
    found = played(2, *steps(500, 0, 15, 30), behavior={"scaleDown": {"stabilizationWindowSeconds": 60}})
    # max(100 %, 4) in 15 s: max(4, 6) = 6; max(12, 10) = 12; max(24, 16) = 24
    assert [one.replicas for one in found] == [6, 12, 24]


def test_a_tolerance_of_its_own() -> None:
    behavior = {"scaleUp": {"tolerance": 0}, "scaleDown": {"tolerance": 0.5, "stabilizationWindowSeconds": 0}}
    found = played(10, *steps(101, 0), *steps(60, 15), *steps(50, 30), behavior=behavior)
    # 1.01 is above 1 + 0: ceil(10.1) = 11; 60/11 = 5.45 is not below 5; 50/11 = 4.5 is: ceil(0.4545 · 11) = 5
    assert [one.replicas for one in found] == [11, 11, 5]


@pytest.mark.parametrize(("target", "measured"), [("50%", "55%"), ("70%", "77%"), ("77%", "69.3%"), ("80%", "88%")])
def test_the_ends_of_the_tolerance_are_within_it_whatever_the_sums_of_floats(target: str, measured: str) -> None:
    metrics = [{"cpu": target}]
    assert {played(count, {"time": 0, "load": measured}, metrics=metrics)[0].limit for count in range(1, 80)} == {
        "tolerance"
    }


def test_bounds_hold() -> None:
    found = played(3, *steps(500, 0, 15), *steps(0, 400, 700), max=5, min=2)
    assert counts(found) == [(0, 5, "max"), (15, 5, "max"), (400, 2, "min"), (700, 2, "min")]


def test_a_count_beyond_the_bounds_is_brought_back_at_once() -> None:
    (decision,) = played(30, {"time": 0, "load": 300}, max=10)
    assert decision.replicas == 10
    (decision,) = played(1, {"time": 0, "load": 10}, min=8)
    assert decision.replicas == 8


def test_the_defaults_are_hpas() -> None:
    assert (hpa.INTERVAL, hpa.TOLERANCE, hpa.CPU_INITIALIZATION, hpa.INITIAL_READINESS) == (15, 0.1, 300, 30)
    assert Scale.model_validate({"mode": "hpa"}).behavior is None
