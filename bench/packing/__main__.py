"""How many nodes it takes: our placement and repack beside others' rules, and beside a proven bound.

    python -m bench.packing [--traces FOLDER] [--orders N]

Every rule gets the same requests in the same order. Without the traces (see `bench/traces.py`) a made-up mix stands in.
Prints tables for docs/benchmarks.md. Nothing here is timed: the numbers are the same on every machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import traces
from bench.packing import gpus, ours, peers
from bench.packing.bound import Certificate, certify

Integers = NDArray[np.int64]

REPACKED_SHARE = 0.05
LEAVING = 0.2
"""Of the replicas that are gone when a cluster is repacked plan by plan."""
AZURE_REQUESTS = 20_000
AZURE_SKIPPED = (0, 60_000, 600_000)
PUBLISHED = {"FGD": 95.39, "best fit": 93.08}
"""Per cent of openb's GPUs, ten seeds (the authors' expected_results/analysis_allo_discrete.csv)."""


@dataclass(frozen=True, slots=True)
class Case:
    """Requests in several orders, and the room of the nodes, all alike."""

    name: str
    orders: Sequence[Integers]
    room: Integers


@dataclass(slots=True)
class Found:
    """One order: the bound, and the nodes that each rule needed."""

    bound: Certificate
    nodes: dict[str, int]
    moved: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", help="folder of the traces; default: $MESH_TRACES")
    parser.add_argument("--orders", type=int, default=3, help="of each trace")
    options = parser.parse_args()
    folder = traces.folder(options.traces)
    if folder is None:
        print("No traces: set MESH_TRACES or give --traces. This is a made-up mix.\n")
        cases = [made_up(options.orders)]
        report(cases)
        report_churn(cases)
        return
    try:
        cluster = traces.openb(folder)
        cases = [openb(cluster, options.orders), *azure(folder, options.orders)]
    except OSError as error:
        sys.exit(f"cannot read the traces: {error}")
    report(cases)
    report_churn(cases)
    report_gpus(cluster, options.orders)


# ── the requests ─────────────────────────────────────────────────────────────────────────────────


def openb(cluster: traces.GPUCluster, orders: int) -> Case:
    asked = gpus.demands(cluster)
    room = np.array([128_000, 768 * 1024, 8_000])
    return Case("openb, 128 cores, 768 GiB, 8 GPUs (pooled)", [asked, *shuffled(asked, orders - 1)], room)


def azure(folder: Path, orders: int) -> list[Case]:
    """Slices of the stream as it came; the second kind of node is small in memory, so that both dimensions bind."""
    vms = traces.azure_vms(folder, AZURE_SKIPPED[-1] + AZURE_REQUESTS)
    asked = vms.sizes[vms.flavour]
    slices = [asked[begin : begin + AZURE_REQUESTS] for begin in AZURE_SKIPPED]
    slices += shuffled(slices[0], orders - len(slices))
    return [Case(f"Azure, 48 cores, {memory} GiB", slices[:orders], np.array([48_000, memory * 1024]))
            for memory in (384, 112)]  # fmt: skip


def made_up(orders: int) -> Case:
    """Pieces of GPUs beside services without any."""
    chance = np.random.default_rng(0)
    count = 4000
    cpu = chance.choice([500, 1000, 2000, 4000, 8000], count)
    memory = cpu * chance.choice([1, 2, 4, 8], count) * 1024 // 1000
    gpu = chance.choice([0, 0, 250, 460, 810, 1000, 2000], count)
    asked = np.column_stack([cpu, memory, gpu])
    return Case("made up, 64 cores, 256 GiB, 8 GPUs", shuffled(asked, orders), np.array([64_000, 256 * 1024, 8_000]))


def shuffled(asked: Integers, times: int) -> list[Integers]:
    return [asked[np.random.default_rng(seed).permutation(len(asked))] for seed in range(times)]


# ── what comes out ───────────────────────────────────────────────────────────────────────────────

OURS = "ours, online"
REPACKED = "ours, repacked"
NOMAD = "Nomad BestFit"


def judge(case: Case, asked: Integers) -> Found:
    """All rules on one order."""
    bound = certify(asked, case.room)
    shares = asked / case.room
    rules: dict[str, Callable[[], int | None]] = {
        NOMAD: lambda: peers.online(shares, peers.nomad_best_fit),
        "MostAllocated": lambda: peers.online(shares, peers.most_allocated),
        "LeastAllocated": lambda: peers.smallest_fleet(shares, peers.least_allocated, bound.nodes),
        "FFD": lambda: peers.decreasing(shares, best=False),
        "BFD": lambda: peers.decreasing(shares, best=True),
    }
    needed = {name: rule() or 0 for name, rule in rules.items()}
    sizes, classes = np.unique(asked, axis=0, return_inverse=True)
    plans = ours.blueprints(sizes)
    fleet = ours.empty_nodes(np.tile(case.room, (needed[NOMAD] * 5 // 4, 1)))
    nodes, refused = ours.place_in_rounds(fleet, plans, classes.ravel())
    if refused:
        raise RuntimeError(f"{case.name}: {refused} requests found no place")
    tidied, moves = ours.repacked(nodes, plans, REPACKED_SHARE)
    needed = {OURS: ours.in_use(nodes), REPACKED: ours.in_use(tidied), **needed}
    return Found(bound, needed, moves / len(asked))


def report(cases: Sequence[Case]) -> None:
    """One row for each case and order: the bound, then nodes and their excess over it."""
    header = ["requests", "order", "bound", OURS, f"repacked ≤ {REPACKED_SHARE:.0%} (moved)",
              NOMAD, "MostAllocated", "LeastAllocated", "FFD", "BFD"]  # fmt: skip
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    proofs = []
    for case in cases:
        found = []
        for number, asked in enumerate(case.orders, 1):
            print(f"{case.name}, order {number}", file=sys.stderr)
            one = judge(case, asked)
            found.append(one)
            cells = {name: excess(count, one.bound.nodes) for name, count in one.nodes.items()}
            cells[REPACKED] += f" ({one.moved:.1%})"
            print(f"| {case.name} | {number} | {one.bound.nodes:,} | " + " | ".join(cells.values()) + " |", flush=True)
        excesses = {name: statistics.median(one.nodes[name] / one.bound.nodes - 1 for one in found)
                    for name in found[0].nodes}  # fmt: skip
        print(f"| {case.name} | median | | " + " | ".join(f"{value:+.2%}" for value in excesses.values()) + " |")
        proofs.append(f"- {case.name}: {found[0].bound.value:,.3f} nodes; {found[0].bound.proof}.")
    print("\nBounds (first order), by prices that a pattern cannot exceed:\n" + "\n".join(proofs))


def excess(count: int, bound: int) -> str:
    return f"{count:,} ({count / bound - 1:+.2%})"


def report_churn(cases: Sequence[Case]) -> None:
    """What one plan after the other makes of a packed cluster that some replicas have left."""
    header = ["requests", "bound", f"in use after {LEAVING:.0%} have left", "after each plan", "excess", "moved"]
    print("\n| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for case in cases:
        sizes, classes = np.unique(case.orders[0], axis=0, return_inverse=True)
        plans = ours.blueprints(sizes)
        fleet = ours.empty_nodes(np.tile(case.room, (2 * certify(case.orders[0], case.room).nodes, 1)))
        nodes, _ = ours.place_in_rounds(fleet, plans, classes.ravel())
        nodes = ours.without_some(nodes, LEAVING)
        left = [int(held.service.removeprefix("class-")) for node in nodes for held in node.holdings]
        bound = certify(sizes[left], case.room).nodes
        before, moved = ours.in_use(nodes), 0
        counts: list[int] = []
        while True:
            nodes, moves = ours.repacked(nodes, plans, REPACKED_SHARE)
            if not moves:
                break
            moved += moves
            counts.append(ours.in_use(nodes))
        after, share = ours.in_use(nodes), moved / len(left)
        cells = [case.name, f"{bound:,}", f"{before:,}", ", ".join(f"{count:,}" for count in counts),
                 f"{after / bound - 1:+.2%}", f"{share:.1%}"]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def report_gpus(cluster: traces.GPUCluster, seeds: int) -> None:
    """The allocated share of openb's GPUs."""
    print("\n| GPUs allocated at 130 % arrivals, pooled | median | range |\n|---|---|---|")
    for name, rule in (("ours", gpus.ours), ("best fit", gpus.best_fit)):
        shares = [100 * rule(cluster, seed) for seed in range(seeds)]
        print(f"| {name} | {statistics.median(shares):.2f} % | {min(shares):.2f}–{max(shares):.2f} |")
    published = ", ".join(f"{name} {share} %" for name, share in PUBLISHED.items())
    print(f"\nPublished, with devices told apart: {published}.")


if __name__ == "__main__":
    main()
