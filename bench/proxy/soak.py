"""Ten minutes of load while endpoints come and go every second: no request may fail, and memory must stay flat.

    python -m bench.proxy.soak [--minutes M] [--endpoints N] [--replace SECONDS]

Every endpoint is an nginx of its own. Each second the oldest one leaves the Table, is ended two seconds later (its
drain), and a new one takes its place; from time to time all workers are replaced. Two clients load the proxy: one keeps
its connections, one opens a new one for each request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.processes import LOAD_CORE, resident, running
from bench.proxy.world import SMALL, listening
from mesh.dataplane.worker import ProxyArguments
from mesh.dataplane.workers import Workers
from mesh.table import Table, parse_table
from tests.parts.ports import free_port

DRAIN = 2.0
"""Seconds from an endpoint's leave to its end: a spec's `stop.drain` is more."""
CLIENTS = (("kept alive", ("-c32",)), ("new connections", ("-c8", "-H", "Connection: close")))
PATIENCE = 30.0


@dataclass
class Endpoint:
    name: str
    port: int
    stack: AsyncExitStack


class World:
    """The endpoints, and the Table that names those that are in service."""

    def __init__(self, folder: Path, listen: int) -> None:
        self._folder = folder
        self._listen = listen
        self._count = 0
        self._index = 0
        self._leaving: set[asyncio.Task[None]] = set()
        self.serving: deque[Endpoint] = deque()

    async def add(self) -> None:
        """One more endpoint, once it answers."""
        self._count += 1
        endpoint = Endpoint(f"web-{self._count}", free_port(), AsyncExitStack())
        config = self._folder / f"{endpoint.name}.conf"
        log = self._folder / f"{endpoint.name}.log"
        config.write_text(_nginx(self._folder, endpoint))
        await endpoint.stack.enter_async_context(running(["nginx", "-c", config], log, LOAD_CORE))
        await listening(endpoint.port, log)
        self.serving.append(endpoint)

    def remove_oldest(self) -> None:
        """It leaves the Table now, and ends after its drain."""
        gone = self.serving.popleft()
        leaving = asyncio.create_task(self._end(gone))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _end(self, endpoint: Endpoint) -> None:
        await asyncio.sleep(DRAIN)
        await endpoint.stack.aclose()

    def table(self) -> Table:
        self._index += 1
        endpoints = [
            {"id": one.name, "slot": 1, "node": "n1", "address": "127.0.0.1", "ports": {"http": one.port}}
            for one in self.serving
        ]
        port = {"port": 80, "protocol": "http", "listen": f"127.0.0.1:{self._listen}"}
        services = {"web": {"desired": len(endpoints), "ports": {"http": port}, "endpoints": endpoints}}
        return parse_table(json.dumps({"index": self._index, "services": services}).encode())

    async def close(self) -> None:
        for leaving in list(self._leaving):
            await leaving
        for endpoint in self.serving:
            await endpoint.stack.aclose()


def _nginx(folder: Path, endpoint: Endpoint) -> str:
    temporary = "".join(f"{kind}_temp_path {folder}/{endpoint.name}-{kind};\n"
                        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))  # fmt: skip
    return f"""daemon off;
worker_processes 1;
pid {folder}/{endpoint.name}.pid;
error_log {folder}/{endpoint.name}.err;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000;
{temporary}server {{ listen 127.0.0.1:{endpoint.port}; location / {{ return 200 "{SMALL.decode()}"; }} }} }}
"""


async def soak(minutes: float, endpoints: int, replace: float, folder: Path) -> tuple[list[str], list[float]]:
    """What each client saw, and the memory of the workers (MiB), sampled every ten seconds."""
    listen = free_port()
    world = World(folder, listen)
    for _ in range(endpoints):
        await world.add()
    supervisor = Workers(folder / "ours", [ProxyArguments(node="n1", survive=False)] * 2)
    await supervisor.start()
    memory: list[float] = []
    try:
        supervisor.publish(world.table())
        async with asyncio.timeout(PATIENCE):
            await supervisor.serving()
        ends = time.monotonic() + minutes * 60
        clients = [asyncio.create_task(_wrk(listen, minutes * 60, *options)) for _, options in CLIENTS]
        sampled = replaced = time.monotonic()
        while (now := time.monotonic()) < ends - 2:
            await world.add()
            world.remove_oldest()
            supervisor.publish(world.table())
            if now - sampled >= 10:
                sampled = now
                pids = [int(file.read_text()) for file in (folder / "ours").glob("proxy-*.pid")]
                memory.append(sum(map(resident, pids)) / 2**20)
                print(f"{ends - now:5.0f} s left, workers {memory[-1]:.1f} MiB", file=sys.stderr)
            if replace and now - replaced >= replace:
                replaced = now
                print("replacing all workers", file=sys.stderr)
                await supervisor.replace()
            await asyncio.sleep(max(0.0, 1 - (time.monotonic() - now)))
        return [await client for client in clients], memory
    finally:
        await supervisor.close()
        await world.close()


async def _wrk(port: int, seconds: float, *options: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "taskset", "--cpu-list", str(LOAD_CORE), "wrk", "-t1", f"-d{seconds:.0f}s", *options,
        f"http://127.0.0.1:{port}/", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return out.decode()


def _failures(report: str, *, closes: bool) -> str:
    """What wrk counted as errors; the end of a connection that was to be closed is none."""
    lines = [line.strip() for line in report.splitlines() if "Non-2xx" in line or "Socket errors" in line]
    if closes:
        lines = [
            line for line in lines if not re.fullmatch(r"Socket errors: connect 0, read \d+, write 0, timeout 0", line)
        ]
    return "; ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--endpoints", type=int, default=6)
    parser.add_argument("--replace", type=float, default=60.0, help="seconds between two replacements of all workers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mesh-soak-") as name:
        reports, memory = asyncio.run(soak(options.minutes, options.endpoints, options.replace, Path(name)))
    failed = False
    for (client, arguments), report in zip(CLIENTS, reports, strict=True):
        requests = re.search(r"(\d+) requests in", report)
        failures = _failures(report, closes=len(arguments) > 1)
        failed = failed or bool(failures)
        print(f"{client}: {int(requests[1]) if requests else 0:,} requests, {failures or 'none failed'}")
    if memory:
        print(f"workers' memory: {memory[0]:.1f} MiB at first, {max(memory):.1f} at most, {memory[-1]:.1f} at last")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
