"""The count of replicas follows real load through real proxies: up, down, to zero and back; by hand; and carefully."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.e2e.harness import APP, Cluster, Process, Split, dev, service
from tests.parts.consul import ConsulServer
from tests.parts.images import python_image
from tests.patience import eventually

pytestmark = [pytest.mark.slow, pytest.mark.dig, pytest.mark.consul]


@pytest.fixture(scope="module")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    with ConsulServer(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, consul: ConsulServer) -> Iterator[Cluster]:
    with dev(tmp_path_factory.mktemp("dev"), "--store", consul.address) as (cluster, _):
        yield cluster


@contextmanager
def slow_requests(cluster: Cluster, name: str, clients: int) -> Iterator[Counter[int]]:
    """So many requests in flight, of 0.3 s each; what became of them, by status (0: none came)."""
    ended, answers = threading.Event(), Counter[int]()

    def client() -> None:
        connection = http.client.HTTPConnection(*cluster.address(name), timeout=10)
        while not ended.is_set():
            try:
                connection.request("GET", "/slow")
                answer = connection.getresponse()
                answer.read()
                answers[answer.status] += 1
            except (OSError, http.client.HTTPException):
                answers[0] += 1
                connection.close()
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join(20)


def state(cluster: Cluster, name: str) -> dict[str, Any]:
    """A service in the Table, with what is left out there because it is zero."""
    return {"desired": 0, "asleep": False, "endpoints": [], **cluster.table()["services"][name]}


def ready(cluster: Cluster, name: str) -> int:
    return sum(endpoint.get("state", "ready") == "ready" for endpoint in state(cluster, name)["endpoints"])


def changes(cluster: Cluster, name: str) -> list[tuple[int, int]]:
    url = f"{cluster.store}/v1/kv/mesh/planned/scale/{name}?raw"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return [(change["current"], change["replicas"]) for change in json.load(answer).get("changes", [])]


def test_up_with_the_load_to_zero_without_it_and_awake_with_the_first_request(mesh: Cluster) -> None:
    scale = {"min": 0, "max": 4, "metrics": [{"in_flight": 2}], "to_zero_after": "2s"}
    mesh.apply(service("web", 1, scale=scale))
    eventually(lambda: ready(mesh, "web"), "the first replica")
    with slow_requests(mesh, "web", 8) as answers:
        eventually(lambda: ready(mesh, "web") == 4, "four replicas for eight requests", 60)
    assert answers.keys() == {200}, "no request failed while it grew"
    eventually(lambda: state(mesh, "web")["asleep"], "asleep")
    eventually(lambda: not state(mesh, "web")["endpoints"], "nobody left")
    host, _ = mesh.address("web")
    assert mesh.dig("web.svc.cluster") == [host], "its name and address stay"
    before = len(changes(mesh, "web"))
    with ThreadPoolExecutor(200) as clients:
        statuses = Counter(clients.map(lambda _: mesh.get("web", timeout=30)[0], range(200)))
    assert statuses == {200: 200}
    woken = changes(mesh, "web")[before:]
    assert [current for current, _ in woken].count(0) == 1, woken
    texts = [event["text"] for event in map(json.loads, mesh.mesh("events", "web", "--json").splitlines())]
    assert any(text.startswith("scaled from 0 to ") and "wait" in text for text in texts), texts


def test_by_hand_until_it_is_released_and_fewer_without_a_failed_request(mesh: Cluster) -> None:
    mesh.apply(service("hand", 1, scale={"max": 3, "metrics": [{"in_flight": 2}]}))
    mesh.wait_ready("hand", 1)
    mesh.mesh("scale", "hand=2")
    mesh.wait_ready("hand", 2)
    with slow_requests(mesh, "hand", 8) as answers:
        told = eventually(lambda: told if (told := mesh.json("autoscale", "hand"))["recommendation"] else None, "told")
        assert (told["held"], told["source"]) == (2, "leader")
        assert state(mesh, "hand")["desired"] == 2
        mesh.mesh("scale", "hand=spec")
        eventually(lambda: ready(mesh, "hand") == 3, "the autoscaler's count", 60)
        older = {endpoint["id"] for endpoint in state(mesh, "hand")["endpoints"] if endpoint["slot"] < 3}
        mesh.mesh("scale", "hand=2")
        eventually(lambda: {end["id"] for end in state(mesh, "hand")["endpoints"]} == older, "the newest has left")
        eventually(lambda: {one["id"] for one in mesh.replicas("hand") if one["state"] != "stopped"} == older, "ended")
    assert answers.keys() == {200}, "what was in flight as it left has ended well"
    mesh.mesh("scale", "hand=0", "--yes")
    eventually(lambda: state(mesh, "hand")["desired"] == 0 and not state(mesh, "hand")["endpoints"], "none")
    assert mesh.get("hand")[0] == 503
    assert not state(mesh, "hand")["asleep"]


class Prometheus(BaseHTTPRequestHandler):
    """A Prometheus whose answer can be set."""

    value = "1"

    def do_GET(self) -> None:
        result = [{"metric": {}, "value": [0, type(self).value]}]
        body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_a_prometheus_that_is_down_blocks_scaling_down_and_not_up(mesh: Cluster) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prometheus)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    metrics = [{"prometheus": {"url": url, "query": "sum(jobs)", "target": 10}}, {"in_flight": 2}]
    try:
        mesh.apply(service("jobs", 2, scale={"max": 3, "metrics": metrics}))
        mesh.wait_ready("jobs", 2)
        eventually(lambda: mesh.json("autoscale", "jobs")["metrics"][0]["value"] is not None, "a value")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    told = eventually(lambda: told if (told := mesh.json("autoscale", "jobs"))["problems"] else None, "a problem")
    assert "cannot be reached" in told["metrics"][0]["fault"]
    assert told["replicas"] == 2
    assert any("nothing is scaled down" in problem for problem in mesh.json("status", "jobs")["problems"])
    with slow_requests(mesh, "jobs", 8):
        eventually(lambda: ready(mesh, "jobs") == 3, "more, all the same", 60)


def test_a_new_leader_scales_nothing_down_at_first(tmp_path: Path, consul: ConsulServer) -> None:
    root = {"MESH_ROOT": "heir"}
    with Split(tmp_path, consul.address, "--runtime", "process", "--vips", "loopback") as split:
        split.cluster.env.update(root)
        first = split.start_scheduler("a")
        split.start_agent()
        eventually(lambda: split.cluster.dig("ns.cluster"), "the agent's DNS")
        split.cluster.apply(service("web", 3, scale={"max": 4, "metrics": [{"in_flight": 2}]}))
        try:
            split.cluster.wait_ready("web", 3)
            split.start_scheduler("b")
            first.stop()

            def heir() -> Any:
                told = split.cluster.json("autoscale", "web")
                return told if told["source"] == "leader" and told["metrics"] else None

            told = eventually(heir, "the new leader's word")
            assert (told["current"], told["replicas"], told["limit"]) == (3, 3, "first window"), told
            assert len(split.cluster.ready("web")) == 3
        finally:
            split.cluster.mesh("delete", "web", "--yes")
            eventually(lambda: "no service" in split.cluster.mesh("status", "web", code=None), "nothing left")


@pytest.mark.docker
def test_a_container_is_started_for_the_first_request(tmp_path: Path) -> None:
    client = docker.from_env(version="auto").api
    image = python_image(client)
    client.close()
    spec = service(
        "box", 1, image=image, command=["python3", "/app/app.py"],
        mounts=[{"source": str(APP.parent), "path": "/app", "read_only": True}],
        scale={"min": 0, "max": 2, "metrics": [{"cpu": "70%"}], "to_zero_after": "3s"},
    )  # fmt: skip
    running: tuple[Cluster, Process]
    with dev(tmp_path, runtime="docker") as running:
        cluster, _ = running
        cluster.apply(spec)
        eventually(lambda: ready(cluster, "box") == 1, "a container", 60)
        measured = eventually(
            lambda: told if (told := cluster.json("autoscale", "box"))["metrics"] else None, "figures"
        )
        assert measured["metrics"][0]["metric"] == "cpu"
        eventually(lambda: state(cluster, "box")["asleep"] and not state(cluster, "box")["endpoints"], "asleep", 60)
        status, body = cluster.get("box", timeout=30)
        assert (status, body.startswith("hello from box-1-")) == (200, True)
