"""`mesh status`, `nodes`, `events`: what they show, as a table and as JSON."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mesh.cli.app import run
from mesh.model import (
    Assignment,
    Capacity,
    Event,
    Exit,
    NodePlan,
    NodeReport,
    NodeSettings,
    Pending,
    PublishedPort,
    Release,
    ReplicaReport,
    ReplicaState,
    Rollout,
    RolloutState,
    ServicePlan,
    SlotState,
)
from tests.cli.conftest import Kv, Mesh


@pytest.fixture
def cluster(kv: Kv) -> Kv:
    """One service: a ready replica, one that failed, one that is only planned, and a slot that waits."""
    now = time.time()
    spec = {"name": "web", "image": "web:1", "replicas": 4}
    kv.put(kv.keys.service("web"), spec)
    kv.put(kv.keys.service_plan("web"), ServicePlan(
        service="web", vip="10.96.0.7", desired=4, ports={"http": PublishedPort(port=80, protocol="http")},
        releases=[Release(number=3, hash="x", spec=spec, created=now - 3700)],
        rollout=Rollout(state=RolloutState.ROLLING, release=3, message="2 of 4 ready"),
        slots={"2": SlotState(failures=3, node="n1")},
        pending=[Pending(slot=4, reasons=["n1: not enough memory", "n2: does not report"])],
        events=[Event(time=now - 60, text="release 3 begun", cause="spec@41"),
                Event(time=now - 30, text="web-2-bbbb failed: exit 1\x1b[31m")],
    ))  # fmt: skip
    kv.put(kv.keys.node_plan("n1"), NodePlan(
        node="n1",
        replicas=[Assignment(id=f"web-{slot}-{letter * 4}", service="web", slot=slot, release=3)
                  for slot, letter in ((1, "a"), (2, "b"), (3, "c"))],
        specs={"web@3": {**spec, "resources": {"cpu": "250m", "memory": "128Mi", "gpu": 1}}},
    ))  # fmt: skip
    kv.put(kv.keys.node_settings("n1"), NodeSettings(labels={"rack": "r1"}))
    kv.put(kv.keys.node_report("n1"), NodeReport(
        node="n1", address="10.0.0.1", admin="http://10.0.0.1:7070", runtime="docker", version="0.1.0",
        labels={"zone": "a"}, capacity=Capacity(cpu=4000, memory=2 * 2**30), problems=["port 53 is taken"],
        replicas=[ReplicaReport(id="web-1-aaaa", service="web", slot=1, release=3, state=ReplicaState.READY,
                                since=now - 120, address="10.0.0.1", ports={"http": 31001}),
                  ReplicaReport(id="web-2-bbbb", service="web", slot=2, release=3, state=ReplicaState.FAILED,
                                since=now - 30, message="exit 1: no\nsuch   file", exit=Exit(code=1))],
    ))  # fmt: skip
    return kv


def test_status_lists_services_in_aligned_columns(mesh: Mesh, cluster: Kv) -> None:
    cluster.put(cluster.keys.service("broken"), b'{"image": "x", "replicas": "many"}')
    header, broken, web = mesh("status").out.splitlines()
    assert header.split() == ["SERVICE", "KIND", "READY", "RELEASE", "ROLLOUT", "NAME", "VIP", "AGE", "PROBLEMS"]
    assert web.split()[:8] == ["web", "service", "1/4", "3", "rolling", "web.svc.cluster", "10.96.0.7", "1h"]
    assert "slot 4 waits: n1: not enough memory" in web
    assert "replicas: must be a whole number, got 'many'" in broken
    assert {line.index("service") for line in (broken, web)} == {header.index("KIND")}


def test_status_warns_where_no_scheduler_leads(mesh: Mesh, cluster: Kv) -> None:
    assert "no scheduler leads" in mesh("status").err


def test_status_of_one_service_shows_replicas_reasons_and_events(mesh: Mesh, cluster: Kv) -> None:
    out = mesh("status", "web").out
    assert "web.svc.cluster → 10.96.0.7" in out
    assert "problem: slot 2 failed 3 times" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("web-")}
    assert rows["web-1-aaaa"].split()[1:7] == ["1", "n1", "3", "ready", "2m", "10.0.0.1:31001"]
    assert rows["web-2-bbbb"].split()[4] == "failed"
    assert "exit 1: no such file" in rows["web-2-bbbb"]
    assert rows["web-3-cccc"].split()[4] == "assigned"
    assert "slot 4 waits:\n  n1: not enough memory\n  n2: does not report\n" in out
    assert "web: release 3 begun  (spec@41)" in out
    assert "\x1b" not in out


def test_status_as_json_has_a_stable_shape(mesh: Mesh, cluster: Kv) -> None:
    (web,) = mesh("status", "--json").json
    assert web == mesh("status", "web", "--json").json
    assert set(web) == {"name", "kind", "desired", "ready", "release", "rollout", "rollout_message", "since", "vip",
                        "dns", "ports", "scaling", "problems", "pending", "runs", "next_run", "replicas",
                        "events"}  # fmt: skip
    assert (web["ready"], web["desired"], web["ports"]) == (1, 4, {"http": "80/http"})
    assert set(web["replicas"][0]) == {"id", "slot", "node", "release", "state", "since", "address", "ports", "message",
                                       "exit"}  # fmt: skip
    assert [one["exit"] for one in web["replicas"]] == [None, {"code": 1, "oom": False}, None]


def test_nodes_show_what_is_there_and_what_is_reserved(mesh: Mesh, cluster: Kv) -> None:
    _, row = mesh("nodes").out.splitlines()
    assert row.split()[:7] == ["n1", "down", "10.0.0.1", "docker", "1", "750m/4", "384Mi/2.0Gi"]
    assert "rack=r1,zone=a" in row
    assert "port 53 is taken" in row
    (node,) = mesh("nodes", "--json").json
    assert node["reserved"] == {"cpu": 750, "memory": 3 * 128 * 2**20, "resources": {"gpu": 3}}
    assert node["overhead"] == {"cpu": 0, "memory": 0, "resources": {}}, "what is zero is there too"


def test_events_in_order_with_their_cause(mesh: Mesh, cluster: Kv) -> None:
    first, second = mesh("events").out.splitlines()
    assert first.endswith("web: release 3 begun  (spec@41)")
    assert "web-2-bbbb failed" in second
    lines = mesh("events", "web", "--json").out.splitlines()
    assert len(lines) == 2


def test_an_empty_mesh_says_what_to_do(mesh: Mesh, kv: Kv) -> None:
    assert "mesh apply FILE" in mesh("status").err
    assert "mesh agent" in mesh("nodes").err
    assert mesh("status", "--json").json == []
    assert mesh("events").code == 0


def test_keys_that_cannot_be_read_are_named(mesh: Mesh, cluster: Kv) -> None:
    cluster.put(cluster.keys.node_report("n2"), b'{"format": 99}')
    cluster.put(cluster.keys.scale("web"), b"[" * 100_000)
    err = mesh("status").err
    assert f"warning: {cluster.keys.node_report('n2')}: written by a newer mesh (format 99" in err
    assert f"warning: {cluster.keys.scale('web')}: not JSON" in err


def test_on_a_terminal_it_is_a_coloured_table(
    cluster: Kv, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.console.colours", lambda *_: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["status", "web"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[32mready" in out
    assert "\x1b[31mfailed" in out


def test_watch_shows_it_again_after_a_change(cluster: Kv, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "mesh.cli", "events", "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        before = [process.stdout.readline() for _ in range(2)]
        cluster.put(cluster.keys.service_plan("db"), ServicePlan(service="db", events=[Event(time=1.0, text="new")]))
        assert '"text": "new"' in process.stdout.readline()
        process.send_signal(2)
        assert process.wait(10) == 130
    assert all(before)
