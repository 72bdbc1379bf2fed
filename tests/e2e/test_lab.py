"""The laboratory itself: several hosts with real engines and a real Consul, its faults, and that it leaves nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.lab import parts, switch
from tests.lab.__main__ import main
from tests.lab.lab import Lab, remove
from tests.lab.system import FOLDER, NAME, LabError
from tests.parts.images import tiny_image

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.consul, pytest.mark.slow]

DEADLINE = 60.0
PAGE = (
    "mkdir -p /www; hostname > /www/index.html; trap 'exit 0' TERM; httpd -p 8080 -h /www; while :; do sleep 0.1; done"
)
WEB = {
    "name": "web", "command": ["sh", "-c", PAGE], "replicas": 3, "stop": {"drain": "200ms", "grace": "1s"},
    "ports": {"http": {"port": 80, "target": 8080, "protocol": "http"}},
    "health": {"ready": {"http": "/", "port": "http", "interval": "200ms", "timeout": "1s"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    built = Lab.up(hosts=3, servers=3)
    try:
        yield built
    finally:
        remove()


def eventually(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not _tried(holds):
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.1)


def _tried(holds: Callable[[], object]) -> object:
    """Where Consul has lost its leader it answers late, or not at all."""
    try:
        return holds()
    except OSError:
        return False


def report(node: str, asked: str = "h1") -> list[dict[str, object]]:
    """The replicas that a node's agent reports, as one host's Consul has it."""
    url = f"http://{switch.address(asked)}:8500/v1/kv/mesh/observed/nodes/{node}?raw"
    with urlopen(url, timeout=5) as answer:
        found: list[dict[str, object]] = json.load(answer).get("replicas", [])
    return found


def ready_on(*nodes: str) -> list[str]:
    return [str(one["id"]) for node in nodes for one in report(node) if one["state"] == "ready"]


def slots_ready_on(*nodes: str) -> list[object]:
    return sorted(one["slot"] for node in nodes for one in report(node) if one["state"] == "ready")  # type: ignore[type-var]


def connect_seconds(host: str, port: int = 8500) -> float:
    began = time.monotonic()
    socket.create_connection((switch.address(host), port), timeout=10).close()
    return time.monotonic() - began


def page(lab: Lab, host: str) -> str:
    return lab.host(host).run("curl", "--silent", "--max-time", "5", "http://10.96.0.1/", check=False).strip()


def all_answer(lab: Lab, host: str) -> bool:
    return len({page(lab, host) for _ in range(12)}) == 3


def test_a_service_runs_on_all_hosts_and_answers_on_each(lab: Lab) -> None:
    first = parts.client_of(lab.hosts[0])
    image = tiny_image(first)
    parts.load_image(lab.hosts[1:], b"".join(first.get_image(image)))
    first.close()
    body = json.dumps({**WEB, "image": image}).encode()
    urlopen(Request("http://10.77.0.11:8500/v1/kv/mesh/desired/services/web", body, method="PUT"), timeout=5).close()
    eventually("one ready replica on each host", lambda: all(len(ready_on(host.name)) == 1 for host in lab.hosts))
    for host in lab.hosts:
        eventually(f"three replicas answer on {host.name}", partial(all_answer, lab, host.name))
        asked = subprocess.run(
            ["dig", f"@{host.address}", "+short", "web.svc.cluster"], capture_output=True, text=True, timeout=10
        )
        assert asked.stdout.split() == ["10.96.0.1"]


def test_there_is_one_lab_at_a_time(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LabError, match="a lab is up already"):
        Lab.up(hosts=2, servers=1)
    assert main(["exec", "h9", "--", "true"]) == 1
    assert "there is no host 'h9'" in capsys.readouterr().err


def test_what_up_says_to_try_works_without_an_activated_venv(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
    assert main(["exec", "h1", "--", "mesh", "nodes"]) == 0


def test_who_is_not_root_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["down"]) == 1
    assert capsys.readouterr().err == "error: the lab is made of network namespaces: run it as root\n"


def test_a_slow_and_lossy_cable(lab: Lab) -> None:
    lab.delay("h2", 60)
    assert connect_seconds("h2") >= 0.12
    lab.loss("h2", 1)
    assert main(["status"]) == 0
    with pytest.raises(LabError):
        lab.host("h1").run("curl", "--silent", "--max-time", "2", "http://10.77.0.12:8500/v1/status/leader")
    lab.heal("h2")
    assert lab.host("h1").run("curl", "--silent", "http://10.77.0.12:8500/v1/status/leader")


def test_cut_off_from_consul_a_host_goes_on_answering(lab: Lab) -> None:
    lab.partition("h3", "consul")
    eventually("its Consul knows no leader", lambda: not parts.store_answers(lab.host("h3")))
    assert page(lab, "h3")
    lab.heal("h3")
    eventually("its Consul knows the leader again", lambda: parts.store_answers(lab.host("h3")))


def test_a_frozen_host_accepts_and_says_nothing(lab: Lab) -> None:
    lab.freeze("h2")
    with socket.create_connection((switch.address("h2"), 7070), timeout=10) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: h2\r\n\r\n")
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            client.recv(1)
    lab.heal("h2")
    eventually("it answers again", lambda: parts.agent_is_ready(lab.host("h2")))


def test_what_a_dead_host_ran_runs_elsewhere_and_once(lab: Lab) -> None:
    everywhere = ("h1", "h2", "h3")
    eventually("each runs once, after all that has been", lambda: slots_ready_on(*everywhere) == [1, 2, 3])
    victim = next(node for node in ("h3", "h2") if ready_on(node))
    others = [node for node in everywhere if node != victim]
    lab.kill(victim)
    eventually("all are ready on the others", lambda: slots_ready_on(*others) == [1, 2, 3])
    assert page(lab, "h1")
    lab.heal(victim)
    eventually("nothing of the old life is left", lambda: not report(victim))
    eventually("each runs once", lambda: slots_ready_on(*everywhere) == [1, 2, 3])


def test_down_leaves_nothing(lab: Lab) -> None:
    remove()
    assert NAME not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert switch.UPLINK not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
    assert not FOLDER.exists()
    assert not [*Path("/sys/fs/cgroup").glob(f"{NAME}-*"), *Path("/sys/fs/cgroup").glob(f"*/{NAME}-*")]
    assert str(FOLDER) not in Path("/proc/mounts").read_text()
    with pytest.raises(LabError, match="no lab is up"):
        Lab.found()
