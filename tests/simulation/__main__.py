"""`python -m tests.simulation --seed 7 --story` or `--seeds 1..200`: see `--help`."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator

from tests.simulation.run import Run, story

PROGRESS = 10.0
"""Seconds between two lines that say how far it has come."""

Task = tuple[int, int | None, bool]
"""A seed, how many nodes instead of what it says, and whether it is run plain."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="A simulated cluster, faults drawn from a seed, and an oracle."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one run")
    which.add_argument("--seeds", metavar="A..B", help="many, to the first violation; several with commas between")
    parser.add_argument("--nodes", type=int, help="so many instead of what the seed says")
    parser.add_argument("--plain", action="store_true", help="services without extras, on few nodes")
    parser.add_argument("--story", action="store_true", help="tell what happened, also where nothing was violated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--keep-going", action="store_true", help="look for all violations")
    options = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of strings are walked in an order of their own otherwise
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *arguments], environment)
    if options.seed is not None:
        return _one((options.seed, options.nodes, options.plain), told=options.story)
    return _many([(seed, options.nodes, options.plain) for seed in _seeds(options.seeds)], options)


def _seeds(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("..")
        yield from range(int(first), int(last or first) + 1)


def _one(task: Task, *, told: bool) -> int:
    seed, nodes, plain = task
    result = Run(seed, nodes, plain=plain, story=True)()
    if told or result.violations:
        print(story(result.facts, result.violations))
    verdict = "; ".join(map(str, result.violations)) or "nothing is violated"
    print(f"seed {seed}: {verdict} ({result.virtual:.0f} virtual s, {result.steps} steps, digest {result.digest})")
    return bool(result.violations)


def _brief(task: Task) -> tuple[Task, list[str], float]:
    seed, nodes, plain = task
    try:
        result = Run(seed, nodes, plain=plain)()
    except Exception as error:  # a run that breaks is a finding as well, and the others go on
        return task, [f"the simulation itself failed: {error!r}"], 0.0
    return task, [str(violation) for violation in result.violations], result.virtual


def _many(tasks: list[Task], options: argparse.Namespace) -> int:
    began = told = time.monotonic()
    bad: list[Task] = []
    done, virtual = 0, 0.0
    gc.freeze()  # what has been imported is looked at after no run
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=50) as pool:
        for task, violations, seconds in pool.imap_unordered(_brief, tasks):
            done += 1
            virtual += seconds
            if violations:
                bad.append(task)
                print(f"seed {task[0]}: {violations[0]}", flush=True)
                if not options.keep_going:
                    break
            if (now := time.monotonic()) - told >= PROGRESS:
                told = now
                print(f"{done} of {len(tasks)} seeds done, {len(bad)} violations so far", flush=True)
        if bad and not options.keep_going:
            pool.terminate()
    spent = time.monotonic() - began
    if bad and not options.keep_going:
        _one(bad[0], told=True)
        print("replay it: python -m tests.simulation --seed", _replay(bad[0]))
    print(f"{done / spent:.1f} seeds a second, {virtual / 3600:.1f} virtual hours")
    print(f"{done} seeds, {len(bad)} violations")
    return bool(bad)


def _replay(task: Task) -> str:
    seed, nodes, plain = task
    return f"{seed}" + (f" --nodes {nodes}" if nodes else "") + (" --plain" if plain else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
