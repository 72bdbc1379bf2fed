"""What an operator of the lab's mesh sees and does, by way of any host that answers."""

from __future__ import annotations

import json
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import urlopen

from tests.lab import parts, store, switch
from tests.lab.lab import Lab
from tests.lab.system import LabError
from tests.parts.images import python_image
from tests.simulation.history import Fact

APP = Path(__file__).parents[1] / "e2e" / "app.py"
SERVICE: dict[str, Any] = {
    "name": "web",
    "command": ["python3", "/app/app.py"],
    "env": {"PORT_HTTP": "8080"},
    "mounts": [{"source": str(APP.parent), "path": "/app", "read_only": True}],
    "resources": {"cpu": "10m", "memory": "32Mi"},
    "ports": {"http": {"port": 80, "target": 8080, "protocol": "http"}},
    "health": {"ready": {"http": "/healthz", "port": "http", "interval": "200ms", "timeout": "1s"}},
    "update": {"min_healthy": "200ms"},
    "stop": {"drain": "1s", "grace": "5s"},
}
DEADLINE = 60.0

T = TypeVar("T")


class Operator:
    def __init__(self, lab: Lab, count: int = 4) -> None:
        """`count`: replicas of `SERVICE`."""
        self.lab = lab
        self.count = count
        self.image = ""
        self.record: Callable[[Fact], None] = lambda _: None
        """Tells whoever keeps the history."""

    # ── what is wanted

    def load_image(self) -> None:
        """The image of `SERVICE` into every engine."""
        first = parts.client_of(self.lab.hosts[0])
        self.image = python_image(first)
        parts.load_image(self.lab.hosts[1:], b"".join(first.get_image(self.image)))
        first.close()

    def apply(self, **changes: Any) -> dict[str, Any]:
        """Puts `SERVICE`, with changes, into force; the spec."""
        spec = {**SERVICE, "image": self.image, **changes}
        self.put(f"desired/services/{spec['name']}", spec)
        return spec

    def put(self, key: str, document: Mapping[str, Any]) -> None:
        """Raises `OSError` while no host's Consul has a leader."""
        self.asked(lambda host: store.ask(host, _path(key), document, method="PUT").close())

    def write_again(self, key: str) -> bool:
        """Whether a document of the store is as it was, and newer. A server that has just restarted may tell of its
        last snapshot: only what all servers agree on is written."""

        def row(host: str) -> Any:
            with store.ask(host, _path(key) + "?consistent") as answer:
                return json.load(answer)[0]

        found = self.asked(row)
        path, document = f"{_path(key)}?cas={found['ModifyIndex']}", json.loads(b64decode(found["Value"]))

        def written(host: str) -> bool:
            with store.ask(host, path, document, method="PUT") as answer:
                return bool(json.load(answer))

        return self.asked(written)

    def delete(self, key: str) -> None:
        self.asked(lambda host: store.ask(host, _path(key), method="DELETE").close())

    def mesh(self, host: str, *arguments: str, check: bool = True) -> str:
        """What the command line says on a host."""
        return self.lab.host(host).run(sys.executable, "-m", "mesh.cli", *arguments, check=check)

    # ── what is

    def names(self, *but: str) -> list[str]:
        return [host.name for host in self.lab.hosts if host.name not in but]

    def read(self, key: str) -> Any:
        """A document of the store, as the asked server has it; empty if there is none."""

        def value(host: str) -> Any:
            try:
                with store.ask(host, _path(key) + "?raw&stale") as answer:
                    return json.load(answer)
            except HTTPError as error:
                if error.code == 404:
                    return {}
                raise

        return self.asked(value)

    def read_names(self, prefix: str) -> list[str]:
        """The keys under a prefix."""

        def names(host: str) -> list[str]:
            with store.ask(host, _path(prefix) + "?keys") as answer:
                return list(json.load(answer))

        return self.asked(names)

    def index(self, key: str) -> int:
        """When it was last written."""

        def row(host: str) -> int:
            with store.ask(host, _path(key)) as answer:
                return int(json.load(answer)[0]["ModifyIndex"])

        return self.asked(row)

    def replicas(self, nodes: Iterable[str], service: str = "web") -> list[dict[str, Any]]:
        """As their agents report them, each with its `node`."""

        def rows(host: str) -> Any:
            with store.ask(host, _path("observed/nodes/") + "?recurse&stale") as answer:
                return json.load(answer)

        reports = {row["Key"].rpartition("/")[2]: json.loads(b64decode(row["Value"])) for row in self.asked(rows)}
        return [{**one, "node": node} for node in nodes for one in reports.get(node, {}).get("replicas", [])
                if one["service"] == service]  # fmt: skip

    def ready(self, nodes: Iterable[str], service: str = "web") -> list[str]:
        """The ids of the ready replicas on these nodes."""
        return sorted(one["id"] for one in self.replicas(nodes, service) if one["state"] == "ready")

    def running(self, nodes: Iterable[str], service: str = "web") -> dict[str, str]:
        """Replica → container, by the engines of these hosts."""
        found = {}
        for node in nodes:
            client = parts.client_of(self.lab.host(node))
            for one in client.containers(filters={"label": f"mesh.service={service}"}):
                found[one["Labels"]["mesh.id"]] = one["Id"]
            client.close()
        return found

    def vip(self, service: str = "web") -> str:
        found: str = self.read(f"planned/services/{service}")["vip"]
        return found

    def doubt(self, node: str) -> tuple[str, str]:
        """What the scheduler thinks of a node: its state and the sentence; empty if all is well."""
        found = self.read("planned/cluster").get("nodes", {}).get(node, {})
        return found.get("state", ""), found.get("why", "")

    def frozen(self) -> str:
        """Why nothing is replaced, if so."""
        return str(self.read("planned/cluster").get("frozen", ""))

    def leader(self) -> str:
        """The host of the leading scheduler."""
        return str(self.read("planned/leader")["name"])

    def consul_leader(self) -> str:
        def asked(host: str) -> str:
            with store.ask(host, "/v1/status/leader", timeout=2) as answer:
                return f"h{int(json.load(answer).split(':')[0].rpartition('.')[2]) - 10}"

        return self.asked(asked)

    def sends_to(self, asked: str, replicas: Collection[str], service: str = "web") -> bool:
        """Whether a host's DNS and proxy send to one of these."""
        with urlopen(f"http://{switch.address(asked)}:7070/v1/table", timeout=5) as answer:
            endpoints = json.load(answer)["services"][service].get("endpoints", [])
        return any(one["id"] in replicas and one.get("state", "ready") == "ready" for one in endpoints)

    def asked(self, ask: Callable[[str], T]) -> T:
        """Of the first host that is on, has no fault, and answers."""
        error: Exception = LabError("no host is well")
        for host in self.lab.hosts:
            if host.is_on and host.name not in self.lab.faults:
                try:
                    return ask(host.name)
                except (OSError, ValueError, HTTPException) as wrong:
                    error = wrong
        raise error


def eventually(what: str, holds: Callable[[], object], within: float = DEADLINE, *, pause: float = 0.05) -> None:
    """Waits for it; who cannot be asked yet has not said no."""
    deadline = time.monotonic() + within
    seen: object = None
    while True:
        try:
            if seen := holds():
                return
        except (OSError, ValueError, KeyError, HTTPException) as error:
            seen = error
        assert time.monotonic() < deadline, f"not within {within:.0f} s: {what}; last seen: {seen!r}"
        time.sleep(pause)


def one_per_slot(replicas: Sequence[Mapping[str, Any]], count: int) -> bool:
    """As many live replicas as that, each in a slot of its own, and all are ready."""
    live = [one for one in replicas if one["state"] not in ("stopped", "failed", "lost")]
    slots = {one["slot"] for one in live if one["state"] == "ready"}
    return len(slots) == len(live) == count


def _path(key: str) -> str:
    return f"/v1/kv/mesh/{key}"
