"""A whole mesh on local processes: what a newcomer without root and without Docker has."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Cluster, Load, Process, app_pids, descendants, dev, runs_app, service
from tests.parts.ports import free_port
from tests.patience import eventually

pytestmark = [pytest.mark.slow, pytest.mark.dig]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[tuple[Cluster, Process]]:
    with dev(tmp_path) as running:
        yield running


def put_key(cluster: Cluster, key: str, value: bytes) -> None:
    """As an operator without our CLI: straight into the store."""
    request = urllib.request.Request(f"{cluster.store}/v1/kv/{key}", data=value, method="PUT")
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.read().strip() == b"true"


def test_from_a_key_to_an_answered_request(mesh: tuple[Cluster, Process]) -> None:
    cluster, _ = mesh
    put_key(cluster, "mesh/desired/services/web", json.dumps(service()).encode())
    ids = cluster.wait_ready("web", 3)
    host, _ = cluster.address("web")
    assert cluster.dig("web.svc.cluster") == [host]
    assert len(cluster.dig("_http._tcp.web.svc.cluster", "SRV")) == 3
    with Load(cluster.address("web"), keep_alive=False) as load:
        eventually(lambda: load.total >= 60, "60 requests")
    assert load.failures == []
    assert {answer.split()[-1] for answer in load.answers} == set(ids)


def test_a_route_lets_requests_in_from_outside(mesh: tuple[Cluster, Process], tmp_path: Path) -> None:
    cluster, _ = mesh
    port = free_port()
    route = {
        "name": "shop",
        "listen": f"127.0.0.1:{port}",
        "rules": [
            {"host": "shop.example.com", "path": "/inner", "to": [{"service": "web"}], "rewrite": {"prefix": "/"}},
            {"host": "*.example.com", "redirect": {"code": 308, "host": "shop.example.com"}},
        ],
    }
    cluster.apply(route, service(replicas=1))
    cluster.wait_ready("web", 1)

    def ask(host: str, path: str) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, answer.getheader("Location")

    eventually(lambda: ask("shop.example.com", "/inner/healthz") == (200, None), "the route")
    assert ask("other.example.com", "/x?y") == (308, "http://shop.example.com/x?y")
    put_key(cluster, "mesh/desired/routes/shop", b'{"listen": "x"}')  # changes nothing
    cluster.mesh("scale", "web=2")
    cluster.wait_ready("web", 2)
    assert ask("shop.example.com", "/inner/healthz") == (200, None)
    cluster.mesh("delete", "route/shop")
    eventually(lambda: refused(port), "the listener's end")  # no replica may hold its socket either


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_killed_replica_is_replaced_and_nobody_notices(mesh: tuple[Cluster, Process]) -> None:
    cluster, process = mesh
    cluster.apply(service())
    before = cluster.wait_ready("web", 3)
    victim = before[0]
    with Load(cluster.address("web")) as load:
        eventually(lambda: load.total > 50, "load")
        [pid] = app_pids(victim)
        os.kill(pid, signal.SIGKILL)
        after = eventually(
            lambda: ids if len(ids := cluster.ready("web")) == 3 and victim not in ids else None, "a replacement"
        )
        seen = load.total
        eventually(lambda: load.total > seen + 50, "more load")
    assert set(before) - set(after) == {victim}
    assert load.failures == []
    assert process.running


def test_a_rollout_fails_no_request(mesh: tuple[Cluster, Process]) -> None:
    cluster, _ = mesh
    cluster.apply(service())
    before = cluster.wait_ready("web", 3)
    with Load(cluster.address("web")) as load:
        eventually(lambda: load.total > 50, "load")
        cluster.apply(service(env={"HELLO": "servus"}))
        eventually(lambda: replaced(cluster, before), "the new release everywhere", 60)
        eventually(lambda: [a for a in load.answers if a.startswith("servus")], "the new answer")
    assert load.failures == []
    assert cluster.json("status", "web")["release"] == 2


def replaced(cluster: Cluster, before: list[str]) -> bool:
    ids = [replica["id"] for replica in cluster.replicas("web")]
    return len(ids) == 3 and sorted(ids) == cluster.ready("web") and not set(ids) & set(before)


def test_scaling_up_down_and_deleting(mesh: tuple[Cluster, Process]) -> None:
    cluster, process = mesh
    cluster.apply(service(replicas=1))
    first = cluster.wait_ready("web", 1)
    cluster.mesh("scale", "web=4")
    assert set(first) <= set(cluster.wait_ready("web", 4))
    with Load(cluster.address("web")) as load:
        cluster.mesh("scale", "web=1")
        eventually(lambda: len(cluster.replicas("web")) == 1, "one replica")
    assert load.failures == []
    assert cluster.ready("web") == first
    cluster.mesh("delete", "web", "--yes")
    eventually(lambda: not cluster.dig("web.svc.cluster"), "the name to go")
    eventually(lambda: not [pid for pid in descendants(process.pid) if runs_app(pid)], "its processes to end")
    assert "NXDOMAIN" in subprocess.run(
        ["dig", f"@{cluster.dns.split(':')[0]}", "-p", cluster.dns.split(":")[1], "web.svc.cluster"],
        capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (b"{not json", "not JSON"),
        (json.dumps({**service(), "replica": 3}).encode(), "replica: unknown field (did you mean 'replicas'?)"),
        (json.dumps(service(ports={"http": {"port": 80, "target": 0}})).encode(), "must be 1..65535, got 0"),
        (json.dumps({**service(), "name": "other"}).encode(), "must equal the key's last part"),
    ],
)
def test_a_broken_key_changes_nothing_that_runs(mesh: tuple[Cluster, Process], broken: bytes, sentence: str) -> None:
    cluster, _ = mesh
    cluster.apply(service(replicas=2))
    before = cluster.wait_ready("web", 2)
    put_key(cluster, "mesh/desired/services/web", broken)
    eventually(lambda: sentence in " ".join(cluster.json("status", "web")["problems"]), "the error to be shown")
    assert cluster.ready("web") == before
    assert cluster.get("web")[0] == 200
    cluster.apply(service(replicas=2))
    eventually(lambda: cluster.json("status", "web")["problems"] == [], "the error to go")
    assert cluster.ready("web") == before


def test_an_impossible_service_waits_and_says_why(mesh: tuple[Cluster, Process]) -> None:
    cluster, _ = mesh
    cluster.apply(service("huge", replicas=1, resources={"memory": "900Ti"}), service("small", replicas=1))
    cluster.wait_ready("small", 1)
    reasons = eventually(lambda: cluster.json("status", "huge")["pending"], "the reason")
    assert "memory" in json.dumps(reasons)
    assert cluster.dig("huge.svc.cluster"), "a service's name stands, whatever runs"


def test_a_program_that_does_not_exist_fails_with_a_sentence(mesh: tuple[Cluster, Process]) -> None:
    cluster, _ = mesh
    cluster.apply({"name": "nope", "command": ["/no/such/program"]}, service("web", replicas=1))
    cluster.wait_ready("web", 1)
    eventually(lambda: "/no/such/program" in cluster.mesh("status", "nope"), "the sentence")


def test_a_port_already_taken_is_a_problem_not_a_crash(mesh: tuple[Cluster, Process]) -> None:
    cluster, _ = mesh
    cluster.apply(service("first", replicas=1))
    cluster.wait_ready("first", 1)
    host, _ = cluster.address("first")
    following = host.rsplit(".", 1)[0] + "." + str(int(host.rsplit(".", 1)[1]) + 1)
    with socket.socket() as squatter:
        squatter.bind((following, 7777))
        squatter.listen()
        cluster.apply(service("second", replicas=1, ports={"http": {"port": 7777, "protocol": "http"}}))
        cluster.wait_ready("second", 1)
        assert cluster.address("second") == (following, 7777)
        eventually(lambda: f"{following}:7777" in cluster.mesh("nodes"), "the problem to be shown")
        assert cluster.get("first")[0] == 200
    eventually(lambda: cluster.get("second")[0] == 200, "the port to be taken once it is free")


def test_a_replica_that_crashes_at_once_is_tried_ever_more_slowly(mesh: tuple[Cluster, Process]) -> None:
    cluster, _ = mesh
    cluster.apply(
        {"name": "crash", "command": ["/bin/sh", "-c", "echo no luck; exit 3"], "restart": {"delay": "200ms"}}
    )
    eventually(lambda: "exited with code 3" in cluster.mesh("events", "crash"), "the event")
    eventually(lambda: "no luck" in cluster.mesh("status", "crash"), "its last words")


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    with dev(tmp_path) as (cluster, process):
        cluster.apply(service())
        cluster.wait_ready("web", 3)
        family = descendants(process.pid)
        assert family
        process.send(signal.SIGINT)
        eventually(lambda: not process.running, "the end")
        assert process.stop() == 0
        assert "Traceback" not in process.output()
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


def test_dev_killed_with_9_adopts_what_runs(tmp_path: Path) -> None:
    with dev(tmp_path) as (cluster, process):
        cluster.apply(service())
        before = cluster.wait_ready("web", 3)
        pids = {id: app_pids(id) for id in before}
        process.kill()
        again = Process(
            "dev", "--state", str(tmp_path / "state"), "--runtime", "process", "--dns-listen", cluster.dns,
            "--admin-listen", cluster.admin.removeprefix("http://"), "--store-listen",
            cluster.store.removeprefix("http://"), log=tmp_path / "again.log", env={},
        )  # fmt: skip
        try:
            eventually(lambda: cluster.dig("ns.cluster") or not again.running, "mesh dev again")
            assert again.running, again.output()
            eventually(lambda: cluster.get("web")[0] == 200, "the proxy")
            assert cluster.wait_ready("web", 3) == before
            assert {id: app_pids(id) for id in before} == pids
        finally:
            again.stop()


def test_two_at_once(tmp_path: Path) -> None:
    with dev(tmp_path) as (cluster, process):
        second = Process("dev", "--state", str(tmp_path / "state"), "--runtime", "process", log=tmp_path / "b", env={})
        assert eventually(lambda: not second.running, "the refusal")
        assert second.stop() == 1
        assert f"{process.pid}" in second.output()
        assert "--state" in second.output()
        (tmp_path / "other").mkdir()
        with dev(tmp_path / "other") as (other, _):
            cluster.apply(service())
            other.apply(service())
            cluster.wait_ready("web", 3)
            other.wait_ready("web", 3)
            assert not set(cluster.ready("web")) & set(other.ready("web"))
