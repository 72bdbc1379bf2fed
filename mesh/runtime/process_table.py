"""Processes named for good: by their number and the time they began, so that a number used again does no harm."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessId:
    pid: int
    began: int
    """Clock ticks after the boot: field 22 of proc(5)'s /proc/<pid>/stat."""

    @classmethod
    def parse(cls, stat: str) -> ProcessId:
        """Of a line of /proc/<pid>/stat. Raises `ValueError`."""
        pid, _, rest = stat.partition(" ")
        fields = rest.rpartition(")")[2].split()  # from the third on; the second is a name in brackets
        if len(fields) < 20:
            raise ValueError(f"not a line of /proc/<pid>/stat: {stat!r}")
        return cls(int(pid), int(fields[19]))

    @classmethod
    def now_at(cls, pid: int) -> ProcessId | None:
        """The process that has this number now, unless it has ended and only waits to be reaped."""
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                stat = file.read()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if stat.rpartition(")")[2].split()[0] in "ZX" else cls.parse(stat)

    def alive(self) -> bool:
        return ProcessId.now_at(self.pid) == self

    def signal(self, number: int) -> None:
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Signals the group this process leads, also where only others of the group are left."""
        if ProcessId.now_at(self.pid) not in (self, None):
            return  # the number is another's by now, so the group is empty
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            self.signal(number)  # it has not made its group yet

    async def ended(self, timeout: float | None = None) -> bool:
        """Waits for the end; False if it has not come within `timeout` seconds. Reaps a child of ours."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if self.alive():  # asked only now: the descriptor is surely of this process
                async with asyncio.timeout(timeout):
                    await readable(descriptor)
        except TimeoutError:
            return False
        finally:
            os.close(descriptor)
        _reap(self.pid)
        return True


async def readable(descriptor: int) -> None:
    """Returns when there is something to read, or, on a pidfd, when the process has ended."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _reap(pid: int) -> None:
    """Collects a child that has ended; anyone else's is not ours to collect."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty if it has ended, is another's, or has overwritten it."""
    variables = (variable.partition(b"=") for variable in _environ(pid).split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, equals, value in variables if equals}


def processes_with(variable: str, value: str) -> list[ProcessId]:
    """Processes of ours that were started with this variable at this value."""
    wanted = b"\0" + os.fsencode(f"{variable}={value}") + b"\0"
    found = (ProcessId.now_at(pid) for pid in _pids() if wanted in b"\0" + _environ(pid))
    return [process for process in found if process]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _environ(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""
