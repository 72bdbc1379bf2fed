"""Real load on real replicas: how soon steps are decided on and have room, and what a start from zero adds.

    python -m bench.autoscale.live [--runtime process|docker] [--steps 2,10,50]

One machine, `mesh dev`, one service with a target of 1.25 requests in flight per replica: what one request needs is one
replica, with room for noise. Clients keep so many requests in flight, each 0.3 s long; a step multiplies them. Told are
the first change to more replicas after the step, the first one to as many as it takes, and when that many are ready;
beside them, what the first replica took from its release to being ready. After that, first requests to a service at
zero: what they took beyond what the agent's log says their replica took from its start to being ready.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from tests.e2e.harness import APP, Cluster, Process, dev, service
from tests.patience import eventually

TARGET = 1.25
"""Requests in flight per replica."""

SETTLE = 30.0
"""Seconds of steady load before each step."""

COLD_STARTS = 5


class Clients:
    """So many requests in flight at `address`, in a thread of their own."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._url = f"http://{address[0]}:{address[1]}/slow"
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self.failures: Counter[str] = Counter()
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
                    text = await answer.text()
                    if answer.status != 200:
                        self.failures[f"{answer.status} {text.strip()}"] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failures[repr(error)] += 1

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


def risen(mesh: Cluster, name: str, since: float, least: int = 0) -> float:
    """Seconds from `since` (Unix) to the first change to more replicas after it, to `least` of them or more."""
    return next(
        float(change["time"]) - since
        for change in changes(mesh, name)
        if change["time"] > since and change["replicas"] >= max(least, change["current"] + 1)
    )


def step(mesh: Cluster, factor: int, spec: dict[str, Any]) -> str:
    """A row of the table."""
    name, needed = f"x{factor}", math.ceil(factor / TARGET)
    mesh.apply({**spec, "name": name})
    eventually(lambda: ready(mesh, name) == 1, "the first replica", 60)
    status = mesh.json("status", name)
    start = status["replicas"][0]["since"] - status["since"]
    clients = Clients(mesh.address(name))
    try:
        clients.set(1)
        time.sleep(SETTLE)
        assert not changes(mesh, name), "one replica carries one request"
        wall, began = time.time(), time.monotonic()
        clients.set(factor)
        eventually(lambda: ready(mesh, name) >= needed, f"{needed} ready", 180)
        room = time.monotonic() - began
        first, last = risen(mesh, name, wall), risen(mesh, name, wall, needed)
        times = " | ".join(f"{seconds:.2f}" for seconds in (first, last, room, start))
        for failure, count in clients.failures.items():
            print(f"{name}: {count} × {failure}", file=sys.stderr)
        return f"| ×{factor} | {needed} | {times} | {clients.failures.total()} |"
    finally:
        clients.close()
        mesh.mesh("delete", name, "--yes")


def cold_start(mesh: Cluster, agent: Process, name: str) -> tuple[float, float]:
    """Seconds that a first request takes, and those of them that are the replica's own start."""

    def asleep() -> bool:
        service = mesh.table()["services"][name]
        return bool(service.get("asleep")) and not service.get("desired") and not service.get("endpoints")

    eventually(asleep, "asleep", 60)
    began = time.monotonic()
    status, body = mesh.get(name, timeout=30)
    took = time.monotonic() - began
    assert status == 200, body
    id = body.split()[-1]
    starts, ready = (logged(agent, f"replica {id}: {what}") for what in ("assigned -> starting", "running -> ready"))
    return took, ready - starts


def logged(process: Process, text: str) -> float:
    """When a process has said this (Unix seconds)."""
    line = eventually(lambda: next((line for line in process.output().splitlines() if text in line), None), text)
    return datetime.fromisoformat(line[:23].replace(",", ".")).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=["process", "docker"], default="process")
    parser.add_argument("--steps", default="2,10,50", help="factors, with commas")
    options = parser.parse_args()
    scale = {"max": 64, "metrics": [{"in_flight": TARGET}]}
    spec = service(
        replicas=1,
        scale=scale,
        resources={"cpu": "20m", "memory": "32Mi"},
        health={"ready": {"http": "/healthz", "interval": "250ms"}},
    )
    if options.runtime == "docker":
        import docker

        from tests.parts.images import python_image

        spec |= {"image": python_image(docker.from_env().api), "command": ["python3", "/app/app.py"],
                 "mounts": [{"source": str(APP.parent), "path": "/app", "read_only": True}]}  # fmt: skip
    at_zero = {"min": 0, "max": 4, "metrics": [{"in_flight": 5}], "to_zero_after": "2s"}
    print("| step | replicas | first decision (s) | last decision (s) | room (s) | one start (s) | failed requests |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, dev(Path(folder), runtime=options.runtime) as (mesh, agent):
        for factor in map(int, options.steps.split(",")):
            print(step(mesh, factor, spec), flush=True)
        mesh.apply({**spec, "name": "cold", "scale": at_zero})
        starts = [cold_start(mesh, agent, "cold") for _ in range(COLD_STARTS)]
    added = sorted(took - own for took, own in starts)
    print(f"cold starts: {median(took for took, _ in starts):.2f} s, of it beyond the replica's own start "
          f"{median(added):.2f} ({added[0]:.2f}–{added[-1]:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
