"""The supervisor of the data plane: starts worker processes, feeds them, restarts them, keeps those it finds.

Workers outlive their supervisor. One that is restarted finds their process ids in its folder and keeps the
workers that were started with the same version and arguments; others are replaced without a gap.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mesh import __version__
from mesh.aio import Backoff, Signal, Tasks
from mesh.dataplane.feed import Feed, Link
from mesh.dataplane.worker import Arguments, DnsArguments, command, kind_of, write_secret
from mesh.metrics import Family, Sample
from mesh.table import Table

log = logging.getLogger(__name__)

ADOPTION = 1.0
"""Seconds a worker of an earlier supervisor has to say hello."""

GRACE = 5.0
"""Seconds a worker has to end when told to."""

_SMALL = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""mallopt(3): memory for a snapshot of the Table goes back to the system when it has been read."""

_SECRETS = ("CONSUL_HTTP_TOKEN", "MESH_ADMIN_TOKEN")


class Workers:
    """All workers of a node. `publish` a Table, wait until it is `acknowledged`."""

    def __init__(
        self,
        folder: Path,
        wanted: Sequence[Arguments],
        *,
        inherit: Sequence[int] = (),
    ) -> None:
        """`wanted`: the arguments of each worker; `inherit`: descriptors the workers keep open."""
        self._folder = folder
        self._tasks = Tasks()
        self.news = Signal()
        """Set when `problems` may have changed."""
        self._problem = ""
        self._feed = Feed(folder / "feed.sock", on_hello=self._hello, on_change=self.news.set)
        kinds = [kind_of(arguments) for arguments in wanted]
        self._slots = [
            _Slot(folder, arguments, kinds[: place + 1].count(kinds[place]), self.news, tuple(inherit))
            for place, arguments in enumerate(wanted)
        ]

    @property
    def table(self) -> Table | None:
        return self._feed.table

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._feed.start()
        found = orphans(self._folder)
        if not found:
            write_secret(self._folder)
        self._tasks.spawn(self._run(alone=not found), "workers")

    async def _run(self, *, alone: bool) -> None:
        if alone:
            await self._ports_are_free()
        async with asyncio.TaskGroup() as group:
            for slot in self._slots:
                group.create_task(slot.run(), name=slot.name)

    async def _ports_are_free(self) -> None:
        """Waits while somebody else serves our DNS address: SO_REUSEPORT would silently share it with them."""
        listens = {address for slot in self._slots for address in slot.fixed_addresses}
        backoff = Backoff(0.5, 2.0)
        while taken := taken_addresses(sorted(listens)):
            problem = f"dns: {', '.join(taken)} is taken by another program: stop it, or choose another DNS address"
            if problem != self._problem:
                log.warning("%s", problem)
                self._problem = problem
                self.news.set()
            await backoff.sleep()
        self._problem = ""
        self.news.set()

    def publish(self, table: Table) -> int:
        return self._feed.publish(table)

    async def acknowledged(self, sequence: int, timeout: float) -> bool:
        return await self._feed.acknowledged(sequence, timeout)

    def waiting(self) -> list[str]:
        """Workers that do not answer from a Table yet."""
        serving = {(link.hello.kind, link.hello.number) for link in self._feed.links if link.applied}
        return [slot.name for slot in self._slots if (slot.kind, slot.number) not in serving]

    async def serving(self) -> None:
        """Returns when every worker answers from a Table."""
        await self._feed.until(lambda: not self.waiting())

    def problems(self) -> list[str]:
        own = {self._problem, *(slot.problem for slot in self._slots)} - {""}
        return sorted(own) + self._feed.problems()

    async def metrics(self) -> list[Family]:
        restarts = [Sample(slot.restarts, {"worker": slot.name}) for slot in self._slots]
        own = Family("mesh_worker_restarts", "Times a data-plane process ended by itself", "counter", restarts)
        return [own, *await self._feed.metrics()]

    async def close(self, linger: float = 0.0) -> None:
        """Ends the workers; with `linger` seconds they go on serving that long, for a supervisor that comes back."""
        await self._tasks.close()
        await self._feed.dismiss(linger)
        ending = [slot for slot in self._slots if linger == 0 or not slot.met]
        await asyncio.gather(*(slot.end() for slot in ending))
        await self._feed.close()

    def _hello(self, link: Link) -> None:
        for slot in self._slots:
            if (slot.kind, slot.number) == (link.hello.kind, link.hello.number):
                slot.linked(link)


class _Slot:
    """One place for a worker, filled by an orphan that was found or by a process that was started."""

    def __init__(self, folder: Path, arguments: Arguments, number: int, news: Signal, inherit: tuple[int, ...]) -> None:
        self.kind = kind_of(arguments)
        self.number = number
        self.name = f"{self.kind}-{number}"
        self.problem = ""
        self.restarts = 0
        self._socket = folder / "feed.sock"
        self._pid_file = folder / f"{self.name}.pid"
        self._arguments = arguments
        self._changed = news
        self._inherit = inherit
        self._links: dict[int, Link] = {}
        self._news = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def fixed_addresses(self) -> tuple[str, ...]:
        """Where it listens whatever the Table holds."""
        return self._arguments.listen if isinstance(self._arguments, DnsArguments) else ()

    @property
    def met(self) -> bool:
        """Its worker has said hello."""
        return self._pid in self._links

    def linked(self, link: Link) -> None:
        self._links = {pid: known for pid, known in self._links.items() if not known.closed.is_set()}
        self._links[link.hello.pid] = link
        self._news.set()

    async def run(self) -> None:
        """Keeps the place filled for ever."""
        if orphan := _running(self._pid_file):
            await self._adopt(orphan)
        backoff = Backoff(0.1, 5.0)
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            self._start()
            self._say("")
            await self._gone()
            if loop.time() - begun > 10:
                backoff.reset()
            self.restarts += 1
            code = self._process.poll() if self._process else None
            self._say(f"worker {self.name} ended (code {code}) and is started again")
            await backoff.sleep()

    async def _adopt(self, orphan: int) -> None:
        """Keeps a worker of an earlier supervisor until it ends; replaces one that is not what we would start."""
        self._pid = orphan
        link = await self._link_of(orphan, ADOPTION)
        wanted = (__version__, msgspec.json.encode(self._arguments).decode())
        if link and (link.hello.version, link.hello.arguments) == wanted:
            log.info("worker %s: kept process %d of an earlier supervisor", self.name, orphan)
            await self._gone()
            return
        log.info("worker %s: replacing process %d of an earlier supervisor", self.name, orphan)
        self._start()
        assert self._pid is not None
        if successor := await self._link_of(self._pid, GRACE):
            await successor.ready.wait()
        _kill(orphan, signal.SIGTERM)
        await self._gone()

    async def _link_of(self, pid: int, timeout: float) -> Link | None:
        try:
            async with asyncio.timeout(timeout):
                while pid not in self._links:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return None
        return self._links[pid]

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        environment |= _SMALL | {"MESH_LOG_LEVEL": logging.getLevelName(log.getEffectiveLevel())}
        self._process = subprocess.Popen(
            command(self._arguments, self.number, self._socket),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is the supervisor's business
            env=environment,
            pass_fds=self._inherit,
        )
        self._pid = self._process.pid
        self._pid_file.write_text(str(self._pid))
        log.info("worker %s: started as process %d", self.name, self._pid)

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            if problem:
                log.warning("%s", problem)
            self._changed.set()

    async def _gone(self) -> None:
        """Waits for the end of the process, a child or not."""
        if self._pid is None:
            return
        try:
            descriptor = os.pidfd_open(self._pid)
        except ProcessLookupError:
            self._pid = None
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
            self._pid = None
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def end(self) -> None:
        """Waits for a worker that was told to quit; kills it if it does not."""
        if self._pid is None:
            return
        pid = self._pid
        if not self.met:
            _kill(pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(GRACE):
                await self._gone()
        except TimeoutError:
            _kill(pid, signal.SIGKILL)
            await self._gone()
        if self._process:
            self._process.wait()
        self._pid_file.unlink(missing_ok=True)


def orphans(folder: Path) -> bool:
    """True if workers that an earlier supervisor started with this folder still run."""
    return any(_running(pid_file) is not None for pid_file in folder.glob("*.pid"))


def _running(pid_file: Path) -> int | None:
    """The process of the worker whose id is in the file."""
    try:
        pid = int(pid_file.read_text())
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(pid_file.parent / "feed.sock") in command_line.split(b"\0") else None


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def refused_addresses(addresses: Sequence[str]) -> dict[str, OSError]:
    """Those of `addresses` (`host:port`) that cannot be bound, for UDP or TCP: they are taken, or forbidden."""
    refused: dict[str, OSError] = {}
    for address in addresses:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                if kind is socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, int(port)))
                except OSError as error:
                    refused.setdefault(address, error)
    return refused


def taken_addresses(addresses: Sequence[str]) -> list[str]:
    """Those of `addresses` that another program holds."""
    refused = refused_addresses(addresses)
    return [address for address, error in refused.items() if error.errno == errno.EADDRINUSE]
