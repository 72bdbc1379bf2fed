"""What replicas use of CPU and memory: read from /proc, from the kernel's control groups, or asked of an engine.

CPU is a counter, so whoever wants a rate takes it twice. Memory is what cannot be had back by dropping the file cache,
as `docker stats` and Kubernetes count it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one replica: CPU seconds since it began, bytes now."""

    cpu: float
    memory: int


def of_sessions(leaders: Mapping[int, str]) -> dict[str, Usage]:
    """Of the processes in these sessions, by what their leaders stand for: one walk through /proc.

    CPU includes children that have ended and were waited for.
    """
    used: dict[str, Usage] = {}
    for pid in (name for name in os.listdir("/proc") if name.isdecimal()):
        with suppress(OSError, ValueError):
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            fields = stat.rpartition(")")[2].split()  # proc(5), from the third on
            id = leaders.get(int(fields[3]))
            if id is not None:
                before = used.get(id, Usage(0.0, 0))
                ticks = sum(map(int, fields[11:15]))
                used[id] = Usage(before.cpu + ticks / _TICKS, before.memory + int(fields[21]) * _PAGE)
    return used


class Cgroup:
    """The control group of a process, as this host's kernel counts it: version 2, or 1 with its two hierarchies."""

    def __init__(self, cpu: Path, memory: Path, *, unified: bool) -> None:
        self._cpu = cpu
        self._memory = memory
        self._unified = unified

    @classmethod
    def of(cls, pid: int, container: str) -> Cgroup | None:
        """None where it cannot be read here: another machine's process, or a kernel's view that is not ours."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return None
        paths: dict[str, str] = {}
        for line in lines:
            _, controllers, path = line.split(":", 2)
            paths.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
        if not any(container in path for path in paths.values()):
            return None
        if "memory" in paths and "cpuacct" in paths:
            found = cls(_CGROUPS / "cpuacct" / paths["cpuacct"], _CGROUPS / "memory" / paths["memory"], unified=False)
        else:
            whole = _CGROUPS / paths.get("", "")
            found = cls(whole, whole, unified=True)
        return found if found.usage() else None

    def usage(self) -> Usage | None:
        """None once it is gone."""
        try:
            if self._unified:
                cpu = _figures(self._cpu / "cpu.stat")["usage_usec"] / 1e6
                memory = int((self._memory / "memory.current").read_text())
                cache = _figures(self._memory / "memory.stat").get("inactive_file", 0)
            else:
                cpu = int((self._cpu / "cpuacct.usage").read_text()) / 1e9
                memory = int((self._memory / "memory.usage_in_bytes").read_text())
                cache = _figures(self._memory / "memory.stat").get("total_inactive_file", 0)
        except (OSError, ValueError, KeyError):
            return None
        return Usage(cpu, max(0, memory - cache))


def _figures(path: Path) -> dict[str, int]:
    return {name: int(value) for name, _, value in (line.partition(" ") for line in path.read_text().splitlines())}


def of_stats(stats: Mapping[str, Any]) -> Usage | None:
    """What an engine's stats say of a container; None if it does not run."""
    try:
        memory = stats["memory_stats"]
        detail = memory.get("stats", {})
        cache = detail.get("inactive_file", detail.get("total_inactive_file", 0))
        return Usage(stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, max(0, memory["usage"] - cache))
    except KeyError:
        return None
