"""How fast replicas are placed: decisions only, on one core; neither a store nor a container is involved.

    python -m bench.placement [--nodes N] [--replicas N] [--rounds N] [--traces FOLDER] [--peers SECONDS]

Without the traces (see `bench/traces.py`) Azure's stream is left out. Prints tables for docs/benchmarks.md. The machine
drifts: seconds are CPU time of this process, the least and the median of the rounds.
"""

from __future__ import annotations

import argparse
import gc
import platform
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench import traces
from bench.placement import ours
from bench.placement.mix import Mix, in_rounds, mixed, uniform
from bench.placement.ours import Placed, Timed
from bench.placement.peers import Plain

LOST = 0.1
ROUND = 1024
"""Services that are placed together, like beside like."""

Scene = Callable[[str], Timed]
"""Something to measure under a strategy."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--replicas", type=int, default=1_000_000, help="of the service mix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--traces", help="folder of the traces; default: $MESH_TRACES")
    parser.add_argument("--peers", type=float, default=5.0, help="seconds for each plain scheduler; 0: none")
    options = parser.parse_args()
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    print(f"{versions}, {options.nodes:,} nodes. Decisions only, one core.\n")
    mix, equals = mixed(options.nodes, options.replicas), uniform(options.nodes, 1000, 1000)
    sorted_mix = in_rounds(mix, ROUND)
    kept = memory(mix)
    print("| what | strategy | replicas | CPU s, least | median | replicas/s | µs a batch, p50 | p99 | not placed |")
    print("|---|---|---|---|---|---|---|---|---|")
    scenes: dict[str, Scene] = {
        f"{len(mix.services):,} services, one after the other": lambda strategy: place(mix, strategy).timed,
        f"the same in rounds of {ROUND:,}": lambda strategy: place(sorted_mix, strategy).timed,
        "1,000 services of 1,000": lambda strategy: place(equals, strategy).timed,
        f"{LOST:.0%} of the nodes lost": lambda strategy: place(mix, strategy).lose(LOST),
        **azure(traces.folder(options.traces), options.nodes),
    }
    for what, scene in scenes.items():
        for strategy in ("binpack", "spread"):
            measure(what, strategy, options.rounds, scene)
    print(f"\n{kept}\n")
    if options.peers:
        peers(mix, options.peers)


def place(mix: Mix, strategy: str) -> Placed:
    gc.collect()
    return Placed(mix, strategy, progress=lambda done: told(f"{strategy}: {done:,} of {len(mix.services):,}"))


def measure(what: str, strategy: str, rounds: int, scene: Scene) -> None:
    """One line of the table."""
    found = []
    for number in range(rounds):
        told(f"{what}, {strategy}: round {number + 1} of {rounds}")
        found.append(scene(strategy))
    best = min(found, key=lambda timed: timed.cpu)
    middle = statistics.median(timed.cpu for timed in found)
    p50, p99 = (float(np.percentile(best.each, share)) * 1e6 for share in (50, 99))
    missing = best.asked - best.placed
    told("")
    print(
        f"| {what} | {strategy} | {best.asked:,} | {best.cpu:.2f} | {middle:.2f} | {best.asked / best.cpu:,.0f} "
        f"| {p50:.0f} | {p99:.0f} | {missing:,} ({missing / best.asked:.2%}) |",
        flush=True,
    )


def azure(folder: Path | None, nodes: int) -> dict[str, Scene]:
    """The published stream, if it is here."""
    if folder is None:
        print("Without Azure's stream: set MESH_TRACES or give --traces.\n")
        return {}
    try:
        trace = traces.azure_vms(folder)
    except OSError as error:
        sys.exit(f"cannot read the traces: {error}")
    return {
        "Azure, in order of arrival": lambda strategy: ours.azure(trace, nodes, strategy, 1),
        "Azure, in rounds of 256": lambda strategy: ours.azure(trace, nodes, strategy, 256),
    }


def memory(mix: Mix) -> str:
    """What a million placed replicas add to a process that has placed nothing yet."""
    before = resident()
    placed = place(mix, "binpack")
    added = (resident() - before) / 2**20 / placed.timed.placed * 1e6
    told("")
    return f"Memory: {added:.0f} MiB per million replicas, with the cluster and all that is kept of it."


def resident() -> int:
    """Bytes of this process that are in memory now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peers(mix: Mix, seconds: float) -> None:
    """The plain schedulers on the same mix, from its beginning, for some seconds."""
    print(f"| the mix, its first seconds ({seconds:g} s each) | replicas/s |")
    print("|---|---|")
    for name, sampling in (("one at a time, every node, plain Python", False), ("one at a time, log2(n) nodes", True)):
        told(f"{name} …")
        cpu, placed = Plain(mix, sampling=sampling).run(seconds)
        told("")
        print(f"| {name} | {placed / cpu:,.0f} |", flush=True)


def told(text: str) -> None:
    """Says on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
