"""Our DNS server beside dnsmasq, Knot, unbound and Consul's own, in one go, on this machine.

    python -m bench.dns [--rounds N] [--seconds S] [--services N]

Every server has one core to itself, the load comes from another one, and all give the same answers. Prints tables for
docs/benchmarks.md. What drifts from run to run is the machine; the ratios and the CPU time per query hold.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

from bench.dns import load, servers
from bench.dns.changes import Churn, check_all, freshness
from bench.dns.servers import Server
from bench.dns.world import fresh_addresses, make_table, write_questions

ENDPOINTS = 3
LARGE = (10_000, 10)
"""Services and endpoints of each, for freshness and memory."""

Figures = dict[str, dict[str, list[float]]]
"""Server → measure → one figure per round."""

MEASURES = {
    "hot qps": "qps, hot",
    "hot cpu": "CPU µs/query, hot",
    "wide qps": "qps, wide",
    "wide cpu": "CPU µs/query, wide",
    "tcp qps": "qps, TCP",
    "tcp cpu": "CPU µs/query, TCP",
    "udp p50": "p50 µs, UDP, half load",
    "udp p99": "p99 µs",
    "tcp p50": "p50 µs, TCP, half load",
    "tcp p99": "p99 µs",
}


async def compare(rounds: int, seconds: float, services: int, folder: Path) -> tuple[Figures, list[str]]:
    """All servers in turn, round after round. Returns the figures, and what was not right."""
    table = make_table(services, ENDPOINTS)
    addresses = fresh_addresses(200)
    figures: Figures = defaultdict(lambda: defaultdict(list))
    faults: list[str] = []
    async with AsyncExitStack() as stack:
        server, workers = await stack.enter_async_context(servers.ours(folder, table))
        everyone = [server, *await stack.enter_async_context(servers.peers(folder, table))]
        questions = {
            domain: write_questions(folder, list(table.services), domain) for domain in {one.domain for one in everyone}
        }
        for number in range(1, rounds + 1):
            for one in everyone:
                print(f"round {number} of {rounds}: {one.name}", file=sys.stderr)
                expected = workers.table if one is server and workers.table else table
                if wrong := await check_all(one, expected):
                    faults.append(f"{one.name}: {wrong} of {services} names answered wrongly")
                faults += await measure(one, questions[one.domain], seconds, figures[one.name])
            async with Churn(server, workers, workers.table or table, addresses) as churn:
                found = await load.run(server, questions[server.domain]["wide"], seconds)
            note(figures["ours"], "churn", found)
            figures["ours"]["changes"].append(churn.changes / seconds)
            figures["ours"]["checked"].append(churn.checked)
            if churn.wrong:
                faults.append(f"ours: {churn.wrong} of {churn.checked} answers under churn were wrong")
    return figures, faults


async def measure(
    server: Server, questions: dict[str, Path], seconds: float, figures: dict[str, list[float]]
) -> list[str]:
    """One round of one server."""
    faults = []
    for kind, asked, transport in (("hot", "hot", "udp"), ("wide", "wide", "udp"), ("tcp", "hot", "tcp")):
        found = await load.run(server, questions[asked], seconds, transport)
        note(figures, kind, found)
        if found.wrong:
            faults.append(f"{server.name}, {kind}: not every answer was NOERROR")
        if found.lost and server.name == "ours":
            faults.append(f"{server.name}, {kind}: {found.lost} queries lost")
    for transport, full in (("udp", "wide qps"), ("tcp", "tcp qps")):
        p50, p99 = await load.latency(server, questions["wide"], seconds, figures[full][-1] / 2, transport)
        figures[f"{transport} p50"].append(p50)
        figures[f"{transport} p99"].append(p99)
    return faults


def note(figures: dict[str, list[float]], kind: str, found: load.Load) -> None:
    figures[f"{kind} qps"].append(found.qps)
    figures[f"{kind} cpu"].append(found.cpu)


async def at_size(rounds: int, folder: Path) -> dict[str, list[float]]:
    """Freshness and memory with a large Table."""
    services, endpoints = LARGE
    table = make_table(services, endpoints)
    figures: dict[str, list[float]] = defaultdict(list)
    async with servers.ours(folder, table) as (server, workers):
        figures["resident, idle"].append(server.resident_mib())
        for _ in range(rounds):
            table, times = await freshness(server, workers, table, 30)
            figures["fresh"] += times
        figures["wrong"].append(await check_all(server, table))
        figures["resident, after a query for every name"].append(server.resident_mib())
    return figures


# ── What is printed ──────────────────────────────────────────────────────────────────────────────


def comparison(figures: Figures) -> str:
    """Markdown: for every server the median of each measure, and its range."""
    lines = [f"| server | {' | '.join(MEASURES.values())} |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, measures in figures.items():
        lines.append(f"| {name} | {' | '.join(spread(measures[key], key) for key in MEASURES)} |")
    return "\n".join(lines)


def spread(values: list[float], key: str) -> str:
    digits = 1 if "cpu" in key else 0
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def goals(figures: Figures, large: dict[str, list[float]]) -> str:
    """Markdown: what was aimed at and what came out, from medians."""

    def median(server: str, key: str) -> float:
        return statistics.median(figures[server][key])

    rows = [
        ("CPU per query, hot, ÷ dnsmasq's", "≤ 1", median("ours", "hot cpu") / median("dnsmasq", "hot cpu"), 1.0, 2),
        ("CPU per query, hot, ÷ Knot's", "≤ 1.4", median("ours", "hot cpu") / median("knot", "hot cpu"), 1.4, 2),
        ("qps, hot, ÷ Consul's (the load generator gives no more than some 135,000)", "≥ 5",
         median("ours", "hot qps") / median("Consul", "hot qps"), -5.0, 1),
        ("CPU per query of Consul's DNS, hot, ÷ ours", "≥ 5",
         median("Consul", "hot cpu") / median("ours", "hot cpu"), -5.0, 1),
        ("CPU per query, hot ÷ wide", "≥ 0.6", median("ours", "hot cpu") / median("ours", "wide cpu"), -0.6, 2),
        ("CPU per query, wide: with 100 changes a second ÷ without", "< 1.1",
         median("ours", "churn cpu") / median("ours", "wide cpu"), 1.1, 2),
        ("p99 at half load, µs", "< 1,000", median("ours", "udp p99"), 1000.0, 0),
        (f"change → first right answer, {LARGE[0]:,} × {LARGE[1]}, median, ms", "≤ 5",
         statistics.median(large["fresh"]), 5.0, 1),
        ("the same, slowest", "", max(large["fresh"]), float("inf"), 1),
        *((f"worker's memory, {LARGE[0]:,} × {LARGE[1]}, {key}, MiB", "≤ 60", max(values), 60.0, 0)
          for key, values in large.items() if key.startswith("resident")),
    ]  # fmt: skip
    lines = ["| measure | goal | found | |", "|---|---|---|---|"]
    for text, goal, found, bound, digits in rows:  # a negative bound is a lower one
        met = found <= bound if bound > 0 else found >= -bound
        lines.append(f"| {text} | {goal} | {found:,.{digits}f} | {'met' if met else '**missed**'} |")
    return "\n".join(lines)


def machine() -> str:
    versions = [
        subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0].split("  ")[0].removesuffix(",")
        for command in (["dnsmasq", "--version"], ["knotd", "--version"], ["unbound", "-V"], ["consul", "version"])
    ]
    system = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    return f"{datetime.date.today()}, {system}; {', '.join(versions)}"


async def run(rounds: int, seconds: float, services: int) -> int:
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        folder = Path(name)
        figures, faults = await compare(rounds, seconds, services, folder)
        large = await at_size(rounds, folder / "large")
    if wrong := int(max(large["wrong"])):
        faults.append(f"ours: {wrong} of {LARGE[0]} names answered wrongly at size")
    ours = figures["ours"]
    print(f"\n{machine()}. {services:,} services × {ENDPOINTS} A records; {rounds} rounds of {seconds:g} s; "
          f"median (lowest–highest).\n")  # fmt: skip
    print(comparison(figures))
    print(f"\nOurs under churn: {spread(ours['churn qps'], 'qps')} qps, {spread(ours['churn cpu'], 'cpu')} "
          f"CPU µs/query, {spread(ours['changes'], 'changes')} changes/s, "
          f"{sum(ours['checked']):,.0f} answers checked.\n")  # fmt: skip
    print(goals(figures, large))
    print("\nEvery answer checked was right." if not faults else "\n" + "\n".join(f"- {fault}" for fault in faults))
    return 1 if faults else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--services", type=int, default=1000)
    options = parser.parse_args()
    if packages := servers.missing():
        sys.exit(f"the benchmark needs these packages: {' '.join(packages)}")
    if (os.cpu_count() or 1) < 2:
        sys.exit("the benchmark needs two cores: one for the server, one for the load")
    sys.exit(asyncio.run(run(options.rounds, options.seconds, options.services)))


if __name__ == "__main__":
    main()
