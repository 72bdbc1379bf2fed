"""The file of `mesh autoscale --replay`: what it may hold, what is wrong with it, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mesh.cli.app import run
from mesh.cli.replay_file import script_of
from mesh.scheduler.autoscale.replay import replay
from mesh.spec.errors import SpecError

SCALE = {"max": 50, "metrics": [{"in_flight": 10}], "mode": "hpa"}

FAULTS: dict[str, dict[str, Any]] = {
    "series: is required": {"scale": SCALE},
    "scale.min: must not be above max, got 60 and 50": {"scale": {**SCALE, "min": 60}, "series": []},
    "series.0.time: is required": {"scale": SCALE, "series": [{"load": 1}]},
    "series.0.time: must be a time such as 2026-03-29T00:00:00Z, or Unix seconds, got 'noon'": {
        "scale": SCALE, "series": [{"time": "noon"}]},
    "series.0.lod: unknown field (did you mean 'load'?)": {"scale": SCALE, "series": [{"time": 0, "lod": 1}]},
    "series.0.load: must be a number, a share such as 70%, or nothing where it is missing, got 'much'": {
        "scale": SCALE, "series": [{"time": 0, "load": "much"}]},
    "series.0.metrics.cpu: is no metric of scale, which has in_flight": {
        "scale": SCALE, "series": [{"time": 0, "metrics": {"cpu": 1}}]},
    "series.1.time: must be later than the one before, 5": {
        "scale": SCALE, "series": [{"time": 5, "load": 1}, {"time": 5, "load": 1}]},
    "series.0.load: is for one metric, name them under metrics: there are 2": {
        "scale": {"metrics": [{"in_flight": 1}, {"cpu": "50%"}]}, "series": [{"time": 0, "load": 1}]},
    "series.0.replicas: stands for ready, missing, unready and dying: leave those out": {
        "scale": SCALE, "series": [{"time": 0, "ready": 1, "replicas": {"a": {}}}]},
    "scale.mode: must be text of whole characters, got '\\ud800'": {
        "scale": {**SCALE, "mode": "\ud800"}, "series": []},
    "series.0.ready: must be 0..100000, got -1": {"scale": SCALE, "series": [{"time": 0, "ready": -1}]},
    "series.0: must have at most 10000 replicas": {"scale": SCALE, "series": [{"time": 0, "ready": 10001}]},
}  # fmt: skip


@pytest.mark.parametrize(("sentence", "body"), FAULTS.items(), ids=list(FAULTS))
def test_a_fault_is_a_sentence_with_its_path(sentence: str, body: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as raised:
        script_of(body)
    assert raised.value.errors == [sentence]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"scale": {}, "series": [{"time": NaN}]}'])
def test_a_bad_file_is_code_2_and_nothing_on_standard_output(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "series.json"
    file.write_text(text)
    assert run(["autoscale", "--replay", str(file), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert str(file) in err


def test_a_service_and_a_file_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["autoscale"]) == 2
    assert run(["autoscale", "web", "--replay", "x"]) == 2
    assert capsys.readouterr().err.count("give either a SERVICE or --replay FILE") == 2


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "series.yaml"
    file.write_text("""
scale: {max: 50, metrics: [{in_flight: 10}], mode: hpa}
replicas: 3
series:
  - {time: 0, load: 30}
  - {time: 15, load: 60, ready: 3}
""")
    assert run(["autoscale", "--replay", str(file), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["decisions"]
    assert (first["time"], first["replicas"], first["limit"]) == (0, 3, None)
    assert second == {
        "time": 15,
        "current": 3,
        "replicas": 6,
        "recommendation": 6,
        "metric": "in_flight",
        "window": "now",
        "limit": None,
        "why": "20 requests in flight per replica, target 10: 3 → 6",
        "metrics": [{"metric": "in_flight", "value": 20.0, "target": 10.0, "recommendation": 6}],
    }
    assert run(["autoscale", "--replay", str(file)]) == 0
    assert "3 → 6" in capsys.readouterr().out


def test_the_example_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["autoscale", "--replay", str(Path(__file__).parents[2] / "examples/autoscale.json"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["decisions"]) == 7


def counts(scale: dict[str, Any], series: list[dict[str, Any]], **more: Any) -> list[int]:
    return [one.replicas for one in replay(script_of({"scale": scale, "series": series, **more}))]


def test_the_recorded_count_holds_over_what_was_decided() -> None:
    assert counts(SCALE, [{"time": 0, "load": 60}, {"time": 15, "load": 60, "current": 2}], replicas=3) == [6, 4]


def test_replicas_become_ready_after_their_start_where_the_series_does_not_say() -> None:
    series = [{"time": time, "load": 60} for time in range(0, 60, 15)]
    # 20 per replica: 6. With 3 of 6 ready (the others set aside: 10 each) they are right. All ready: 10 each
    assert counts(SCALE, series, replicas=3, start_up="20s") == [6, 6, 6, 6]
    scale = {**SCALE, "mode": "kpa"}
    assert counts(scale, series, replicas=3, start_up="20s")[-1] == 6


def test_an_interval_of_its_own() -> None:
    series = [{"time": 0.3 + second / 10, "load": 30 + 10 * second} for second in range(4)]
    assert counts(SCALE, series, replicas=3, interval="0s") == [3, 4, 5, 6]
    assert counts(SCALE, series, replicas=3, interval="200ms") == [3, 3, 5, 5]


def test_replicas_may_be_told_one_by_one() -> None:
    replicas = {"a": {"metrics": {"cpu": "90%"}}, "b": {"metrics": {"cpu": 0.9}}, "c": {"state": "starting"}}
    scale = {"metrics": [{"cpu": "50%"}], "mode": "hpa"}
    assert counts(scale, [{"time": 0, "replicas": replicas}], replicas=3) == [4]  # 1.8 up: 1.8/3 = 0.6: ceil(1.2 · 3)


def test_of_several_queries_each_is_named_in_full() -> None:
    asked = [{"prometheus": {"url": "http://prometheus", "query": query, "target": 2}} for query in ("a", "b")]
    scale = {"metrics": asked, "mode": "hpa"}
    told = {"prometheus: a": 3, "prometheus: b": 7}
    assert counts(scale, [{"time": 0, "metrics": told}], replicas=2) == [4]  # 7 / 2
    with pytest.raises(SpecError, match="prometheus: is no metric of scale, which has prometheus: a, prometheus: b"):
        counts(scale, [{"time": 0, "metrics": {"prometheus": 3}}])


def test_a_number_beyond_floats_is_infinite_and_scales_nothing() -> None:
    assert counts(SCALE, [{"time": 0, "load": 10**400}], replicas=3) == [3]


@pytest.mark.parametrize("mode", ["kpa", "predictive", "hpa"])
@pytest.mark.parametrize("replicas", [0, 2])
def test_the_largest_load_over_the_least_target_asks_for_max(mode: str, replicas: int) -> None:
    scale = {"max": 4, "metrics": [{"in_flight": 1e-6}], "mode": mode, "to_zero_after": "1m"}
    found = counts(scale, [{"time": time, "load": 1e15, "waiting": 1} for time in (0, 15)], replicas=replicas)
    assert found == [4, 4]


@pytest.mark.parametrize("mode", ["kpa", "predictive", "hpa"])
def test_only_the_time_between_points_counts_also_before_1970(mode: str) -> None:
    def played(begin: int) -> list[int]:
        loads = [30, 30, 60, 10, 10, 100, 100]
        series = [{"time": begin + 10 * number, "load": load} for number, load in enumerate(loads)]
        return counts({**SCALE, "mode": mode}, series, replicas=3)

    assert played(-9000) == played(9000)


@pytest.mark.parametrize("unknown", ["nan", -1])
def test_traffic_that_is_no_number_keeps_a_service_awake(unknown: object) -> None:
    series = [{"time": time, "load": 0, "traffic": unknown} for time in (0, 400, 800)]
    assert counts({**SCALE, "to_zero_after": "10s"}, series, replicas=1) == [1, 1, 1]


def test_times_may_be_dates() -> None:
    scale = {**SCALE, "schedules": [{"cron": "0 8 * * *", "min": 5, "max": 9, "zone": "Europe/Berlin"}]}
    series = [{"time": "2026-01-05T06:59:00Z", "load": 5}, {"time": "2026-01-05T08:00:00+01:00", "load": 5}]
    assert counts({**scale, "min": 1}, [{**one, "current": 1} for one in series])[-1] == 5


def test_dates_of_toml_are_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = "".join(f"[[series]]\ntime = {time}\nload = 5\n" for time in ("1970-01-01T00:00:05Z", "1970-01-02"))
    (tmp_path / "series.toml").write_text(f"[scale]\nmetrics = [{{in_flight = 10}}]\n{points}")
    assert run(["autoscale", "--replay", str(tmp_path / "series.toml"), "--json"]) == 0
    assert [one["time"] for one in json.loads(capsys.readouterr().out)["decisions"]] == [5, 86400]


def test_a_schedule_that_allows_none_says_so() -> None:
    scale = {**SCALE, "mode": "kpa", "schedules": [{"cron": "0 0 * * *", "min": 0, "max": 0}]}
    found = replay(
        script_of({"scale": scale, "replicas": 2, "series": [{"time": 0, "load": 5}, {"time": 1, "load": 0}]})
    )
    assert [one.replicas for one in found] == [0, 0]
    assert found[1].why == "the schedule that holds now allows none"


def test_hands_are_recorded_too() -> None:
    assert counts(SCALE, [{"time": 0, "load": 60, "held": 2}, {"time": 15, "load": 60}], replicas=3) == [2, 4]
