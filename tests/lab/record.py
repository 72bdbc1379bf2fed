"""The history of a lab, shown to the oracle as it happens: the same checker that judges the simulation.

Store revisions come from a watch, starts and ends from each engine's events, what is offered from each host's Table and
DNS answers; whoever breaks something, or makes requests, says so by `record`. Several revisions of a key that follow
each other quickly may be seen as one.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPException
from typing import Any, Self
from urllib.request import urlopen

from dnslib import DNSRecord
from docker.errors import DockerException
from requests.exceptions import RequestException

from tests.lab import parts, store
from tests.lab.host import Host
from tests.lab.operator import Operator, eventually
from tests.simulation.history import Ended, Fact, Offered, Started, ToldToStop, Written
from tests.simulation.oracle import Limits, Oracle

POLL = 0.2
"""Seconds between two looks at what a host offers."""


class Recorder:
    """Observes from `with` on; at the end of the block all must be as desired, and no rule broken."""

    def __init__(self, operator: Operator) -> None:
        self.oracle = Oracle(Limits())
        self._operator = operator
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._entries: dict[str, tuple[int, bytes]] = {}
        self._here: dict[str, set[str]] = {host.name: set() for host in operator.lab.hosts}
        watches: list[Callable[[], None]] = [self._watch_store]
        for host in operator.lab.hosts:
            watches += [partial(self._watch_engine, host), partial(self._watch_offers, host)]
        self._threads = [threading.Thread(target=watch, daemon=True) for watch in watches]

    def __enter__(self) -> Self:
        self._operator.record = self.record
        for thread in self._threads:
            thread.start()
        eventually("the oracle has seen it all", lambda: not self.differences())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._judge()
        finally:
            self._operator.record = lambda _: None
            self._ended.set()  # those that wait for an engine's next event end with it

    def record(self, fact: Fact) -> None:
        with self._lock:
            self.oracle.observe(fact)

    def differences(self) -> list[str]:
        with self._lock:
            return self.oracle.differences()

    def _judge(self) -> None:
        eventually("running equals desired", lambda: not self.differences())
        with self._lock:
            self.oracle.check_fixpoint()
            assert not self.oracle.violations, "; ".join(map(str, self.oracle.violations))

    # ── the store

    def _watch_store(self) -> None:
        index = 0
        while not self._ended.is_set():
            with suppress(OSError, ValueError, HTTPException):
                index = self._operator.asked(partial(self._read_store, index=index))
                continue
            self._ended.wait(POLL)

    def _read_store(self, host: str, index: int) -> int:
        with store.ask(host, f"/v1/kv/mesh/?recurse&index={index}&wait=5s", timeout=8) as answer:
            newest, rows = int(answer.headers["X-Consul-Index"]), json.load(answer)
        if newest <= index:
            return index
        found = {row["Key"]: row for row in rows}
        for key in self._entries.keys() - found.keys():
            del self._entries[key]
            self.record(Written(time.time(), key, None, newest, None))
        for key, row in sorted(found.items(), key=lambda item: item[1]["ModifyIndex"]):
            held = row.get("Session")
            value = b64decode(row["Value"] or "")
            if self._entries.get(key) != (seen := (row["ModifyIndex"], value)):
                self._entries[key] = seen
                self.record(Written(time.time(), key, value, row["ModifyIndex"], held))
        return newest

    # ── the engines

    def _watch_engine(self, host: Host) -> None:
        while not self._ended.is_set():
            with suppress(DockerException, RequestException, OSError), closing(parts.client_of(host)) as client:
                for event in self._events(client):
                    self._see(host.name, event)
                    if self._ended.is_set():
                        return
            if not host.is_on:
                self._see_running(host.name, {})
            self._ended.wait(POLL)

    def _events(self, client: Any) -> Iterator[dict[str, Any]]:
        """What runs already, as one event, and then each as it comes."""
        wanted = {"type": "container", "event": ["start", "kill", "die"], "label": "mesh.id"}
        stream = client.events(decode=True, filters=wanted)
        listed = client.containers(filters={"label": "mesh.id"})
        yield {"Action": "run", "running": {one["Labels"]["mesh.id"]: one["Labels"] for one in listed}}
        yield from stream

    def _see(self, node: str, event: dict[str, Any]) -> None:
        if event["Action"] == "run":
            self._see_running(node, event["running"])
            return
        labels = event["Actor"]["Attributes"]
        id, now = labels["mesh.id"], time.time()
        match event["Action"]:
            case "start":
                self._started(node, id, labels)
            case "kill":
                self.record(ToldToStop(now, node, id, f"signal {labels['signal']}"))
            case "die":
                self._here[node].discard(id)
                self.record(Ended(now, node, id, asked=True))

    def _see_running(self, node: str, running: dict[str, dict[str, str]]) -> None:
        now = time.time()
        for id in self._here[node] - running.keys():
            self.record(Ended(now, node, id, asked=False))
            self._here[node].discard(id)
        for id in running.keys() - self._here[node]:
            self._started(node, id, running[id])

    def _started(self, node: str, id: str, labels: dict[str, str]) -> None:
        slot = labels["mesh.slot"]
        self._here[node].add(id)
        self.record(Started(time.time(), node, id, labels["mesh.service"], int(slot) if slot.isdigit() else slot))

    # ── what is offered

    def _watch_offers(self, host: Host) -> None:
        before: dict[str, str] | None = None
        while not self._ended.wait(POLL):
            with suppress(OSError, ValueError, HTTPException):
                offered = {**_table(host), **_answers(host)}
                if offered != before:
                    before = offered
                    self.record(Offered(time.time(), host.name, offered))


def _table(host: Host) -> dict[str, str]:
    with urlopen(f"http://{host.address}:7070/v1/table", timeout=2) as answer:
        services = json.load(answer)["services"]
    return {
        one["id"]: one.get("state", "ready") for service in services.values() for one in service.get("endpoints", [])
    }


def _answers(host: Host) -> dict[str, str]:
    """Whom the host's DNS sends to: what it answers is offered, whatever the Table says."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(1)
        asker.connect((host.address, 53))
        asker.send(DNSRecord.question("_http._tcp.web.svc.cluster", "SRV").pack())
        answer = DNSRecord.parse(asker.recv(4096))
    return {str(one.rdata.target).partition(".")[0]: "ready" for one in answer.rr}
