"""A running cluster in the store, without anybody that runs it."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import msgspec

from mesh.model import (
    Assignment,
    Capacity,
    NodePlan,
    NodeReport,
    Release,
    ReplicaReport,
    ReplicaState,
    ServicePlan,
)
from mesh.spec.service import parse_spec
from mesh.view import encode_document
from tests.cli.conftest import Kv

WEB = {"name": "web", "image": "web:1", "replicas": 2}


def running(kv: Kv) -> None:
    """Two nodes, of which the second is silent; one replica of `web` on each."""
    spec = parse_spec(WEB)
    kv.put(kv.keys.service("web"), spec.canonical())
    release = Release(number=1, hash=spec.digest(), spec=spec.canonical(), good=True)
    kv.put(kv.keys.service_plan("web"), ServicePlan(service="web", desired=2, releases=[release]))
    for slot, node in ((1, "n1"), (2, "n2")):
        id = f"web-{slot}-aaaa"
        assignment = Assignment(id=id, service="web", slot=slot, release=1)
        kv.put(kv.keys.node_plan(node), NodePlan(node=node, replicas=[assignment]))
        replica = ReplicaReport(id=id, service="web", slot=slot, release=1, state=ReplicaState.READY)
        capacity = Capacity(cpu=1000, memory=2**30)
        report(kv, NodeReport(node=node, address="10.0.0.1", capacity=capacity, replicas=[replica]), held=node == "n1")


def report(kv: Kv, document: NodeReport, *, held: bool = True) -> None:
    """Writes a node's report, held by a session of its own or by none."""
    key = kv.keys.node_report(document.node)
    if not held:
        kv.put(key, document)
        return
    request = urllib.request.Request(f"{kv.store}/v1/session/create", b'{"TTL": "600s"}', method="PUT")
    with urllib.request.urlopen(request) as answer:
        session = json.load(answer)["ID"]
    url = f"{kv.store}/v1/kv/{key}?acquire={session}"
    urllib.request.urlopen(urllib.request.Request(url, encode_document(document), method="PUT")).close()


@contextlib.contextmanager
def answering(path: str, document: msgspec.Struct) -> Iterator[str]:
    """The admin HTTP of somebody who answers this path with this document."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = msgspec.json.encode(document)
            self.send_response(200 if self.path == path else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
