"""How fast the mesh reacts, end to end on this machine, with real containers and a real Consul. `make bench` runs it.

    python -m bench.reaction [--rounds N] [--without-swarm]

Everything goes through the surfaces that a user has: a key is written with HTTP, the engine is asked when it started a
container, names are asked with DNS. Prints a table for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import engine, swarm
from bench.cluster import Cluster, cluster, dev_first_answer, usage, wait_until

WELL = 1.5
"""Seconds a replica lives before it is killed: one that dies within `restart.delay` of its start is a crash loop."""

IDLE = 20.0
"""Seconds over which the idle processes are watched."""

MEASURES = {
    "written": "spec written → its container started by the engine, less the engine's own start (median, s)",
    "dns": "container killed → out of DNS",
    "table": "container killed → out of the proxies' Table",
    "replaced": "container killed → replacement started, less the engine's own start",
    "twenty": "20 replicas from nothing to ready",
    "sixty": "20 → 60 replicas ready",
    "first": "`mesh dev` started → first DNS answer",
    "memory": "agent and its workers, 20 replicas, idle: resident memory (MiB)",
    "cpu": "agent and its workers, 20 replicas, idle: share of one core (%)",
}

Times = dict[str, list[float]]


def label(service: str) -> str:
    return f"mesh.service={service}"


def reaction(mesh: Cluster, client: Any, own: float, times: Times, number: int) -> None:
    """One replica: written, started; killed, out of DNS and Table, replaced."""
    name = f"one{number}"
    began = time.time()
    mesh.write(name, 1)
    (container,) = wait_until(lambda: engine.containers(client, label(name)))
    times["written"].append(engine.started_at(client, container.id) - began - own)
    (replica,) = wait_until(lambda: mesh.ready(name))
    wait_until(lambda: mesh.ask(f"ready.{name}.svc.cluster"))
    time.sleep(WELL)
    killed = time.time()
    container.kill()
    seen: dict[str, float] = {}

    def all_seen() -> bool:
        if "dns" not in seen and not mesh.ask(f"ready.{name}.svc.cluster"):
            seen["dns"] = time.time() - killed
        if "table" not in seen and replica not in mesh.ready(name):
            seen["table"] = time.time() - killed
        return len(seen) == 2

    wait_until(all_seen, 0.001)
    (new,) = wait_until(lambda: [one for one in engine.containers(client, label(name)) if one.id != container.id])
    times["replaced"].append(engine.started_at(client, new.id) - killed - own)
    for key, value in seen.items():
        times[key].append(value)
    remove(mesh, client, name)


def growth(mesh: Cluster, client: Any, times: Times, number: int, *, idle: bool) -> None:
    """Twenty replicas, a quiet while, sixty replicas."""
    name = f"many{number}"
    began = time.monotonic()
    mesh.write(name, 20)
    wait_until(lambda: len(mesh.ready(name)) == 20, 0.02)
    times["twenty"].append(time.monotonic() - began)
    if idle:
        time.sleep(2)
        _, before = usage(mesh.agent)
        time.sleep(IDLE)
        memory, after = usage(mesh.agent)
        times["memory"].append(memory)
        times["cpu"].append(100 * (after - before) / IDLE)
    began = time.monotonic()
    mesh.write(name, 60)
    wait_until(lambda: len(mesh.ready(name)) == 60, 0.02)
    times["sixty"].append(time.monotonic() - began)
    remove(mesh, client, name)


def remove(mesh: Cluster, client: Any, name: str) -> None:
    mesh.delete(name)
    wait_until(lambda: not engine.containers(client, label(name)), 0.05)


@contextmanager
def clean_engine(client: Any) -> Iterator[None]:
    """No container of a benchmark is left, however it ends."""
    try:
        yield
    finally:
        engine.remove(client.containers.list(all=True, filters={"label": "mesh.node=bench"}, ignore_removed=True))


def measure(rounds: int, folder: Path) -> Times:
    client = engine.client()
    engine.import_image(client)
    times: Times = defaultdict(list)
    own = engine.own_start(client, 2 * rounds + 1)
    times["own"].append(own)
    with clean_engine(client), cluster(folder) as mesh:
        for number in range(3 * rounds):
            reaction(mesh, client, own, times, number)
        for number in range(rounds):
            growth(mesh, client, times, number, idle=number == 0)
    for number in range(rounds):
        times["first"].append(dev_first_answer(folder / f"dev{number}"))
    return times


def swarm_times(rounds: int) -> Times:
    times: Times = defaultdict(list)
    with swarm.swarm() as (client, url):
        for _ in range(rounds):
            for key, value in swarm.measure(client, url).items():
                times[key].append(value)
    return times


def table(times: Times, peer: Times) -> str:
    """Markdown: median and range of every measure, and Swarm's median beside it."""
    lines = ["| measure | median | range | rounds | Swarm mode |", "|---|---|---|---|---|"]
    for key, text in MEASURES.items():
        values = times[key]
        if not values:
            continue
        beside = f"{statistics.median(peer[key]):.2f}" if peer.get(key) else ""
        lines.append(f"| {text} | {statistics.median(values):.2f} | {min(values):.2f}–{max(values):.2f}"
                     f" | {len(values)} | {beside} |")  # fmt: skip
    return "\n".join(lines)


def machine(client: Any) -> str:
    consul = subprocess.run(["consul", "version"], capture_output=True, text=True).stdout.splitlines()[0]
    system = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    return f"{datetime.date.today()}, {system}, Docker {client.version()['Version']}, {consul}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-swarm", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run as root: virtual IPs and a second engine need it")
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as folder:
        times = measure(options.rounds, Path(folder))
    peer = {} if options.without_swarm else swarm_times(options.rounds)
    print(f"\n{machine(engine.client())}. In seconds unless said otherwise.")
    print(f"The engine's own start took {times['own'][0]:.2f} s.\n")
    print(table(times, peer))


if __name__ == "__main__":
    main()
