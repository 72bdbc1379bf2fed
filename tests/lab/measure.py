"""Suffers every fault and every event, several times, and writes their rows of the tables of docs/failures.md anew.

    python -m tests.lab.measure [--samples N] [--only WORD…] [--keep FILE]      (as root; `make bench-lab`)

Five hosts, three of them Consul servers, ten replicas, 200 requests a second. All of it takes an hour. A row is of the
samples of one run, or of all that `--keep` has gathered in a file; rows of what was not measured stay as they are.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from tests.lab import events
from tests.lab.events import EVENTS, Event
from tests.lab.faults import FAULTS, Fault, suffer
from tests.lab.lab import Lab, remove
from tests.lab.operator import Operator, eventually
from tests.lab.system import LabError
from tests.lab.traffic import Traffic

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
HOSTS, SERVERS, REPLICAS = 5, 3, 10
REQUESTS = 10_000
"""At least, during each event; it is repeated until then."""

T = TypeVar("T", Event, Fault)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Of one fault or event; seconds."""

    name: str
    day: str
    requests: int
    failed: int
    out: float | None = None
    moved: float | None = None
    unserved: float = 0.0
    slowest: float = 0.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=3, help="of each fault")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="what has one of these in its name")
    parser.add_argument("--keep", type=Path, help="a file of samples: new ones are added, and all count for the tables")
    options = parser.parse_args(arguments)

    takes: list[Callable[[Operator], Sample]] = [
        partial(_during, event=event) for event in _named(EVENTS, options.only)
    ]
    for fault in _named(FAULTS, options.only):
        takes += [partial(_suffered, fault=fault)] * options.samples
    keep: Path | None = options.keep
    samples = msgspec.json.decode(keep.read_bytes(), type=list[Sample]) if keep and keep.exists() else []
    operator = Operator(Lab.up(HOSTS, SERVERS, say=print), REPLICAS)
    broken = 0
    try:
        operator.load_image()
        events.serve(operator)
        for take in takes:
            try:
                samples.append(take(operator))
            except (AssertionError, LabError) as error:
                broken += 1
                print(f"BROKEN {take}: {error}", file=sys.stderr, flush=True)
                for host in operator.names():
                    operator.lab.heal(host)
                continue
            print(samples[-1], file=sys.stderr, flush=True)
            write_tables(PAGE, samples)
            if keep:
                keep.write_bytes(msgspec.json.encode(samples))
    finally:
        remove()
    return 1 if broken else 0


def _named(every: Iterable[T], words: Sequence[str]) -> list[T]:
    return [one for one in every if any(word in one.name for word in words)]


def _during(operator: Operator, event: Event) -> Sample:
    with Traffic(operator.vip(), operator.names()) as traffic:
        eventually("load", traffic.more(100))
        while traffic.total < REQUESTS:
            event.do(operator)
    return Sample(name=event.name, day=_today(), requests=traffic.total, failed=len(traffic.failures),
                  slowest=traffic.slowest)  # fmt: skip


def _suffered(operator: Operator, fault: Fault) -> Sample:
    found = suffer(operator, fault, fault.lasts)
    return Sample(name=fault.name, day=_today(), requests=found.requests, failed=len(found.failures), out=found.out,
                  moved=found.moved, unserved=found.unserved)  # fmt: skip


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


# ── the tables


def write_tables(page: Path, samples: Sequence[Sample]) -> None:
    """Puts what was measured between the marks of the page; a row without a sample stays as it is."""
    text = page.read_text(encoding="utf-8")
    for table, rows in (("events", event_rows(samples)), ("faults", fault_rows(samples))):
        begin, end = f"<!-- {table}: written by make bench-lab -->\n", f"<!-- end of {table} -->\n"
        before, _, rest = text.partition(begin)
        body, _, after = rest.partition(end)
        head, line, *old = body.splitlines(keepends=True)
        kept = {row.split(" | ")[0].removeprefix("| "): row for row in old}
        lines = [row or kept.get(name, "") for name, row in rows.items()]
        text = before + begin + head + line + "".join(lines) + end + after
    page.write_text(text, encoding="utf-8")


def event_rows(samples: Sequence[Sample]) -> dict[str, str]:
    """A line for each event, empty for what was not measured; of several samples the newest counts."""
    rows = {event.name: "" for event in EVENTS}
    for one in samples:
        if one.name in rows:
            slowest = f"{one.slowest * 1000:.0f} ms"
            rows[one.name] = _row(one.name, f"{one.requests:,}", one.failed or "none", slowest, one.day)
    return rows


def fault_rows(samples: Sequence[Sample]) -> dict[str, str]:
    """A line for each fault, empty for what was not measured."""
    rows = {}
    for fault in FAULTS:
        name, of_it = _named_with_length(fault), [sample for sample in samples if sample.name == fault.name]
        outs = _seconds(one.out for one in of_it) or "stays in traffic"
        moves = _seconds(one.moved for one in of_it) or "nothing moved"
        days = ", ".join(sorted({one.day for one in of_it}))
        rows[name] = _row(name, len(of_it), outs, moves, _failed(of_it), fault.swarm, days) if of_it else ""
    return rows


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def _named_with_length(fault: Fault) -> str:
    has_length = fault.lasts > 0 and not re.search(r"\d s", fault.name)
    return f"{fault.name}, for {fault.lasts:g} s" if has_length else fault.name


def _seconds(times: Iterable[float | None]) -> str:
    """`0.8 (1.1) s`: the median, and the worst of several."""
    known = [time for time in times if time is not None]
    if len(known) > 1:
        return f"{statistics.median(known):.1f} ({max(known):.1f}) s"
    return f"{known[0]:.1f} s" if known else ""


def _failed(samples: Sequence[Sample]) -> str:
    total, failed = sum(one.requests for one in samples), sum(one.failed for one in samples)
    if not failed:
        return f"none of {total:,}"
    return f"{failed} of {total:,}, begun up to {max(0.0, *(one.unserved for one in samples)):.1f} s after it"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
