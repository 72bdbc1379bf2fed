"""Why a count is what it is, in a sentence."""

from __future__ import annotations

from typing import NamedTuple

from mesh.scheduler.autoscale.followed import Bounds, Followed
from mesh.scheduler.autoscale.model import Decision, MetricDecision
from mesh.units import format_duration, format_share

_UNITS = {"in_flight": "requests in flight", "requests_per_second": "requests per second"}


class State(NamedTuple):
    """What a sentence may name beside the decision."""

    service: Followed
    bounds: Bounds
    idle: float
    """Seconds without a request."""
    ready: int
    panic: bool


def why(decision: Decision, state: State) -> str:
    """What is asked for and why, and what became of it."""
    service = state.service
    if decision.limit == "override":
        return f"held at {decision.replicas} by hand, until it is released: mesh scale {service.name}=spec"
    if not decision.replicas and decision.current and not decision.recommendation and service.scale.to_zero_after:
        return f"no request for {format_duration(round(state.idle))}: it sleeps until somebody asks for it"
    if not decision.current and not decision.replicas:
        return "it sleeps: nobody asks for it" if state.bounds.high else "the schedule that holds now allows none"
    if not decision.current and decision.replicas and service.reading is not None and service.reading.waiting:
        waits = "1 request waits" if service.reading.waiting == 1 else f"{service.reading.waiting} requests wait"
        return f"{waits}: wake {_replicas(decision.replicas)}{_limit(decision, state)}"
    told, failing = f"{_asked(decision, state)}{_limit(decision, state)}", _failing(decision.metrics)
    return f"{told}; {failing}" if decision.current and failing and failing not in told else told


def _asked(decision: Decision, state: State) -> str:
    """What the metrics ask for."""
    if decision.limit == "not ready" and not state.ready:
        return f"none of {_replicas(decision.current)} is ready: the load says nothing yet"
    if decision.limit == "not ready":
        return "the first replica has only just become ready: the load says nothing yet"
    if decision.limit == "interval":
        return "it is looked at in intervals, and not yet again"
    if not decision.metrics:
        return "there are no metrics: only min, max and schedules hold"
    top = next((one for one in decision.metrics if one.metric == decision.metric), decision.metrics[0])
    if top.value is None:
        failing = _failing(decision.metrics)
        return f"{failing}: nothing to go by" if failing else "the load says nothing yet"
    if decision.window == "season":
        return f"this time of day asks for {decision.recommendation}"
    return f"{_measured(top, decision)}: {_change(decision.current, decision.recommendation)}"


def _measured(metric: MetricDecision, decision: Decision) -> str:
    each = "" if not decision.current else " per replica"
    span = "" if decision.window == "now" else f" ({decision.window})"
    if metric.metric in ("cpu", "memory"):
        found = format_share(round(metric.value or 0, 3))
        return f"{metric.metric} is at {found}{span}, target {format_share(metric.target)}{_counted(metric)}"
    what = _UNITS.get(metric.metric, metric.metric)
    return f"{metric.value:.4g} {what}{each}{span}, target {metric.target:.4g}{_counted(metric)}"


def _counted(metric: MetricDecision) -> str:
    return f" (with {metric.note})" if metric.note else ""


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _change(current: int, recommended: int) -> str:
    if current != recommended:
        return f"{current} → {recommended}"
    return f"{current} {'is' if current == 1 else 'are'} right"


def _failing(metrics: list[MetricDecision]) -> str:
    return "; ".join(f"{one.metric} fails ({one.fault})" for one in metrics if one.fault)


def _limit(decision: Decision, state: State) -> str:
    """What kept the count from that."""
    scale, limits = state.service.scale, state.service.limits
    grows = decision.recommendation > decision.current
    match decision.limit:
        case "min":
            return f"; min is {state.bounds.low}"
        case "max":
            return f"; max is {state.bounds.high}"
        case "schedule":
            return f"; the schedule that holds now allows {state.bounds.low} to {state.bounds.high}"
        case "rate":
            return f"; {'at most' if grows else 'at least'} {decision.replicas} now: the rate limit"
        case "tolerance":
            tolerance = limits.up.tolerance if decision.metrics and _above(decision) else limits.down.tolerance
            return f"; within the tolerance of {format_share(tolerance)}"
        case "first window":
            return f"; {_stay(decision)}: nothing is scaled down before it has been watched for a whole window"
        case "missing metrics":
            return f"; {_stay(decision)}, for {_failing(decision.metrics) or 'a metric fails'}"
        case "to zero":
            return f"; at zero only after {format_duration(scale.to_zero_after)} without a request"
        case "stabilisation":
            window = limits.up.window if grows else limits.down.window
            if window:
                return f"; {decision.replicas} until that has been so for {format_duration(window)}"
            if state.panic:
                return f"; {_stay(decision)} until the rush has been over for a minute"
            return f"; {_stay(decision)}: it has just changed the other way, and the difference is too small"
    return ""


def _stay(decision: Decision) -> str:
    return f"{decision.replicas} {'stays' if decision.replicas == 1 else 'stay'}"


def _above(decision: Decision) -> bool:
    top = decision.metrics[0]
    return top.value is not None and top.value > top.target
