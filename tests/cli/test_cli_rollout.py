"""`mesh rollout`, `promote`, `history`: what they show, what they write, and when they refuse."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from mesh.model import (
    Assignment,
    NodePlan,
    NodeReport,
    Release,
    ReplicaReport,
    ReplicaState,
    Rollout,
    RolloutState,
    ServicePlan,
)
from mesh.spec.service import parse_spec
from tests.cli.conftest import Kv, Mesh
from tests.cli.live import report


def release(number: int, image: str, **fields: Any) -> Release:
    spec = parse_spec({"name": "web", "image": image, "replicas": 2, "update": {"canary": 1}})
    return Release(number=number, hash=spec.digest(), spec=spec.canonical(), cause=f"spec@{number}", **fields)


def ordered(kv: Kv) -> Any:
    """What was written last, without the moment."""
    command = kv.get(kv.keys.rollout("web"))
    assert command.pop("at") > 0
    return command


def written(kv: Kv, state: RolloutState = RolloutState.CANARY, **fields: Any) -> ServicePlan:
    """Two releases; of the second a canary runs beside the two old replicas."""
    rollout = Rollout(state=state, release=2, **fields)
    releases = [release(1, "web:1", good=True), release(2, "web:2", good=state is RolloutState.IDLE)]
    plan = ServicePlan(service="web", desired=2, releases=releases, rollout=rollout)
    kv.put(kv.keys.service("web"), releases[-1].spec)
    kv.put(kv.keys.service_plan("web"), plan)
    placed = [("web-1-aaaa", 1, 1), ("web-2-aaaa", 2, 1), ("web-1-bbbb", 1, 2)]
    kv.put(kv.keys.node_plan("n1"), NodePlan(node="n1", replicas=[
        Assignment(id=id, service="web", slot=slot, release=number) for id, slot, number in placed]))  # fmt: skip
    report(kv, NodeReport(node="n1", address="10.0.0.1", replicas=[
        ReplicaReport(id=id, service="web", slot=slot, release=number, state=ReplicaState.READY)
        for id, slot, number in placed]))  # fmt: skip
    return plan


def test_status_says_how_far_it_is_and_what_it_waits_for(mesh: Mesh, kv: Kv) -> None:
    written(kv, healthy=1)
    assert mesh("rollout", "status", "web", "--json").json == {
        "service": "web", "state": "canary", "release": 2, "good": 1, "since": 0.0, "desired": 2, "ready": 3,
        "updated": 1, "canaries": 1, "promotable": True, "ready_by_release": {"1": 2, "2": 1},
        "message": "", "pending": [],
    }  # fmt: skip
    assert "1 of 1 canaries healthy; waits for mesh rollout promote web" in mesh("rollout", "status", "web").out


def test_status_says_that_no_release_was_made_of_a_spec_and_why(mesh: Mesh, kv: Kv) -> None:
    kv.put(kv.keys.service("web"), {"image": 5})
    out = mesh("rollout", "status", "web").out
    assert "web: waiting: there is no release yet" in out
    assert "the spec is not in force: image: must be a word, got 5" in out


@pytest.mark.parametrize("command", [("rollout", "promote"), ("promote",)])
def test_promote_asks_for_the_newest_release(mesh: Mesh, kv: Kv, command: tuple[str, ...]) -> None:
    written(kv, healthy=1)
    result = mesh(*command, "web", "--json")
    assert (result.code, result.json) == (0, {"service": "web", "action": "promote", "release": 2})
    assert ordered(kv) == {"action": "promote", "release": 2}
    assert "no scheduler leads" in result.err


@pytest.mark.parametrize(
    ("arguments", "state", "sentence"),
    [
        (["promote", "web"], "idle", "web: there is nothing to promote: release 2 has no canaries that wait"),
        (["pause", "web"], "idle", "web: there is nothing to pause: the rollout of release 2 is idle"),
        (["resume", "web"], "canary", "web: there is nothing to resume: the rollout of release 2 is canary"),
        (["abort", "web"], "idle", "web: there is nothing to abort: release 2 is in force (undo takes it back)"),
        (["undo", "web", "--to", "9"], "idle", "web: there is no release 9 (any more): 1, 2 are kept"),
        (["undo", "web", "--to", "2"], "idle", "web: release 2, the newest, equals release 2"),
        (["status", "wbe"], "idle", "there is no service 'wbe' (did you mean 'web'?)"),
        (["pause", "wbe"], "idle", "there is no service 'wbe' (did you mean 'web'?)"),
    ],
)
def test_what_makes_no_sense_is_refused_and_writes_nothing(
    mesh: Mesh, kv: Kv, arguments: list[str], state: str, sentence: str
) -> None:
    written(kv, RolloutState(state))
    result = mesh("rollout", *arguments)
    assert (result.code, result.err.strip()) == (1, f"error: {sentence}")
    assert kv.get(kv.keys.rollout("web")) is None


def test_undo_names_the_release(mesh: Mesh, kv: Kv) -> None:
    written(kv, RolloutState.IDLE)
    assert mesh("rollout", "undo", "web", "--to", 1).code == 0
    assert ordered(kv) == {"action": "undo", "release": 2, "to": 1}


def test_undo_is_of_the_last_good_release_unless_another_is_named(mesh: Mesh, kv: Kv) -> None:
    written(kv, RolloutState.IDLE)
    assert mesh("rollout", "undo", "web").code == 0
    assert ordered(kv) == {"action": "undo", "release": 2}


def test_jobs_have_no_rollouts(mesh: Mesh, kv: Kv) -> None:
    kv.put(kv.keys.service_plan("web"), msgspec.structs.replace(written(kv), kind="job"))
    assert mesh("rollout", "pause", "web").code == 2


def test_waiting_for_a_scheduler_that_is_not_there_ends(mesh: Mesh, kv: Kv) -> None:
    written(kv, healthy=1)
    result = mesh("rollout", "promote", "web", "--wait", "--timeout", "300ms")
    assert result.code == 1
    assert "web: the scheduler has not looked at it" in result.err


def test_waiting_for_a_release_that_was_rolled_back_fails(mesh: Mesh, kv: Kv) -> None:
    plan = written(kv)
    back = release(3, "web:1", good=True, rollback_of=2)
    rollout = Rollout(state=RolloutState.IDLE, release=3, message="release 2: a replica was not healthy; rolled back")
    later = threading.Timer(1.0, kv.put, (kv.keys.service_plan("web"), msgspec.structs.replace(
        plan, releases=[*plan.releases, back], rollout=rollout, command=2**40)))  # fmt: skip
    later.start()
    result = mesh("rollout", "promote", "web", "--wait", "--timeout", "20s")
    later.join()
    assert (result.code, "release 2: a replica was not healthy; rolled back" in result.err) == (1, True)


def test_deleting_a_service_takes_its_command_along(mesh: Mesh, kv: Kv) -> None:
    written(kv, healthy=1)
    mesh("promote", "web")
    assert mesh("delete", "web", "--yes").code == 0
    assert kv.get(kv.keys.rollout("web")) is None


def test_history_shows_what_each_release_changed(mesh: Mesh, kv: Kv) -> None:
    written(kv, healthy=1)
    newest, oldest = mesh("history", "web", "--json").json
    assert [newest["release"], newest["outcome"], newest["cause"]] == [2, "canary", "spec@2"]
    assert newest["changes"] == [{"path": "image", "before": "web:1", "after": "web:2"}]
    assert [oldest["release"], oldest["outcome"], oldest["good"], oldest["changes"]] == [1, "good", True, []]
    assert "~ image: web:1 → web:2" in mesh("history", "web", "-p").out
    assert "image" in mesh("history", "web").out
