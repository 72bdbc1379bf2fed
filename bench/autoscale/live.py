"""Steps of real load on real replicas: how soon the autoscaler decides, and how soon there is room for it.

    python -m bench.autoscale.live [--runtime process|docker] [--steps 2,10,50]

One machine, `mesh dev`, one service with the target of one request in flight per replica. Clients keep so many requests
in flight, each 0.3 s long; a step multiplies them. The decision is the first change in the store that follows, room the
moment at which as many replicas are ready as there are requests; what the first replica took from its
release to being ready stands beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.harness import APP, Cluster, dev, eventually, service

SETTLE = 30.0
"""Seconds of steady load before each step."""


class Clients:
    """So many requests in flight at `address`, in a thread of their own."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._url = f"http://{address[0]}:{address[1]}/slow"
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self.failures = 0
        self.answers = 0
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        connector = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()
        self._http = connector

    async def _connect(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30), trust_env=False
        )

    def set(self, count: int) -> None:
        asyncio.run_coroutine_threadsafe(self._set(count), self._loop).result()

    async def _set(self, count: int) -> None:
        while len(self._tasks) > count:
            self._tasks.pop().cancel()
        while len(self._tasks) < count:
            self._tasks.append(asyncio.create_task(self._run()))

    async def _run(self) -> None:
        while True:
            try:
                async with self._http.get(self._url) as answer:
                    await answer.read()
                    self.answers += 1
                    self.failures += answer.status != 200
            except (aiohttp.ClientError, TimeoutError):
                self.failures += 1

    def close(self) -> None:
        self.set(0)
        asyncio.run_coroutine_threadsafe(self._http.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)


def changes(mesh: Cluster, name: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{mesh.store}/v1/kv/mesh/planned/scale/{name}?raw", timeout=5) as answer:
            found: list[dict[str, Any]] = json.load(answer).get("changes", [])
            return found
    except urllib.error.HTTPError:
        return []


def ready(mesh: Cluster, name: str) -> int:
    endpoints = mesh.table()["services"].get(name, {}).get("endpoints", [])
    return sum(endpoint.get("state", "ready") == "ready" for endpoint in endpoints)


def step(mesh: Cluster, factor: int, spec: dict[str, Any]) -> tuple[float, float, float, int]:
    """Seconds until the decision, until there is room, and that one replica takes to start; failed requests."""
    name = f"x{factor}"
    mesh.apply({**spec, "name": name})
    eventually(lambda: ready(mesh, name) == 1, "the first replica", 60)
    first = mesh.json("status", name)
    start = first["replicas"][0]["since"] - first["since"]
    clients = Clients(mesh.address(name))
    try:
        clients.set(1)
        time.sleep(SETTLE)
        before = len(changes(mesh, name))
        wall, began = time.time(), time.monotonic()
        clients.set(factor)
        decided = eventually(lambda: changes(mesh, name)[before:], "a decision", 60)[0]["time"] - wall
        eventually(lambda: ready(mesh, name) >= factor, f"{factor} ready", 180)
        return decided, time.monotonic() - began, start, clients.failures
    finally:
        clients.close()
        mesh.mesh("delete", name, "--yes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=["process", "docker"], default="process")
    parser.add_argument("--steps", default="2,10,50", help="factors, with commas")
    options = parser.parse_args()
    scale = {"max": 64, "metrics": [{"in_flight": 1}]}
    spec = service(
        replicas=1,
        scale=scale,
        resources={"cpu": "1m", "memory": "8Mi"},
        health={"ready": {"http": "/healthz", "interval": "250ms"}},
    )
    if options.runtime == "docker":
        import docker

        from tests.parts.images import python_image

        spec |= {"image": python_image(docker.from_env().api), "command": ["python3", "/app/app.py"],
                 "mounts": [{"source": str(APP.parent), "path": "/app", "read_only": True}]}  # fmt: skip
    print("| step | decision (s) | room (s) | one replica's start (s) | failed requests |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, dev(Path(folder), runtime=options.runtime) as (mesh, _):
        for factor in map(int, options.steps.split(",")):
            decided, room, start, failures = step(mesh, factor, spec)
            print(f"| ×{factor} | {decided:.2f} | {room:.2f} | {start:.2f} | {failures} |", flush=True)


if __name__ == "__main__":
    main()
