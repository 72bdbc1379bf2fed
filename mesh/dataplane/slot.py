"""One place for a worker: kept filled, whatever ends its process, and handed on without a gap.

A successor is born with the sockets of the place (`sockets.py`), gets the Table, and serves beside its predecessor;
only then is that told to drain. A process that ends by itself is followed at once, by one that finds the same sockets,
and where workers share the work by one that stood by (`newcomer.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec

from mesh import __version__
from mesh.aio import Backoff, Tasks
from mesh.dataplane.feed import Link
from mesh.dataplane.frames import Quit
from mesh.dataplane.newcomer import Newcomers
from mesh.dataplane.sockets import Shelf
from mesh.dataplane.worker import Arguments, DnsArguments, kind_of

log = logging.getLogger(__name__)

ADOPTION = 1.0
"""Seconds a worker of an earlier supervisor has to say hello."""
START = 10.0
"""Seconds a successor has until it answers from the Table; then its predecessor goes on."""
GRACE = 5.0
"""Seconds a worker has to end, beyond the time it was given for open work."""
STEADY = 1.0
"""A process that lived for that long is followed at once, another after a wait that grows."""


class Process:
    """A worker's process, a child or not; its link, once it has said hello."""

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.link: Link | None = None
        self.ended = asyncio.Event()
        self.code: int | None = None
        self._descriptor = -1
        self._child = child
        self._news = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.begun = loop.time()
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self.ended.set()
        else:
            loop.add_reader(self._descriptor, self._has_ended)

    def _has_ended(self) -> None:
        self.forget()
        self.code = self._child.wait() if self._child else None
        self.ended.set()
        self.changed()

    def forget(self) -> None:
        """Watches it no more."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def age(self) -> float:
        return asyncio.get_running_loop().time() - self.begun

    def changed(self) -> None:
        """Something happened that `until` may wait for."""
        self._news.set()

    async def until(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        """Waits for a condition that `changed` is called for; False if it has not come in time."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    def linked(self, link: Link) -> None:
        self.link = link
        self.changed()

    def tell(self, goodbye: Quit) -> None:
        """To quit, if it listens; else by a signal."""
        if self.link is not None and not self.link.closed.is_set():
            self.link.quit(goodbye)
        else:
            self.kill(signal.SIGTERM)

    def kill(self, number: signal.Signals) -> None:
        if not self.ended.is_set():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    async def see_off(self, seconds: float) -> None:
        """Waits for its end; kills it after that time."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            log.warning("process %d does not end: killing it", self.pid)
            self.kill(signal.SIGKILL)
            await self.ended.wait()


class Slot:
    """One place for a worker, filled by an orphan that was found or by a process that was started."""

    def __init__(
        self,
        folder: Path,
        arguments: Arguments,
        number: int,
        *,
        shelf: Shelf,
        newcomers: Newcomers,
        table: asyncio.Event,
        drain: float,
        on_change: Callable[[], None],
    ) -> None:
        """`table`: set when there is one; `drain`: seconds for open work of a process that is replaced; `on_change`:
        `problem` has changed."""
        self.kind = kind_of(arguments)
        self.number = number
        self.name = f"{self.kind}-{number}"
        self.problem = ""
        self.restarts = 0
        self._pid_file = folder / f"{self.name}.pid"
        self._arguments = arguments
        self._shelf = shelf
        self._newcomers = newcomers
        self._table = table
        self._drain = drain
        self._on_change = on_change
        self._process: Process | None = None
        self._successor: Process | None = None
        self._leaving: set[Process] = set()
        self._goodbyes = Tasks()
        self._replacement: asyncio.Future[bool] | None = None

    @property
    def fixed_addresses(self) -> tuple[str, ...]:
        """Where it listens whatever the Table holds."""
        return self._arguments.listen if isinstance(self._arguments, DnsArguments) else ()

    @property
    def serving(self) -> bool:
        """It answers from a Table."""
        link = self._process.link if self._process is not None else None
        return link is not None and link.applied > 0 and not link.closed.is_set()

    def find_orphan(self) -> bool:
        """Looks for the worker that an earlier supervisor left in this place."""
        pid = running(self._pid_file)
        self._process = Process(pid) if pid is not None else None
        return self._process is not None

    def is_filled_by(self, pid: int) -> bool:
        """Whether this process serves here, or is about to."""
        return any(process is not None and process.pid == pid for process in (self._process, self._successor))

    def take(self, link: Link) -> bool:
        """A worker has said hello; False if it is not of this place."""
        for process in (self._process, self._successor, *self._leaving):
            if process is not None and process.pid == link.hello.pid:
                process.linked(link)
                return True
        return False

    def look(self) -> None:
        """Its worker may have asked for something."""
        if self._process is not None:
            self._process.changed()

    # ── the life of a place

    async def run(self) -> None:
        """Keeps the place filled for ever."""
        backoff = Backoff(0.1, 5.0)
        if self._process is not None:
            await self._welcome(self._process)
        while True:
            if self._process is None:
                self._process = self._start(at_once=True)
                self._say("")
            process = self._process
            await self._hold(process)
            if not process.ended.is_set():
                self._settle(replaced=await self._replace(process))
                continue
            self._process = None
            self.restarts += 1
            self._say(f"worker {self.name} ended (code {process.code}) and is started again")
            if process.age < STEADY:
                await backoff.sleep()
            else:
                backoff.reset()

    async def _hold(self, process: Process) -> None:
        """Returns when the process has ended, or another is wanted."""

        def is_over() -> bool:
            asks = process.link is not None and process.link.asks_to_leave and not process.link.closed.is_set()
            return process.ended.is_set() or self._replacement is not None or asks

        await process.until(is_over)

    async def replace(self) -> bool:
        """Puts a new process in the place; False if it does not come up, and the old one goes on."""
        if self._replacement is None:
            self._replacement = asyncio.get_running_loop().create_future()
            self.look()
        return await asyncio.shield(self._replacement)

    def _settle(self, *, replaced: bool) -> None:
        if self._process is not None and self._process.link is not None:
            self._process.link.asks_to_leave = False
        replacement, self._replacement = self._replacement, None
        if replacement is not None and not replacement.done():
            replacement.set_result(replaced)

    async def _welcome(self, orphan: Process) -> None:
        """Keeps a worker of an earlier supervisor; replaces one that is not what we would start."""
        await orphan.until(lambda: orphan.link or orphan.ended.is_set(), ADOPTION)
        wanted = (__version__, msgspec.json.encode(self._arguments).decode())
        if orphan.link and (orphan.link.hello.version, orphan.link.hello.arguments) == wanted:
            log.info("worker %s: kept process %d of an earlier supervisor", self.name, orphan.pid)
        elif not orphan.ended.is_set():
            log.info("worker %s: replacing process %d of an earlier supervisor", self.name, orphan.pid)
            backoff = Backoff(1.0, 60.0)
            while not orphan.ended.is_set() and not await self._replace(orphan):
                await backoff.sleep()

    async def _replace(self, old: Process) -> bool:
        await self._table.wait()  # without one a successor could not serve as the old one does
        successor = self._successor = self._start(at_once=False)
        await successor.until(lambda: successor.link or successor.ended.is_set(), START)
        if successor.link is not None:
            await asyncio.wait([asyncio.ensure_future(successor.link.ready.wait())], timeout=START)
        self._successor = None
        if successor.link is None or not successor.link.ready.is_set() or successor.link.closed.is_set():
            self._say(f"worker {self.name}: its successor did not start, process {old.pid} goes on")
            self._goodbye(successor, 0)
            self._pid_file.write_text(str(old.pid))
            return False
        self._process = successor
        old.tell(Quit(drain=self._drain, successor=True))
        self._goodbye(old, self._drain)
        self._say("")
        return True

    def _goodbye(self, process: Process, seconds: float) -> None:
        async def see_off() -> None:
            await process.see_off(seconds + GRACE)
            self._leaving.discard(process)

        self._leaving.add(process)
        self._goodbyes.spawn(see_off(), f"the end of process {process.pid}")

    def _start(self, *, at_once: bool) -> Process:
        child = self._newcomers.fill(self.number, self._shelf.of(self.name), at_once=at_once)
        self._pid_file.write_text(str(child.pid))
        log.info("worker %s: started as process %d", self.name, child.pid)
        return Process(child.pid, child)

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            if problem:
                log.warning("%s", problem)
            self._on_change()

    # ── the end

    async def end(self, goodbye: Quit) -> None:
        """Waits for the end of its processes, which were told `goodbye`, and kills those that do not. One that may
        linger is let go, for another supervisor; so is one that has not said hello yet, and ends by itself if none
        comes."""
        for process in {self._process, self._successor} - {None}:
            assert process is not None
            if goodbye.linger and process is self._process:
                self._pid_file.write_text(str(process.pid))  # it may name a successor that is not needed any more
                process.forget()
                continue
            if process.link is None:
                process.kill(signal.SIGTERM)
            self._goodbye(process, goodbye.drain)
        if not goodbye.linger:
            await self._goodbyes.finish(goodbye.drain + 2 * GRACE)
            self._pid_file.unlink(missing_ok=True)
        else:
            await self._goodbyes.finish(GRACE)


def running(pid_file: Path) -> int | None:
    """The process of the worker whose id is in the file."""
    try:
        pid = int(pid_file.read_text())
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(pid_file.parent / "feed.sock") in command_line.split(b"\0") else None
