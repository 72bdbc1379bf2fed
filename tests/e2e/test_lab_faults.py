"""Hosts that die, blink, or lose the store, in the laboratory: what moves, what does not, and who says so."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.request import Request, urlopen

import pytest

from mesh.hearing import PACES
from tests.lab import parts, switch
from tests.lab.lab import Lab, remove
from tests.parts.images import tiny_image

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.consul, pytest.mark.slow]

DEADLINE = 60.0
REPLICAS = 4
PAGE = (
    "mkdir -p /www; hostname > /www/index.html; trap 'exit 0' TERM; httpd -p 8080 -h /www; while :; do sleep 0.1; done"
)
WEB = {
    "name": "web", "command": ["sh", "-c", PAGE], "replicas": REPLICAS, "stop": {"drain": "200ms", "grace": "1s"},
    "ports": {"http": {"port": 80, "target": 8080, "protocol": "http"}},
    "health": {"ready": {"http": "/", "port": "http", "interval": "200ms", "timeout": "1s"}},
}  # fmt: skip


def eventually(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.05)


def read(host: str, path: str) -> Any:
    with urlopen(f"http://{switch.address(host)}:8500/v1/kv/mesh/{path}", timeout=5) as answer:
        return json.load(answer)


def doubt(asked: str, node: str) -> tuple[str, str]:
    """What the scheduler thinks of a node: its state and the sentence; empty if all is well."""
    found = read(asked, "planned/cluster?raw&stale").get("nodes", {}).get(node, {})
    return found.get("state", ""), found.get("why", "")


def ready(asked: str, nodes: Sequence[str]) -> list[str]:
    """The ids of the ready replicas on these nodes."""
    rows = read(asked, "observed/nodes/?recurse&stale")
    reports = {row["Key"].rpartition("/")[2]: json.loads(b64decode(row["Value"])) for row in rows}
    return sorted(one["id"] for node in nodes for one in reports[node].get("replicas", []) if one["state"] == "ready")


def sent_to(asked: str, node: str) -> bool:
    """A host's DNS and proxy send to what another host runs."""
    with urlopen(f"http://{switch.address(asked)}:7070/v1/table", timeout=5) as answer:
        endpoints = json.load(answer)["services"]["web"]["endpoints"]
    return any(one["node"] == node and one.get("state", "ready") == "ready" for one in endpoints)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    built = Lab.up(hosts=4, servers=3)
    try:
        first = parts.client_of(built.hosts[0])
        image = tiny_image(first)
        parts.load_image(built.hosts[1:], b"".join(first.get_image(image)))
        first.close()
        body = json.dumps({**WEB, "image": image}).encode()
        urlopen(Request("http://10.77.0.11:8500/v1/kv/mesh/desired/services/web", body, method="PUT"), timeout=5)
        names = [host.name for host in built.hosts]
        eventually("one replica on each host", lambda: all(len(ready("h1", [name])) == 1 for name in names))
        yield built
    finally:
        remove()


def names(lab: Lab, but: str = "") -> list[str]:
    return [host.name for host in lab.hosts if host.name != but]


def test_a_blip_of_three_seconds_is_noticed_and_moves_nothing(lab: Lab) -> None:
    before = ready("h1", names(lab))
    began = time.monotonic()
    lab.partition("h4")
    eventually("out of traffic elsewhere", lambda: not sent_to("h1", "h4") and not sent_to("h2", "h4"))
    time.sleep(max(0.0, began + 3.0 - time.monotonic()))  # the fault itself lasts so long
    lab.heal("h4")
    eventually("in traffic again", lambda: sent_to("h1", "h4") and sent_to("h2", "h4"))
    eventually("no doubt is left", lambda: doubt("h1", "h4") == ("", ""))
    assert ready("h1", names(lab)) == before


def test_a_host_without_the_store_is_told_from_a_dead_one_and_serves_on(lab: Lab) -> None:
    before = ready("h1", names(lab))
    lab.partition("h4", "consul")
    eventually("it is said", lambda: "is cut off from the store" in doubt("h1", "h4")[1])
    assert sent_to("h1", "h4")
    assert ready("h1", names(lab)) == before
    lab.heal("h4")
    eventually("no doubt is left", lambda: doubt("h1", "h4") == ("", ""))
    assert ready("h1", names(lab)) == before


def test_a_stopped_agent_is_no_dead_host(lab: Lab) -> None:
    before = ready("h1", names(lab))
    lab.stop_agent("h4")
    eventually("it is said", lambda: "runs no agent" in doubt("h1", "h4")[1])
    assert sent_to("h1", "h4")
    lab.start_agent("h4")
    eventually("no doubt is left", lambda: doubt("h1", "h4") == ("", ""))
    assert ready("h1", names(lab)) == before


def test_what_a_host_ran_runs_elsewhere_after_a_power_cut_and_once_when_it_returns(lab: Lab) -> None:
    lab.kill("h4")
    eventually("out of traffic on all others", lambda: not any(sent_to(name, "h4") for name in names(lab, "h4")))
    eventually("all replicas run elsewhere", lambda: len(ready("h1", names(lab, "h4"))) == REPLICAS)
    assert doubt("h1", "h4")[0] == "lost"
    lab.heal("h4")
    eventually("no doubt is left", lambda: doubt("h1", "h4") == ("", ""))
    eventually("nothing of its old life runs", lambda: not ready("h1", ["h4"]))
    assert len(ready("h1", names(lab))) == REPLICAS


def test_the_leading_scheduler_dies_with_consul_s_leader(lab: Lab) -> None:
    """Its lock would hold for twice its TTL: a standby that no node tells of it takes it before."""
    with urlopen("http://10.77.0.11:8500/v1/status/leader", timeout=5) as answer:
        leader = f"h{int(json.load(answer).split(':')[0].rpartition('.')[2]) - 10}"
    for other in {f"h{number}" for number in range(1, 4)} - {leader}:
        lab.host(other).stop("scheduler")
    eventually("it leads", lambda: read("h4", "planned/leader?raw")["name"] == leader)
    for other in {f"h{number}" for number in range(1, 4)} - {leader}:
        parts.start_scheduler(lab.host(other))
    standbys = [name for name in ("h1", "h2", "h3") if name != leader]
    eventually("the standbys follow the lock", lambda: all(
        f"{switch.address(name)}" and lab.host(name).runs("scheduler") for name in standbys
    ))  # fmt: skip
    time.sleep(PACES["normal"].suspect + 1)  # they have heard of the leader
    began = time.monotonic()
    lab.kill(leader)
    eventually("all replicas run elsewhere", lambda: _all_run(names(lab, leader)))
    assert time.monotonic() - began < 20, "that was the session's end, not the probes"


def _all_run(left: Sequence[str]) -> bool:
    try:
        return len(ready(left[-1], left)) == REPLICAS
    except OSError:  # no leader yet
        return False
