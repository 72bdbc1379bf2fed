"""The load, from the load's core, and what it cost the proxy."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.processes import LOAD_CORE
from bench.proxy.peers import Proxy
from bench.proxy.world import SMALL

POST = 'wrk.method = "POST"\nwrk.body = string.rep("p", 4096)\n'
VARIED = """local number = 0
request = function()
  number = number + 1
  return wrk.format(nil, nil, {["Cookie"] = "session=" .. number, ["X-Request-Id"] = "bench-" .. number})
end
"""
"""No head is like another, as if each request came from another person."""
LATENCY_CONNECTIONS = 64


@dataclass(frozen=True)
class Found:
    """Of one run: operations a second (bulk: gigabits a second), CPU µs of the proxy per operation (bulk: CPU seconds
    per gigabyte), and what was wrong."""

    rate: float
    cpu: float
    fault: str = ""


async def http(
    proxy: Proxy, seconds: float, connections: int, path: str = "/small", *, kind: str = "http", close: bool = False,
    script: Path | None = None,
) -> Found:  # fmt: skip
    """wrk, as fast as it goes."""
    scheme = "https" if kind == "tls" else "http"
    options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", f"{scheme}://127.0.0.1:{proxy.ports[kind]}{path}"]
    if close:
        options += ["-H", "Connection: close"]
    if script:
        options += ["-s", str(script)]
    before = proxy.cpu_seconds
    report = await _run("wrk", *options)
    spent = proxy.cpu_seconds - before
    requests = int(_only(r"(\d+) requests in ", report))
    fault = " ".join(line.strip() for line in report.splitlines() if "Non-2xx" in line or "Socket errors" in line)
    if close:  # wrk counts the end of each of its connections as a read error
        fault = re.sub(r"Socket errors: connect 0, read \d+, write 0, timeout 0", "", fault)
    return Found(float(_only(r"Requests/sec: +([\d.]+)", report)), spent / max(requests, 1) * 1e6, fault)


async def latency(proxy: Proxy, seconds: float, rate: float, folder: Path) -> tuple[float, float]:
    """p50 and p99 in milliseconds at a steady rate, by h2load's log of every request."""
    log = folder / "latency.log"
    log.unlink(missing_ok=True)
    each = max(rate / LATENCY_CONNECTIONS, 1)
    await _run("h2load", "--h1", f"--clients={LATENCY_CONNECTIONS}", "--threads=1", f"--duration={seconds:g}",
               "--warm-up-time=1", f"--rps={each:.1f}", f"--log-file={log}",
               f"http://127.0.0.1:{proxy.ports['http']}/small")  # fmt: skip
    times = [int(line.split("\t")[2]) / 1000 for line in log.read_text().splitlines()]
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98]


async def websocket(proxy: Proxy, seconds: float, connections: int = 64) -> Found:
    """Echoes of 100 bytes, each connection one at a time."""

    async def run() -> tuple[int, str]:
        report = await _run(sys.executable, "-m", "bench.proxy.echo", str(proxy.ports["ws"]), "--load",
                            str(connections), "--seconds", f"{seconds:g}")  # fmt: skip
        echoes, wrong = map(int, report.split())
        return echoes, f"{wrong} echoes were wrong" if wrong else ""

    return await _counted(proxy, seconds, run)


async def small_tcp(proxy: Proxy, seconds: float, connections: int = 64) -> Found:
    """Redis PINGs, each connection one at a time."""

    async def run() -> tuple[int, str]:
        count = int(25_000 * seconds)
        await _run("redis-benchmark", "-p", str(proxy.ports["redis"]), "-t", "ping_mbulk", "-c", str(connections),
                   "-n", str(count), "-q")  # fmt: skip
        return count, ""

    return await _counted(proxy, None, run)


async def connections_tcp(proxy: Proxy, seconds: float, connections: int = 32) -> Found:
    """Redis PINGs, each on a connection of its own."""

    async def run() -> tuple[int, str]:
        count = int(5_000 * seconds)
        await _run("redis-benchmark", "-p", str(proxy.ports["redis"]), "-t", "ping_mbulk", "-c", str(connections),
                   "-n", str(count), "-k", "0", "-q")  # fmt: skip
        return count, ""

    return await _counted(proxy, None, run)


async def bulk(proxy: Proxy, seconds: float) -> Found:
    """iperf3, one stream."""
    before = proxy.cpu_seconds
    report = await _run("iperf3", "-c", "127.0.0.1", "-p", str(proxy.ports["bulk"]), "-t", f"{seconds:g}", "--json")
    spent = proxy.cpu_seconds - before
    received = json.loads(report)["end"]["sum_received"]
    return Found(received["bits_per_second"] / 1e9, spent / (received["bytes"] / 1e9))


async def per_idle_connection(proxy: Proxy, count: int) -> float:
    """KiB resident for each client connection that has had one response and waits."""
    before = proxy.resident
    request = b"GET /small HTTP/1.1\r\nHost: bench.test\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.ports["http"]), timeout=10))
            client.sendall(request)
            answer = b""
            while SMALL not in answer:
                answer += await asyncio.to_thread(client.recv, 65536)
        return (proxy.resident - before) / count / 1024


async def _counted(proxy: Proxy, seconds: float | None, run: Callable[[], Awaitable[tuple[int, str]]]) -> Found:
    loop = asyncio.get_running_loop()
    before, began = proxy.cpu_seconds, loop.time()
    count, fault = await run()
    spent, took = proxy.cpu_seconds - before, seconds or loop.time() - began
    return Found(count / took, spent / max(count, 1) * 1e6, fault)


async def _run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "taskset", "--cpu-list", str(LOAD_CORE), *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}:\n{out.decode()[-2000:]}")
    return out.decode()


def _only(pattern: str, report: str) -> str:
    if found := re.search(pattern, report):
        return found[1]
    raise SystemExit(f"the load says:\n{report[-2000:]}")
