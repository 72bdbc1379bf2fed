"""`mesh rollout simulate`: tables of cases, the file's faults, and the example that the docs show."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Mesh

DOCS = Path(__file__).parents[2] / "docs" / "rollouts.md"

OLD = {"image": "web:1", "replicas": 3, "update": {"min_healthy": "2s"}}


def new(**update: Any) -> dict[str, Any]:
    return {**OLD, "image": "web:2", "update": {"min_healthy": "2s", "healthy_deadline": "30s", **update}}


@pytest.fixture
def play(mesh: Mesh, tmp_path: Path) -> Any:
    def run(**script: Any) -> Any:
        file = tmp_path / "rollout.json"
        file.write_text(json.dumps({"old": OLD, **script}))
        result = mesh("rollout", "simulate", file, "--json")
        assert result.code == 0, result.err
        return result.json

    return run


def actions(played: Any) -> list[tuple[float, str]]:
    return [(step["at"], action["action"]) for step in played["steps"] for action in step["actions"]]


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ({},
         [(0, "release"), (0, "place"), (3, "stop"), (3, "place"), (6, "stop"), (6, "place"), (9, "done"),
          (9, "stop")]),
        ({"max_surge": 3}, [(0, "release"), *[(0, "place")] * 3, (3, "done"), *[(3, "stop")] * 3]),
        ({"max_surge": 0, "max_unavailable": 3},
         [(0, "release"), *[(0, "stop")] * 3, *[(1, "place")] * 3, (4, "done")]),
        ({"canary": 1}, [(0, "release"), (0, "place")]),
        ({"canary": "100%", "auto_promote": True},
         [(0, "release"), *[(0, "place")] * 3, (3, "promote"), (3, "done"), *[(3, "stop")] * 3]),
    ],
)  # fmt: skip
def test_what_a_setting_does(play: Any, update: dict[str, Any], expected: list[tuple[float, str]]) -> None:
    assert actions(play(spec=new(**update))) == expected


def test_canaries_that_answer_with_errors_are_taken_back(play: Any) -> None:
    events = [{"at": "5s", "success_ratio": 1}, {"at": "9s", "success_ratio": 0.8, "requests": 40}]
    played = play(spec=new(canary=1), events=events)
    (rollback,) = [step for step in played["steps"] for action in step["actions"] if action["action"] == "rollback"]
    assert rollback["at"] == 9
    assert rollback["happened"] == ["web: its canaries answer 80% of their requests well"]
    assert "answered 80% of 40 requests well, 95% should be" in rollback["said"][0]


def test_a_release_that_never_gets_ready_is_rolled_back_when_its_deadline_is_over(play: Any) -> None:
    played = play(spec=new(), ready_after="never")
    assert [action for action in actions(played) if action[1] in ("rollback", "done")] == [
        (30, "rollback"),
        (30, "done"),
    ]
    assert (played["state"], played["release"], played["cut"]) == ("idle", 3, False)


def test_a_crash_loop_never_extends_the_deadline(play: Any) -> None:
    played = play(spec=new(min_healthy="5s"), ready_after="1s", fails_after="4s")
    assert (34, "rollback") in actions(played), "30 s from when the first one failed, at 4 s"


def test_a_crash_in_mid_rollout_keeps_the_replica_that_stands_in_for_it(play: Any) -> None:
    played = play(spec=new(), events=[{"at": "6s", "slot": 1, "state": "failed"}])
    assert [step["ready"] for step in played["steps"] if step["at"] == 6] == [3], "slot 2 has two that are healthy"
    assert min(step["ready"] for step in played["steps"]) == 3
    assert (played["state"], played["release"]) == ("idle", 2)


def test_a_release_that_crashes_once_it_was_healthy_takes_over_no_further_slot(play: Any) -> None:
    played = play(spec=new(), ready_after="1s", fails_after="6s")
    before = itertools.takewhile(lambda step: step["release"] == 2, played["steps"])
    assert sum(action["action"] == "stop" for step in before for action in step["actions"]) == 1


def test_a_replica_that_is_ready_for_a_moment_again_and_again_was_not_healthy_in_time(play: Any) -> None:
    flaps = [{"at": at, "slot": 1, "state": "ready" if at % 2 else "running"} for at in range(2, 60)]
    played = play(spec=new(min_healthy="5s"), events=flaps)
    assert (30, "rollback") in actions(played)


def test_events_are_what_operators_and_fate_do(play: Any) -> None:
    played = play(
        spec=new(canary=1),
        events=[
            {"at": "10s", "action": "promote"},
            {"at": "14s", "slot": 1, "state": "failed"},
            {"at": 40, "action": "undo"},
            {"at": 60, "replicas": 1},
        ],
    )
    happened = [(step["at"], what) for step in played["steps"] for what in step["happened"]]
    assert (10, "an operator: promote") in happened
    assert (14, "web-1-0003: failed") in happened
    assert (40, "rollback") in actions(played)
    assert (played["state"], played["release"], played["steps"][-1]["desired"]) == ("idle", 3, 1)


def test_a_new_spec_after_a_pause_is_a_release_and_resumes_none(play: Any) -> None:
    played = play(spec=new(), events=[{"at": 1, "action": "pause"}, {"at": 10, "spec": {**new(), "image": "web:3"}}])
    assert [action for action in actions(played) if action[1] not in ("place", "stop")] == [
        (0, "release"), (1, "pause"), (10, "release"), (19, "done"),
    ]  # fmt: skip
    asleep = play(spec={**new(), "replicas": 0}, old={**OLD, "replicas": 0})
    assert actions(asleep) == [(0, "release"), (0, "done")]


def test_replicas_begin_as_they_are_said_to(play: Any) -> None:
    played = play(spec=new(), replicas=[{"slot": 1}, {"slot": 2, "state": "starting", "age": "5s"}, {"slot": 3}])
    placed = next(action for action in played["steps"][0]["actions"] if action["action"] == "place")
    assert placed["slot"] == 2, "what is not ready is replaced first"


def test_times_that_no_binary_fraction_has_pass_too(play: Any) -> None:
    played = play(spec=new(), ready_after="1.66s", stops_after="1.52s")
    assert [action for action in actions(played) if action[1] == "place"] == [(0, "place"), (3.66, "place"),
                                                                             (7.32, "place")]  # fmt: skip
    assert actions(played)[-2:] == [(10.98, "done"), (10.98, "stop")]


def test_a_volume_keeps_its_slot_where_it_is(play: Any) -> None:
    data = {"replicas": 4, "volumes": {"data": {"path": "/data"}}}
    played = play(old={**OLD, **data}, spec={**new(max_unavailable="50%"), **data})
    places = [action for step in played["steps"] for action in step["actions"] if action["action"] == "place"]
    assert {one["slot"]: one["node"] for one in places} == {1: "n1", 2: "n2", 3: "n3", 4: "n1"}


def test_configs_that_a_spec_names_are_there(play: Any) -> None:
    named = {"env": {"MODE": {"config": "mode"}}, "mounts": [{"config": "site", "path": "/etc/site.conf"}]}
    assert actions(play(old={**OLD, **named}, spec={**OLD, **named})) == [], "nothing is changed"
    played = play(old={**OLD, **named}, spec={**new(), **named}, ready_after="never")
    assert (played["release"], played["at"]) == (3, 31), "it comes back as it was, and at once"


def test_without_an_old_release_it_is_the_first(play: Any) -> None:
    assert actions(play(old=None, spec=new(canary=1)))[-1] == (3, "done")


def test_for_people_it_is_a_story(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"old: {json.dumps(OLD)}\nspec: {json.dumps(new())}\n")
    out = mesh("rollout", "simulate", "r.yaml").out
    assert "place web-1-0003 on n1 (release 2): spec@2" in out
    assert out.endswith("release 2 is idle after 10 s\n")


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ({}, "spec: is required"),
        ([], "must be an object, got a list"),
        ({"spec": {}, "evnts": []}, "evnts: unknown field (did you mean 'events'?)"),
        ({"spec": {"update": {"max_surge": 0}}}, "spec.update: max_surge and max_unavailable must not both be zero"),
        ({"spec": {}, "events": [{"at": 1}]},
         "events.0: needs exactly one of state, action, spec, replicas, success_ratio, got none"),
        ({"spec": {}, "events": [{"at": 1, "state": "ready"}]},
         "events.0.state: needs a slot or a replica whose it is"),
        ({"spec": {}, "events": [{"at": 1, "action": "promot"}]},
         "events.0.action: must be pause, resume, promote, abort or undo, got 'promot' (did you mean 'promote'?)"),
        ({"spec": {}, "ready_after": "soon"}, "ready_after: must be a duration such as 15s, or never, got 'soon'"),
        ({"spec": {}, "replicas": [{"slot": 1}]}, "replicas: are of the old release: give it as old"),
        ({"spec": {}, "nodes": 1000}, "nodes: must be at most 100, got 1000"),
        ({"spec": {"kind": "global"}}, "spec.kind: only kind service can be rehearsed, got global"),
        ({"spec": {"replicas": 5000}}, "spec.replicas: must be at most 1000, got 5000"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_with_its_path(mesh: Mesh, tmp_path: Path, script: object, sentence: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(script))
    result = mesh("rollout", "simulate", "r.json")
    assert (result.code, result.err.strip()) == (2, f"error: r.json: {sentence}")


def test_the_example_of_the_docs_does_what_they_say(mesh: Mesh, tmp_path: Path) -> None:
    script, story = re.findall(r"```(?:yml|text)\n(.*?)```", DOCS.read_text().split("## Rehearse it")[1], re.DOTALL)
    (tmp_path / "rollout.yaml").write_text(script)
    assert mesh("rollout", "simulate", "rollout.yaml").out == story
    assert mesh("rollout", "simulate", "rollout.yaml", "--json").code == 0
