"""dnsperf against one server, and what it cost that server."""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.dns.servers import Server
from bench.processes import LOAD_CORE

_SENT = re.compile(r"Queries completed: +(\d+) ")
_LOST = re.compile(r"Queries lost: +(\d+) ")
_RATE = re.compile(r"Queries per second: +([\d.]+)")
_CODES = re.compile(r"Response codes: +(.*)")
_EACH = re.compile(r"^> NOERROR \S+ \S+ ([\d.]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """Of one run."""

    qps: float
    cpu: float
    """CPU microseconds of the server per query."""
    lost: int
    wrong: bool
    """Whether there was any response code but NOERROR."""


async def run(server: Server, questions: Path, seconds: float, transport: str = "udp") -> Load:
    """As many queries as it takes, 8 clients, 200 in flight."""
    before = server.cpu_seconds()
    report = await dnsperf(server, questions, seconds, "-c", "8", "-q", "200", "-m", transport)
    spent = server.cpu_seconds() - before
    queries = int(_only(_SENT, report))
    codes = _only(_CODES, report)
    return Load(
        qps=float(_only(_RATE, report)),
        cpu=spent / queries * 1e6,
        lost=int(_only(_LOST, report)),
        wrong=not codes.startswith("NOERROR") or "," in codes,
    )


async def latency(server: Server, questions: Path, seconds: float, qps: float, transport: str) -> tuple[float, float]:
    """p50 and p99 in microseconds at a steady rate."""
    report = await dnsperf(server, questions, seconds, "-c", "8", "-Q", str(int(qps)), "-m", transport, "-v")
    cuts = statistics.quantiles([float(time) * 1e6 for time in _EACH.findall(report)], n=100)
    return cuts[49], cuts[98]


async def dnsperf(server: Server, questions: Path, seconds: float, *options: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "taskset", "--cpu-list", str(LOAD_CORE), "dnsperf", "-s", "127.0.0.1", "-p", str(server.port),
        "-d", str(questions), "-l", str(seconds), "-t", "1", *options,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return out.decode()


def _only(pattern: re.Pattern[str], report: str) -> str:
    if found := pattern.search(report):
        return found[1]
    raise SystemExit(f"dnsperf says:\n{report[-2000:]}")
