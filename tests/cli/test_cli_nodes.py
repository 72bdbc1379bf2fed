"""`mesh drain`, `pause`, `activate`: what they write, and what they say of replicas that are still there."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest

from mesh.model import (
    Assignment,
    NodePlan,
    NodeReport,
    NodeSettings,
    Pending,
    Release,
    ReplicaReport,
    ReplicaState,
    ServicePlan,
    Want,
)
from mesh.view import encode_document
from tests.cli.conftest import Kv, Mesh
from tests.cli.live import report

READY = ReplicaState.READY


def plan(kv: Kv, service: str, kind: str = "service", pending: list[Pending] | None = None) -> None:
    release = Release(number=1, hash="x", spec={"name": service, "image": "x", "kind": kind}, good=True)
    document = ServicePlan(service=service, kind=kind, desired=1, releases=[release], pending=pending or [])
    kv.put(kv.keys.service_plan(service), document)


def host(kv: Kv, node: str, *replicas: tuple[str, int, ReplicaState, Want]) -> None:
    assigned = [Assignment(id=f"{service}-{slot}-{node}", service=service, slot=slot, release=1, want=want)
                for service, slot, _, want in replicas]  # fmt: skip
    seen = [ReplicaReport(id=f"{service}-{slot}-{node}", service=service, slot=slot, release=1, state=state)
            for service, slot, state, _ in replicas]  # fmt: skip
    kv.put(kv.keys.node_plan(node), NodePlan(node=node, replicas=assigned))
    report(kv, NodeReport(node=node, address="10.0.0.1", replicas=seen))


@pytest.fixture
def nodes(kv: Kv) -> None:
    """`n1` with one replica of each sort, `n2` with the successor of one of them."""
    plan(kv, "web")
    plan(kv, "db", pending=[Pending(slot=1, reasons=["its volumes are on n1, so it cannot move"])])
    plan(kv, "logs", "global")
    plan(kv, "load", "job")
    run, stop = Want.RUN, Want.STOP
    host(kv, "n1", ("web", 1, READY, run), ("web", 2, READY, run), ("web", 3, ReplicaState.DRAINING, stop),
         ("web", 4, ReplicaState.STOPPED, stop), ("db", 1, READY, run), ("logs", 1, READY, run),
         ("load", 1, READY, run))  # fmt: skip
    host(kv, "n2", ("web", 1, ReplicaState.STARTING, run))


@pytest.mark.usefixtures("nodes")
def test_a_drain_is_written_with_its_deadline_and_says_why_each_replica_is_still_there(mesh: Mesh, kv: Kv) -> None:
    kv.put(kv.keys.node_settings("n1"), {"labels": {"zone": "a"}})
    drained = mesh("drain", "n1", "--deadline", "30m", "--json")
    written = kv.get(kv.keys.node_settings("n1"))
    assert (written["availability"], written["labels"]) == ("drain", {"zone": "a"})
    assert abs(written["deadline"] - time.time() - 1800) < 60
    (drain,) = drained.json
    assert (drain["node"], drain["deadline"]) == ("n1", written["deadline"])
    assert {one["replica"]: one["why"] for one in drain["left"]} == {
        "web-1-n1": "until web-1-n2 on n2 is ready; it is starting",
        "web-2-n1": "waits for its turn (update.max_surge, update.max_unavailable)",
        "web-3-n1": "is stopping",
        "db-1-n1": "its volumes are on n1, so it cannot move",
        "logs-1-n1": "of kind global: leaves when all else has left",
        "load-1-n1": "of kind job: may run to its end",
    }
    assert mesh("nodes", "--json").json[0]["drain"] == drain
    assert "drain (6 left, 29m)" in mesh("nodes").out


@pytest.mark.usefixtures("nodes")
def test_a_drain_said_again_goes_on_and_another_deadline_counts_from_now(mesh: Mesh, kv: Kv) -> None:
    assert mesh("drain", "n1", "n2").code == 0
    first = kv.get(kv.keys.node_settings("n1"))
    again = mesh("drain", "n1")
    assert again.out.startswith("n1: 6 left; in ")
    assert "  db-1-n1: its volumes are on n1, so it cannot move\n" in again.out
    assert kv.get(kv.keys.node_settings("n1")) == first
    assert mesh("drain", "n1", "--deadline", "never").code == 0
    assert "deadline" not in kv.get(kv.keys.node_settings("n1"))
    assert mesh("drain", "n1", "--force").code == 0
    assert kv.get(kv.keys.node_settings("n1"))["deadline"] <= time.time()


@pytest.mark.usefixtures("nodes")
def test_a_drain_written_by_hand_has_no_deadline(mesh: Mesh, kv: Kv) -> None:
    kv.put(kv.keys.node_settings("n1"), {"availability": "drain"})
    assert mesh("drain", "n1").out.startswith("n1: 6 left\n")
    assert kv.get(kv.keys.node_settings("n1")) == {"availability": "drain"}


@pytest.mark.usefixtures("nodes")
def test_pause_and_activate_end_a_drain(mesh: Mesh, kv: Kv) -> None:
    for command, availability in (("pause", "pause"), ("activate", "active")):
        mesh("drain", "n1")
        assert mesh(command, "n1", "--json").json == [{"node": "n1", "availability": availability}]
        assert kv.get(kv.keys.node_settings("n1")) == {"availability": availability}
        assert mesh("nodes", "--json").json[0]["drain"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["drain", "n9"], 1, "there is no node 'n9'"),
        (["pause", "n9"], 1, "there is no node 'n9'"),
        (["drain", "n1", "--deadline", "soon"], 2, "--deadline: "),
        (["drain", "n1", "--deadline", "1h", "--force"], 2, "leave out --deadline"),
    ],
)
@pytest.mark.usefixtures("nodes")
def test_what_makes_no_sense_is_refused(mesh: Mesh, kv: Kv, arguments: list[str], code: int, words: str) -> None:
    refused = mesh(*arguments)
    assert (refused.code, words in refused.err) == (code, True)
    assert kv.get(kv.keys.node_settings("n1")) is None


@pytest.mark.usefixtures("nodes")
def test_wait_follows_until_nothing_is_left(mesh: Mesh, kv: Kv) -> None:
    def empty() -> None:
        while kv.get(kv.keys.node_settings("n1")) is None:
            time.sleep(0.02)
        kv.put(kv.keys.node_plan("n1"), NodePlan(node="n1"))
        kv.put(kv.keys.node_report("n1"), NodeReport(node="n1", address="10.0.0.1"))

    emptier = threading.Thread(target=empty)
    emptier.start()
    drained = mesh("drain", "n1", "--wait", "--timeout", "20s")
    emptier.join()
    assert (drained.code, drained.out) == (0, "n1: nothing is left on it\n")
    assert "n1: nothing is left\n" in drained.err
    assert "drain (empty)" in mesh("nodes").out


@pytest.mark.usefixtures("nodes")
def test_wait_says_what_is_left_when_its_time_is_up_and_ends_with_the_drain(mesh: Mesh, kv: Kv) -> None:
    late = mesh("drain", "n1", "-f", "--timeout", "100ms")
    assert late.code == 1
    assert "n1: db-1-n1: its volumes are on n1, so it cannot move" in late.err
    assert "it goes on: mesh drain n1 --wait" in late.err
    timer = threading.Timer(0.2, kv.put, (kv.keys.node_settings("n1"), {"availability": "active"}))
    timer.start()
    assert "n1: its drain was taken back" in mesh("drain", "n1", "--wait", "--timeout", "20s").err
    timer.join()


def test_a_hand_edited_drain_is_a_valid_document() -> None:
    settings = msgspec.json.decode(b'{"availability": "drain"}', type=NodeSettings)
    assert (settings.availability, settings.deadline) == ("drain", 0.0)
    assert encode_document(settings) == b'{"availability":"drain"}'
