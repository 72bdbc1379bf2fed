"""What can never happen, whatever is measured: Hypothesis looks for it."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model import ReplicaState
from mesh.scheduler.autoscale.autoscaler import Autoscaler
from mesh.scheduler.autoscale.limits import Change, limits_of
from mesh.scheduler.autoscale.model import Decision, Reading, ReplicaReading, Sample, Target
from mesh.spec.scale import Scale

values = st.one_of(
    st.none(), st.floats(0, 500), st.floats(0, 1e12), st.sampled_from([math.inf, -math.inf, math.nan, -1.0, 1e300])
)  # fmt: skip
policies = st.builds(
    lambda kind, value, period: {"type": kind, "value": value, "periodSeconds": period},
    st.sampled_from(["Pods", "Percent"]), st.integers(1, 200), st.integers(1, 120),
)  # fmt: skip
rules = st.fixed_dictionaries(
    {},
    optional={
        "stabilizationWindowSeconds": st.integers(0, 120),
        "selectPolicy": st.sampled_from(["Max", "Min", "Disabled"]),
        "policies": st.lists(policies, min_size=1, max_size=2),
        "tolerance": st.floats(0, 0.5),
    },
)


@st.composite
def scales(draw: st.DrawFn) -> Scale:
    low = draw(st.integers(0, 5))
    body: dict[str, Any] = {
        "min": low,
        "max": draw(st.integers(max(low, 1), 40)),
        "mode": draw(st.sampled_from(["predictive", "kpa", "hpa"])),
        "metrics": draw(st.lists(st.sampled_from([
            {"in_flight": 10}, {"requests_per_second": 50}, {"cpu": 0.7}, {"prometheus": {
                "url": "http://p", "query": "q", "target": 3}}]), max_size=3)),
        "to_zero_after": draw(st.sampled_from([0, 0, 10])),
        "scale_down_delay": draw(st.sampled_from([0, 0, 20])),
    }  # fmt: skip
    if draw(st.booleans()):
        body["behavior"] = draw(st.fixed_dictionaries({}, optional={"scaleUp": rules, "scaleDown": rules}))
    return Scale.model_validate(body)


KEYS = ("in_flight", "requests_per_second", "cpu", "prometheus: q")


@st.composite
def moments(draw: st.DrawFn) -> tuple[float, dict[str, float | None], list[ReplicaState], int, float | None]:
    """Seconds that pass; the metrics; the replicas' states; how many wait; the traffic."""
    return (
        draw(st.sampled_from([0.3, 1, 1, 1, 1, 2, 15, 70])),
        {key: draw(values) for key in KEYS},
        draw(st.lists(st.sampled_from([ReplicaState.READY, ReplicaState.READY, ReplicaState.STARTING,
                                       ReplicaState.RUNNING, ReplicaState.DRAINING]), max_size=6)),
        draw(st.sampled_from([0, 0, 1, 500])),
        draw(st.sampled_from([None, 0, 0, 3])),
    )  # fmt: skip


def run(scale: Scale, first: int, given_moments: list[Any], *, carried_out: bool) -> list[tuple[Decision, bool]]:
    """Each moment's decision, and whether it is to be carried out."""
    autoscaler = Autoscaler(0)
    autoscaler.follow({"other": Target(scale=Scale(max=3)), "web": Target(scale=scale)})
    now, current, found = 0.0, first, []
    for passed, metrics, states, waiting, traffic in given_moments:
        now += passed
        told = {key: value for key, value in metrics.items() if value is not None}
        replicas = [ReplicaReading(id=str(number), state=state, values=told) for number, state in enumerate(states)]
        samples = {key: Sample(value=value) for key, value in metrics.items()}
        reading = Reading(current=current, replicas=replicas, metrics=samples, waiting=waiting, traffic=traffic)
        decisions = autoscaler.tick(now, {"web": reading})
        explained = autoscaler.explain("web")
        assert [one for one in decisions if one.service == "web"] == (
            [explained] if explained.replicas != explained.current else []
        )
        found.append((explained, bool(decisions)))
        if carried_out:
            current = explained.replicas
    return found


@given(scales(), st.integers(0, 60), st.lists(moments(), min_size=1, max_size=25))
@settings(max_examples=80, deadline=None)
def test_bounds_and_rates_hold_and_the_same_input_has_the_same_answer(
    scale: Scale, first: int, given_moments: list[Any]
) -> None:
    found = run(scale, first, given_moments, carried_out=True)
    limits = limits_of(scale)
    changes: list[Change] = []
    for decision, _ in found:
        least = 0 if scale.to_zero_after or not scale.min else scale.min
        assert least <= decision.replicas <= scale.max
        assert decision.why
        assert "nan" not in decision.why.replace("nan is no number", "")
        before = decision.current
        sleeping = before == 0 and least == 0
        if (scale.min <= before <= scale.max or sleeping) and decision.replicas != before:
            now = decision.time
            if decision.replicas > before:
                assert decision.replicas <= max(limits.most(before, now, changes), 1 if not before else 0)
            else:
                assert decision.replicas >= limits.least(before, now, changes)
        changes.append(Change(decision.time, decision.replicas - decision.current))
    again = run(scale, first, given_moments, carried_out=True)
    assert again == found


@given(scales(), st.integers(0, 60), st.lists(moments(), min_size=1, max_size=15))
@settings(max_examples=25, deadline=None)
def test_a_decision_that_is_not_carried_out_does_no_harm(scale: Scale, first: int, given_moments: list[Any]) -> None:
    for decision, _ in run(scale, first, given_moments, carried_out=False):
        assert decision.current == first
        assert 0 <= decision.replicas <= scale.max
