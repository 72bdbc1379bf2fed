"""How well and how fast replicas follow a load: ours beside Kubernetes' and Knative's rules, on the same load.

    python -m bench.autoscale [--traces FOLDER] [--plot FILE]

Without the traces (see `bench/traces.py`) an invented hour stands in. Everything but the last table is a simulation,
and the same on every machine: the model is in `fleet.py`. Prints tables for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench import traces
from bench.autoscale import loads
from bench.autoscale.fleet import RULES, START, Run, play
from bench.autoscale.loads import Load
from bench.autoscale.plot import svg
from mesh.model import ReplicaState
from mesh.scheduler.autoscale.autoscaler import Autoscaler
from mesh.scheduler.autoscale.model import Reading, ReplicaReading, Sample, Target
from mesh.spec.scale import Scale

CAPACITY = 10
"""Requests that a replica carries at once."""
PHASES = 15
"""Runs of each rule: when in its 15 s HPA looks is chance."""
CHANGED = 120
"""The second in which a step begins."""
SERVICES = 10_000
NOISES = (("uniform", 0.1), ("uniform", 0.2), ("normal", 0.05), ("normal", 0.1), ("normal", 0.15), ("normal", 0.2),
          ("poisson", 0.0))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", help="folder of the traces; default: $MESH_TRACES")
    parser.add_argument("--plot", metavar="FILE", help="write load and replicas over time as SVG")
    options = parser.parse_args()
    folder = traces.folder(options.traces)
    if folder is None:
        print("no traces (--traces, MESH_TRACES): an invented hour stands in", file=sys.stderr)
    load = loads.conversations(folder) if folder else loads.invented()
    print(f"\n### An hour of {'Azure conversations' if folder else 'invented requests'}\n")
    runs = hour(load)
    print("\n### The same without its first minute, in which it fills from nothing\n")
    hour(load.after(60))
    print("\n### Replicas of other sizes\n")
    sizes(load)
    print("\n### A step\n")
    steps()
    print("\n### Noise around a constant load\n")
    noise()
    print(f"\n### {SERVICES:,} services\n")
    ticks()
    if options.plot:
        titles = [f"{rule}: {100 * run.short:.2f} % of seconds short, {run.cost:.2f} × ideal cost"
                  for rule, run in zip(RULES, runs, strict=True)]  # fmt: skip
        Path(options.plot).write_text(svg(runs, titles))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(map(str, row))} |")


def middle(runs: list[Run]) -> Run:
    """The run that is short of capacity neither most nor least often."""
    return sorted(runs, key=lambda run: (run.short, run.cost))[len(runs) // 2]


def hour(load: Load) -> list[Run]:
    """Each rule on a real load; the run in the middle of each."""
    runs = [Run(load, rule, CAPACITY) for rule in RULES for _ in range(PHASES)]
    play(runs)
    found = [middle([run for run in runs if run.rule == rule]) for rule in RULES]
    table(
        ["rule", "seconds short of capacity", "load beyond capacity", "cost ÷ ideal", "changes"],
        [[run.rule, f"{100 * run.short:.2f} %", f"{100 * run.excess:.3f} %", f"{run.cost:.3f}", run.changes]
         for run in found],
    )  # fmt: skip
    return found


def sizes(load: Load) -> None:
    """The same with smaller and larger replicas: seconds short, and cost."""
    capacities = (5, 8, 10, 12, 16, 20)
    runs = [Run(load, rule, capacity) for rule in RULES for capacity in capacities]
    play(runs)
    rows = [[rule, *(f"{100 * run.short:.2f} %, {run.cost:.2f}" for run in runs if run.rule == rule)] for rule in RULES]
    table(["rule", *(f"{capacity} at once" for capacity in capacities)], rows)


def steps() -> None:
    """Seconds until enough is decided on, and until it is ready; the worst of several moments within a second."""
    rows = []
    for factor in (2, 10, 50):
        runs = [Run(loads.step(50, factor, CHANGED + offset), rule, CAPACITY)
                for rule in RULES for offset in (0.0, 0.25, 0.5, 0.75) for _ in range(PHASES)]  # fmt: skip
        play(runs)
        cells = []
        for rule in RULES:
            mine = [run for run in runs if run.rule == rule]
            enough = float(mine[0].load.in_flight[-1])
            decided = [first_from(run.wanted, enough / CAPACITY) - begun(run) for run in mine]
            ready = [first_from(run.ready, enough / CAPACITY) - begun(run) - 1 for run in mine]
            cells.append(f"{max(decided):.1f} / {max(ready):.1f}")
        rows.append([f"×{factor}", *cells])
    table(["step", *(f"{rule}: decided / ready, s" for rule in RULES)], rows)
    print(f"\nA start takes {START} s.")


def first_from(counts: list[int], enough: float) -> float:
    """The end of the first second, from a change on, in which a count is enough."""
    return next((second + 1 for second in range(CHANGED, len(counts)) if counts[second] >= enough), np.inf)


def begun(run: Run) -> float:
    """When the load changed: within a second, as its mean shows."""
    before, mean, after = (float(run.load.in_flight[second]) for second in (CHANGED - 1, CHANGED, CHANGED + 1))
    return CHANGED + 1 - (mean - before) / (after - before)


def noise() -> None:
    """How often each rule turns round."""
    rows: list[Sequence[object]] = []
    for kind, size in NOISES:
        load = loads.noisy(kind, 100.0, size)
        runs = [Run(load, rule, CAPACITY) for rule in RULES]
        play(runs)
        cells = [f"{run.turns()[0]:.2f}, {run.turns()[1]}" for run in runs]
        rows.append([f"{kind}{f', {size:.0%}' if size else ''}", *cells])
    table(["noise", *(f"{rule}: turns a minute, most in any" for rule in RULES)], rows)


def ticks() -> None:
    """CPU time of a tick for many services whose counts suit them: what deciding takes, and what reading."""
    replicas = [ReplicaReading(id="", state=ReplicaState.READY, values={"in_flight": 7.0}) for _ in range(5)]
    rows: list[Sequence[object]] = []
    for mode in ("predictive", "kpa", "hpa"):
        autoscaler = Autoscaler(0)
        target = Target(scale=Scale.model_validate({"max": 1000, "mode": mode, "metrics": [{"in_flight": 10}]}))
        autoscaler.follow({str(number): target for number in range(SERVICES)})
        random, deciding, reading = np.random.default_rng(1), [], []
        for second in range(100):
            loads_now = 45 * (1 + 0.05 * random.standard_normal(SERVICES))
            readings = {
                str(number): Reading(current=5, replicas=replicas, metrics={"in_flight": Sample(value=float(value))})
                for number, value in enumerate(loads_now)
            }
            began = time.thread_time()
            autoscaler.tick(second, readings)
            between = time.thread_time()
            autoscaler.tick(second + 0.5, {})
            deciding.append(1000 * (time.thread_time() - between))
            reading.append(1000 * (between - began) - deciding[-1])
        worst = sorted(deciding)[98]
        rows.append([mode, f"{statistics.median(deciding):.2f}", f"{worst:.2f}", f"{statistics.median(reading):.1f}"])
    table(["mode", "deciding, ms", "99th percentile", "taking in that many new readings, ms"], rows)


if __name__ == "__main__":
    main()
