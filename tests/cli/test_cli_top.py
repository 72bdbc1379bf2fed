"""`mesh top`: what it asks the agents, shows, and says of those that do not answer."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mesh.cli import top as top_module
from mesh.cli.top import number, share
from mesh.cli.top import time as shown_time
from mesh.dataplane.load import EndpointLoad, LoadReport, LoadWindow, PortLoad
from mesh.model import NodeReport, ReplicaReport, ReplicaState, ServicePlan
from tests.cli.conftest import Kv, Mesh
from tests.cli.live import answering
from tests.parts.ports import free_port


def load(node: str) -> LoadReport:
    """95 requests of web in 9.5 s, five of them failed, one endpoint ejected."""
    window = LoadWindow(0.0)
    endpoints = [EndpointLoad("web-1-aaaa", 95, 5, 2, True)]
    window.add("a", 100, [PortLoad("web", "http", 95, 5, 19.0, {30: 94, 60: 1}, 0, 4, endpoints, 2, 1, 3)], 101)
    return window.report({"web": ["http"], "idle": ["http"]}, 109.5, node=node)


@pytest.fixture
def agent() -> Iterator[str]:
    """An agent's admin HTTP."""
    with answering("/v1/stats", load("n1")) as url:
        yield url


@pytest.fixture
def cluster(kv: Kv, agent: str) -> Kv:
    """Two services, three nodes: two answer, one does not."""
    for name in ("idle", "web"):
        kv.put(kv.keys.service_plan(name), ServicePlan(service=name, desired=2))
    replica = ReplicaReport(id="web-1-aaaa", service="web", slot=1, release=1, state=ReplicaState.READY)
    for node, admin in (("n1", agent), ("n2", agent), ("n3", f"http://127.0.0.1:{free_port()}")):
        replicas = [replica] if node == "n1" else []
        kv.put(kv.keys.node_report(node), NodeReport(node=node, address="127.0.0.1", admin=admin, replicas=replicas))
    return kv


def test_it_adds_up_all_nodes_and_names_those_that_do_not_answer(mesh: Mesh, cluster: Kv) -> None:
    shown = mesh("top", "--once")
    header, web, idle = shown.out.splitlines()
    assert header.split() == [
        "SERVICE", "READY", "RPS", "IN", "FLIGHT", "QUEUED", "SUCCESS", "P50", "P99", "RETRIES/S", "CONNS", "EJECTED",
    ]  # fmt: skip
    assert web.split()[:6] == ["web", "1/2", "20.0", "4.0", "2", "94.74%"]
    assert web.split()[-3:] == ["0", "6", "1"]
    assert idle.split() == ["idle", "0/2", "0", "0", "0", "-", "-", "-", "0", "0", "0"]
    assert shown.err.startswith("warning: without node n3: http://127.0.0.1:")
    assert shown.code == 0


def test_json_is_one_look(mesh: Mesh, cluster: Kv) -> None:
    look = mesh("top", "--json").json
    assert [service["name"] for service in look["services"]] == ["web", "idle"]
    web = look["services"][0]
    assert (web["rps"], web["in_flight"], web["queued"], web["ejected"]) == (pytest.approx(20), pytest.approx(4), 2, 1)
    assert web["success_ratio"] == pytest.approx(90 / 95)
    assert 0 < web["p50"] < web["p99"]
    assert look["services"][1]["p50"] is None
    assert [silent["node"] for silent in look["silent"]] == ["n3"]


def test_it_is_shown_as_often_as_was_asked(mesh: Mesh, cluster: Kv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_module, "_INTERVAL", 0.05)
    assert mesh("top", "-n", "3").out.count("SERVICE") == 3


def test_ctrl_c_leaves_the_terminal_as_it_was(cluster: Kv) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh.cli", "top"], stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ}
    )
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 20
    while seen.count(b"\x1b[2J") < 2:
        assert time.monotonic() < deadline
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert b"Traceback" not in seen
    assert b"\x1b[?" not in seen, "no mode that would have to be undone"
    os.close(ours)


def test_a_mesh_without_services_says_so(mesh: Mesh, kv: Kv) -> None:
    assert "mesh apply" in mesh("top", "--once").err


def test_figures_for_the_eye() -> None:
    assert [number(value) for value in (0.0, 0.254, 8.34, 1204.4)] == ["0", "0.25", "8.3", "1204"]
    assert [share(value) for value in (None, 1.0, 0.99999, 0.5)] == ["", "100%", "99.99%", "50.00%"]
    assert [shown_time(value) for value in (None, 0.0032, 0.25, 1.5)] == ["", "3.2ms", "250ms", "1.5s"]
