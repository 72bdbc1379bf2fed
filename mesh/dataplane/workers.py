"""The supervisor of the data plane: starts worker processes, feeds them, restarts them, keeps those it finds.

Workers outlive their supervisor. One that is restarted finds their process ids in its folder and keeps the
workers that were started with the same version and arguments; others are replaced without a gap.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mesh.aio import Backoff, Signal, Tasks
from mesh.dataplane.feed import Feed, Link
from mesh.dataplane.frames import Quit
from mesh.dataplane.load import LoadReport
from mesh.dataplane.newcomer import Newcomers
from mesh.dataplane.slot import GRACE, Slot, running
from mesh.dataplane.sockets import Shelf
from mesh.dataplane.waiting import WaitingReport
from mesh.dataplane.worker import SOCKETS, Arguments, command, kind_of, write_secret
from mesh.metrics import Family, Sample
from mesh.table import Table

log = logging.getLogger(__name__)

REPLACED = 90.0
"""Seconds that open work has in a worker whose place another has taken: a request that is held there for a service at
zero may wait a minute (`limits.held_timeout`), and then has its `timeout` of 15 s for its answer."""


class Workers:
    """All workers of a node. `publish` a Table, wait until it is `acknowledged`."""

    def __init__(
        self,
        folder: Path,
        wanted: Sequence[Arguments],
        *,
        inherit: Sequence[int] = (),
        drain: float = REPLACED,
    ) -> None:
        """`wanted`: the arguments of each worker; `inherit`: descriptors the workers keep open; `drain`: seconds
        that a worker's open work has to end when another takes its place."""
        self._folder = folder
        self._drain = drain
        self._tasks = Tasks()
        self.news = Signal()
        """Set when `problems` may have changed."""
        self.adopted = False
        """Workers of an earlier supervisor were found."""
        self._problem = ""
        way = folder / "feed.sock"
        self._feed = Feed(way, on_hello=self._hello, on_change=self._changed)
        self._shelf = Shelf(folder / SOCKETS, self._is_ours)
        self._newcomers = {
            arguments: Newcomers(partial(command, arguments, way), inherit, stand_by=wanted.count(arguments) > 1)
            for arguments in wanted
        }
        kinds = [kind_of(arguments) for arguments in wanted]
        self._slots = [
            Slot(folder, arguments, kinds[: place + 1].count(kinds[place]), shelf=self._shelf,
                 newcomers=self._newcomers[arguments], table=self._feed.has_table, drain=drain, on_change=self.news.set)
            for place, arguments in enumerate(wanted)
        ]  # fmt: skip
        self._replacing = asyncio.Lock()

    @property
    def table(self) -> Table | None:
        return self._feed.table

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.adopted = orphans(self._folder)
        if not self.adopted:
            write_secret(self._folder)
        for slot in self._slots:
            slot.find_orphan()
        self._shelf.start()
        await self._feed.start()
        for newcomers in self._newcomers.values():
            newcomers.stand_by_soon()
        self._tasks.spawn(self._run(alone=not self.adopted), "workers")

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

    def give_secrets(self, secrets: Mapping[str, str]) -> None:
        """The values of all secrets that the Table's routes name, for the proxy workers alone."""
        self._feed.give_secrets(secrets)

    async def acknowledged(self, sequence: int, timeout: float) -> bool:
        return await self._feed.acknowledged(sequence, timeout)

    def waiting(self) -> list[str]:
        """Workers that do not answer from a Table yet."""
        return [slot.name for slot in self._slots if not slot.serving]

    async def serving(self) -> None:
        """Returns when every worker answers from a Table."""
        await self._feed.until(lambda: not self.waiting())

    async def replace(self) -> list[str]:
        """Puts new processes in all places, one after the other, without a gap; the names of those that did not come
        up, where the old process goes on."""
        async with self._replacing:
            self._dismiss_newcomers()  # theirs is the program as it was
            return [slot.name for slot in self._slots if not await slot.replace()]

    def replace_soon(self) -> None:
        """Begins to `replace`, as an operator asked."""
        self._tasks.spawn(self._replace_and_tell(), "replace workers")

    async def _replace_and_tell(self) -> None:
        log.info("replacing all workers")
        stayed = await self.replace()
        log.info("replaced all workers%s", f" but {', '.join(stayed)}" if stayed else "")

    def log_problems(self) -> None:
        """From now on says what the workers cannot do for the Table: for those who run them alone."""
        self._tasks.spawn(self._log_problems(), "log problems")

    async def _log_problems(self) -> None:
        told: list[str] = []
        while True:
            await self.news.wait()
            now = self._feed.problems()
            for problem in now:
                if problem not in told:
                    log.warning("%s", problem)
            for problem in told:
                if problem not in now:
                    log.info("no more: %s", problem)
            told = now

    def problems(self) -> list[str]:
        own = {self._problem, *(slot.problem for slot in self._slots)} - {""}
        return sorted(own) + self._feed.problems()

    async def metrics(self) -> list[Family]:
        restarts = [Sample(slot.restarts, {"worker": slot.name}) for slot in self._slots]
        own = Family("mesh_worker_restarts", "Times a data-plane process ended by itself", "counter", restarts)
        return [own, *await self._feed.metrics()]

    async def load(self, node: str = "") -> LoadReport:
        """What the proxy carried in the last ten seconds."""
        return await self._feed.load(node)

    async def held(self, since: int | None, wait: float) -> WaitingReport:
        """Who waits for services at zero; see `WaitingBoard.report`."""
        return await self._feed.waiting.report(since, wait)

    async def close(self, linger: float = 0.0, *, drain: float = GRACE) -> None:
        """Ends the workers, whose open work has `drain` seconds to end; with `linger` seconds they go on serving that
        long, for a supervisor that comes back."""
        await self._tasks.close()
        self._dismiss_newcomers()
        goodbye = Quit(linger, drain)
        await self._feed.dismiss(goodbye)
        await asyncio.gather(*(slot.end(goodbye) for slot in self._slots))
        await self._feed.close()
        self._shelf.close()

    def _dismiss_newcomers(self) -> None:
        for newcomers in self._newcomers.values():
            newcomers.dismiss()

    def _changed(self) -> None:
        self.news.set()
        for slot in self._slots:
            slot.look()

    def _is_ours(self, worker: str, pid: int) -> bool:
        return any(slot.name == worker and slot.is_filled_by(pid) for slot in self._slots)

    def _hello(self, link: Link) -> None:
        """Welcomes a worker. One that nobody here started or found has a successor by now, or is too many."""
        if not any(slot.take(link) for slot in self._slots):
            link.quit(Quit(drain=self._drain))


def orphans(folder: Path) -> bool:
    """True if workers that an earlier supervisor started with this folder still run."""
    return any(running(pid_file) is not None for pid_file in folder.glob("*.pid"))


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
