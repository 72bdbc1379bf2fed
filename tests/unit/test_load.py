"""What a node's proxy carries, added up: pure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.dataplane.load import BOUNDS, ROUND_BOUNDS, EndpointLoad, LoadReport, LoadWindow, PortLoad, merged, quantile
from mesh.proxy.stats import RETENTION, Stats, families


def port_load(**more: Any) -> PortLoad:
    given: dict[str, Any] = {
        "service": "web", "port": "http", "requests": 0, "failures": 0, "busy": 0.0, "latency": {}, "retries": 0,
        "opened": 0, "endpoints": [], "in_flight": 0, "queued": 0, "connections": 0,
    }  # fmt: skip
    return PortLoad(**(given | more))


def report(window: LoadWindow, now: float) -> LoadReport:
    return window.report({"web": ["http"]}, now)


def test_the_sum_of_several_workers_over_ten_seconds() -> None:
    window = LoadWindow(0.0)
    for second in range(100, 110):
        for worker in ("a", "b"):
            load = port_load(requests=50, failures=1, busy=2.0, latency={40: 50}, retries=3, opened=7, in_flight=4)
            window.add(worker, second, [load], second + 1)
    seen = report(window, 110.0)
    assert seen.window == pytest.approx(9.0)
    web = seen.services["web"]
    assert web.rps == pytest.approx(100)
    assert web.in_flight == pytest.approx(4.0)
    assert web.in_flight_now == 8
    assert web.success_ratio == pytest.approx(0.98)
    assert web.retries == pytest.approx(6)
    assert web.connection_rate == pytest.approx(14)
    assert web.ports["http"].rps == web.rps


def test_a_worker_that_follows_another_counts_once() -> None:
    window = LoadWindow(0.0)
    for second in range(101, 106):
        window.add("old", second, [port_load(requests=100, in_flight=9)], second + 1)
    window.left("old")
    for second in range(106, 111):
        window.add("new", second, [port_load(requests=100, in_flight=2)], second + 1)
    web = report(window, 111.0).services["web"]
    assert web.rps == pytest.approx(100), "nine seconds, whoever served them"
    assert web.in_flight_now == 2, "what left has nothing open"


def test_what_is_older_is_forgotten_and_what_stands_still_is_zero() -> None:
    window = LoadWindow(0.0)
    window.add("a", 100, [port_load(requests=100, connections=3)], 101)
    web = report(window, 200.0).services["web"]
    assert (web.rps, web.p50, web.success_ratio) == (0.0, None, None)
    assert web.connections == 3, "they are still open"
    assert window._seconds == {}


def test_at_the_start_the_window_is_as_long_as_there_is_something_to_tell() -> None:
    window = LoadWindow(100.0)
    window.add("a", 100, [port_load(requests=30)], 101)
    seen = report(window, 102.0)
    assert (seen.window, seen.services["web"].rps) == (2.0, 15.0)


def test_totals_grow_for_as_long_as_the_service_is_known() -> None:
    window = LoadWindow(0.0)
    window.add("a", 100, [port_load(arrived=80, busy=8.0, opened=4)], 101)
    window.left("a")
    window.add("b", 150, [port_load(arrived=10, busy=1.0)], 151)
    total = report(window, 151.25).services["web"].total
    assert (total.requests, total.busy, total.connections) == (90, 9.0, 4), "whoever counted it, and however long ago"
    assert merged([report(window, 151.3)] * 2)["web"].total.requests == 180
    window.report({}, 152.0)
    assert report(window, 153.0).services["web"].total.requests == 0


def test_a_request_has_arrived_before_it_ends() -> None:
    stats = Stats()
    stats.begin(1.0)
    stats.begin(1.5)
    first = stats.take_load("web", "http", 2.0)
    stats.end(1.0, 3.0, 200)
    stats.begin(3.0)
    second = stats.take_load("web", "http", 4.0)
    assert first
    assert second
    assert (first.arrived, first.requests) == (2, 0)
    assert (second.arrived, second.requests) == (1, 1)


def test_an_ejected_endpoint_is_told_also_without_traffic() -> None:
    window = LoadWindow(0.0)
    window.add("a", 100, [port_load(endpoints=[EndpointLoad("web-1", 10, 5, 0, True)])], 101)
    web = report(window, 150.0).services["web"]
    assert web.ejected == 1
    assert web.endpoints["web-1"].ejected


@given(st.lists(st.floats(1e-4, 99), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_quantiles_are_within_eight_per_cent(seconds: list[float], share: float) -> None:
    stats = Stats()
    for each in seconds:
        stats.begin(0.0)
        stats.end(0.0, each, 200)
    load = stats.take_load("web", "http", 100.0)
    assert load is not None
    found = quantile(load.latency, share)
    exact = sorted(seconds)[max(0, -(-len(seconds) * share // 1).__trunc__() - 1)]
    assert found == pytest.approx(exact, rel=0.08)


def test_nodes_add_up_with_one_histogram() -> None:
    nodes = []
    for latency in ({20: 90}, {60: 10}):
        window = LoadWindow(0.0)
        endpoint = EndpointLoad("web-1", sum(latency.values()), 0, 0, False)
        window.add("a", 100, [port_load(requests=sum(latency.values()), latency=latency, endpoints=[endpoint])], 101)
        nodes.append(report(window, 109.5))
    web = merged(nodes)["web"]
    assert web.rps == pytest.approx(100 / 9.5)
    assert web.p50 == pytest.approx(nodes[0].services["web"].p50)
    assert web.p99 == pytest.approx(nodes[1].services["web"].p99)
    assert web.endpoints["web-1"].rps == pytest.approx(web.rps)


# ── counting ─────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=50), st.floats(100, 200))
def test_the_integral_of_what_is_in_flight_is_exact(spans: list[tuple[float, float]], now: float) -> None:
    stats = Stats()
    for began, lasted in spans:
        stats.begin(began)
        if began + lasted <= now:
            stats.end(began, began + lasted, 200)
    exact = sum(min(began + lasted, now) - began for began, lasted in spans)
    assert stats.busy(now) == pytest.approx(exact, abs=1e-6)


def test_a_load_is_told_once_and_only_where_something_moved() -> None:
    stats = Stats()
    assert stats.take_load("web", "http", 1.0) is None
    stats.begin(1.0)
    stats.end(1.0, 3.0, 503)
    stats.begin(4.0)
    load = stats.take_load("web", "http", 5.0)
    assert load is not None
    assert (load.requests, load.failures, load.busy, load.in_flight) == (1, 1, 3.0, 1)
    load = stats.take_load("web", "http", 7.0)
    assert load is not None, "a request in flight is work"
    assert (load.requests, load.busy) == (0, 2.0)
    stats.end(4.0, 8.0, 200)
    load = stats.take_load("web", "http", 9.0)
    assert load is not None
    assert (load.requests, load.failures, load.busy, load.in_flight) == (1, 0, 1.0, 0)
    assert stats.take_load("web", "http", 10.0) is None


def test_prometheus_sees_the_round_part_of_the_histogram() -> None:
    stats = Stats()
    for seconds in (0.0005, 0.004, 0.004, 0.3, 200.0):
        stats.begin(0.0)
        stats.end(0.0, seconds, 200)
    histogram = next(
        each for each in families({("web", "http"): stats}, {}, {}) if each.name.endswith("request_seconds")
    )
    counts = {sample.labels["le"]: sample.value for sample in histogram.samples if sample.suffix == "_bucket"}
    assert list(counts) == [*map(str, ROUND_BOUNDS), "+Inf"]
    assert (counts["0.001"], counts["0.005"], counts["0.25"], counts["0.5"], counts["+Inf"]) == (1, 3, 3, 4, 5)
    assert set(ROUND_BOUNDS) <= set(BOUNDS)


def test_an_endpoint_that_left_is_forgotten_after_a_while() -> None:
    stats = Stats()
    endpoint = stats.endpoint("web-1")
    endpoint.answered(200, 0.1)
    stats.keep({"web-1"}, 10.0)
    stats.forget(10_000.0)
    assert stats.endpoint("web-1") is endpoint
    stats.keep(set(), 20.0)
    stats.forget(20.0 + RETENTION)
    assert "web-1" in stats.endpoints, "its last counts are to be scraped"
    stats.keep(set(), 400.0)
    stats.forget(20.1 + RETENTION)
    assert "web-1" not in stats.endpoints
