"""Processes under measurement: pinned to a core, their CPU time and memory read from /proc, ended by their pids."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

SERVER_CORE, LOAD_CORE = 0, 1


def stat_of(pid: int) -> list[str]:
    """proc(5): the fields of `stat` after the name; 11 to 14 are the CPU times, own and of children waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended, and counts as waited for
        return ["0"] * 15


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def family(pid: int) -> list[int]:
    """The process and all below it."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def cpu_seconds(pid: int) -> float:
    """What it has used so far, with its children (dnsmasq has one per TCP connection, nginx its workers)."""
    ticks = sum(sum(map(int, stat_of(one)[11:15])) for one in family(pid))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes resident, with its children."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) * page for one in family(pid))


def pin(pid: int, core: int = SERVER_CORE) -> None:
    """Keeps the process, its threads and its children on one core."""
    for one in family(pid):
        for task in Path(f"/proc/{one}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})


@asynccontextmanager
async def running(command: Sequence[str | Path], log: Path, core: int = SERVER_CORE) -> AsyncIterator[int]:
    """A program on a core of its own; yields its pid, ends it afterwards."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            "taskset", "--cpu-list", str(core), *map(str, command), stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
