"""`python -m tests.simulation --seed 7 --story` or `--seeds 1..200`: see `--help`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

from tests.simulation.run import Run, story


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="A simulated cluster, faults drawn from a seed, and an oracle."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one run")
    which.add_argument("--seeds", metavar="A..B", help="many, to the first violation")
    parser.add_argument("--nodes", type=int, help="so many instead of what the seed says")
    parser.add_argument("--story", action="store_true", help="tell what happened, also where nothing was violated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--keep-going", action="store_true", help="look for all violations")
    options = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of strings are walked in an order of their own otherwise
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *arguments], environment)
    if options.seed is not None:
        return _one(options.seed, options.nodes, told=options.story)
    first, _, last = options.seeds.partition("..")
    return _many(range(int(first), int(last or first) + 1), options)


def _one(seed: int, nodes: int | None, *, told: bool) -> int:
    result = Run(seed, nodes, story=True)()
    if told or result.violations:
        print(story(result.facts, result.violations))
    verdict = "; ".join(map(str, result.violations)) or "nothing is violated"
    print(f"seed {seed}: {verdict} ({result.virtual:.0f} virtual s, {result.steps} steps, digest {result.digest})")
    return bool(result.violations)


def _brief(seed: int, nodes: int | None) -> tuple[int, list[str], float]:
    result = Run(seed, nodes)()
    return seed, [str(violation) for violation in result.violations], result.virtual


def _task(arguments: tuple[int, int | None]) -> tuple[int, list[str], float]:
    return _brief(*arguments)


def _many(seeds: range, options: argparse.Namespace) -> int:
    began = time.monotonic()
    bad: list[int] = []
    done, virtual = 0, 0.0
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=50) as pool:
        for seed, violations, seconds in pool.imap_unordered(_task, [(seed, options.nodes) for seed in seeds]):
            done += 1
            virtual += seconds
            if violations:
                bad.append(seed)
                print(f"\rseed {seed}: {violations[0]}", flush=True)
                if not options.keep_going:
                    break
            if sys.stderr.isatty():
                print(f"\r{done}/{len(seeds)}", end="", file=sys.stderr, flush=True)
        if bad and not options.keep_going:
            pool.terminate()
    spent = time.monotonic() - began
    rate = f"{done / spent:.1f} a second, {virtual / 3600:.1f} virtual hours"
    print(f"\r{done} seeds, {len(bad)} with violations, {rate}")
    if bad and not options.keep_going:
        _one(bad[0], options.nodes, told=True)
        print(f"replay it: python -m tests.simulation --seed {bad[0]}"
              + (f" --nodes {options.nodes}" if options.nodes else ""))  # fmt: skip
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
