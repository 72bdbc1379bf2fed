"""The Table's way from a supervisor to its workers, and what the workers say.

A worker says `Hello`, gets one snapshot and then deltas, and acknowledges each. A slow worker holds nobody
up and queues nothing: when it is ready again it gets one delta from what it has to what is newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from mesh.aio import Signal
from mesh.dataplane.frames import (
    Applied,
    AskLoads,
    AskMetrics,
    Delta,
    Frame,
    Hello,
    Leaving,
    Loads,
    Metrics,
    NoTable,
    Problems,
    Quit,
    Secrets,
    Snapshot,
    ToSupervisor,
    Waiting,
    pack,
    read_to_supervisor,
)
from mesh.dataplane.load import LoadReport, LoadWindow
from mesh.dataplane.waiting import WaitingBoard
from mesh.metrics import Ended, Family
from mesh.table import Table, TableDelta, table_diff

log = logging.getLogger(__name__)


class Link:
    """The supervisor's end of one worker's connection."""

    def __init__(self, hello: Hello, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self.applied = 0  # sequence the worker has acknowledged
        self.problems: list[str] = []
        self.families: list[Family] = []  # its newest
        self.news = Signal()
        self.ready = asyncio.Event()  # it answers from a Table, or is closed
        self.asks_to_leave = False
        self.leaving = False  # it was told to
        self.closed = asyncio.Event()
        self._writer = writer
        self._requests = 0
        self._asked: dict[int, asyncio.Future[None]] = {}

    def send(self, frame: Frame) -> None:
        self._writer.write(pack(frame))

    def quit(self, goodbye: Quit) -> None:
        self.leaving = goodbye.linger == 0
        self.send(goodbye)

    async def drain(self) -> None:
        with contextlib.suppress(ConnectionError):  # the reading side notices
            await self._writer.drain()

    def take(self, frame: ToSupervisor) -> None:
        match frame:
            case Applied(sequence):
                self.applied = max(self.applied, sequence)
                self.ready.set()
            case Problems(texts):
                self.problems = texts
            case Leaving():
                self.asks_to_leave = True
            case Metrics(request, families):
                self.families = families
                self._answered(request)
            case Loads(request):
                self._answered(request)

    def _answered(self, request: int) -> None:
        if (asked := self._asked.pop(request, None)) and not asked.done():
            asked.set_result(None)

    async def ask(self, question: type[AskMetrics] | type[AskLoads], timeout: float) -> None:
        """Returns when the worker has answered, has gone, or the time is up."""
        self._requests += 1
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked[self._requests] = asked
        self.send(question(self._requests))
        await asyncio.wait([asked], timeout=timeout)

    def close(self) -> None:
        self._writer.close()
        for request in [*self._asked]:
            self._answered(request)


class Feed:
    """The supervisor's side: publishes Tables, collects what the workers say."""

    def __init__(self, path: Path, *, on_hello: Callable[[Link], None], on_change: Callable[[], None]) -> None:
        """`on_hello`: a worker has come; `on_change`: what the workers say of problems may have changed."""
        self._path = path
        self._on_hello = on_hello
        self._on_change = on_change
        self._server: asyncio.Server | None = None
        self._table: Table | None = None
        self._secrets: dict[str, str] = {}
        self._sequence = 0
        self._links: set[Link] = set()
        self._told = asyncio.Condition()
        self._diffs: dict[tuple[int, int], TableDelta] = {}
        self._load = LoadWindow(time.monotonic())
        self._ended = Ended()
        self.waiting = WaitingBoard()
        self.has_table = asyncio.Event()

    @property
    def table(self) -> Table | None:
        return self._table

    @property
    def links(self) -> frozenset[Link]:
        return frozenset(self._links)

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        os.chmod(self._path, 0o600)

    def publish(self, table: Table) -> int:
        """Makes `table` the newest; its sequence number, for `acknowledged`."""
        delta = table_diff(self._table, table) if self._table else None
        if self._table is None or delta:
            self._diffs = {(self._sequence, self._sequence + 1): delta} if delta else {}
            self._sequence += 1
            for link in self._links:
                link.news.set()
        self._table = table
        self.has_table.set()
        return self._sequence

    def give_secrets(self, secrets: Mapping[str, str]) -> None:
        """What the Table names and does not hold, for workers that serve it."""
        self._secrets = dict(secrets)
        for link in self._links:
            link.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition on the links: their coming and going, and what they have applied."""
        async with self._told:
            await self._told.wait_for(condition)

    async def acknowledged(self, sequence: int, timeout: float) -> bool:
        """Waits until every connected worker has applied `sequence`; False if one did not in time."""
        try:
            async with asyncio.timeout(timeout):
                await self.until(lambda: all(link.applied >= sequence for link in self._links))
        except TimeoutError:
            return False
        return True

    def problems(self) -> list[str]:
        return sorted({text for link in self._links if not link.leaving for text in link.problems})

    async def metrics(self, timeout: float = 0.5) -> list[Family]:
        """Of all workers, and the counts of those that ended: no counter goes back because a worker was replaced."""
        await asyncio.gather(*(link.ask(AskMetrics, timeout) for link in self._links))
        living = [family for link in self._links for family in link.families]
        return [*living, *self._ended.families(living, time.monotonic())]

    async def load(self, node: str, timeout: float = 0.5) -> LoadReport:
        """What all workers proxied in the last seconds, up to now, for each service of the Table."""
        await asyncio.gather(*(link.ask(AskLoads, timeout) for link in self._links))
        services = self._table.services if self._table else {}
        ports: Mapping[str, Iterable[str]] = {name: service.ports for name, service in services.items()}
        return self._load.report(ports, time.monotonic(), node=node)

    async def dismiss(self, goodbye: Quit) -> None:
        """Takes no more workers, and tells those that are here to quit."""
        if self._server:
            self._server.close()
        self._path.unlink(missing_ok=True)
        for link in [*self._links]:
            if not link.leaving:
                link.quit(goodbye)
                await link.drain()

    async def close(self) -> None:
        """Breaks the connections that are left."""
        if self._server:
            self._server.close()
        for link in self._links:
            link.close()
        await asyncio.gather(*(link.closed.wait() for link in self._links))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello: ToSupervisor | None = None
        with contextlib.suppress(EOFError, TimeoutError, msgspec.DecodeError):
            async with asyncio.timeout(5):
                hello = await read_to_supervisor(reader)
        if not isinstance(hello, Hello):
            writer.close()
            return
        link = Link(hello, writer)
        self._links.add(link)
        self._on_hello(link)
        sender = asyncio.create_task(self._send_tables(link), name=f"feed {hello.kind}-{hello.number}")
        try:
            while True:
                frame = await read_to_supervisor(reader)
                link.take(frame)
                if isinstance(frame, Loads):
                    self._load.add(link, frame.second, frame.loads, time.monotonic())
                elif isinstance(frame, Waiting):
                    self.waiting.told(link, frame.services)
                else:
                    await self._tell(changed=isinstance(frame, Problems | Leaving))
        except EOFError:
            pass
        except msgspec.DecodeError as error:
            log.warning("worker %s-%d sent what is no frame: %s", hello.kind, hello.number, error)
        finally:
            sender.cancel()
            self._links.discard(link)
            self._load.left(link)
            self.waiting.left(link)
            self._ended.add(link.families, time.monotonic())
            link.close()
            link.closed.set()
            link.ready.set()
            await self._tell(changed=True)

    async def _tell(self, *, changed: bool) -> None:
        async with self._told:
            self._told.notify_all()
        if changed:
            self._on_change()

    async def _send_tables(self, link: Link) -> None:
        """Keeps one worker up to date: what it has → what is newest, as often as it can take."""
        sent: Table | None = None
        sent_sequence = 0
        given: dict[str, str] = {}
        if self._table is None:
            link.send(NoTable())
        while True:
            if given != self._secrets and link.hello.kind == "proxy":
                given = self._secrets
                link.send(Secrets(given))
            newest, sequence = self._table, self._sequence
            if newest is not None and sequence != sent_sequence:
                if sent is None:
                    link.send(Snapshot(sequence, newest))
                else:
                    link.send(Delta(sequence, self._diff(sent, sent_sequence, newest, sequence)))
                sent, sent_sequence = newest, sequence
                await link.drain()
                continue
            await link.news.wait()

    def _diff(self, old: Table, old_sequence: int, new: Table, sequence: int) -> TableDelta:
        """The same delta serves all workers that have the same Table; an empty one still asks for an `Applied`."""
        key = (old_sequence, sequence)
        if key not in self._diffs:
            nothing = TableDelta(index=new.index, domain=new.domain, vip_range=new.vip_range)
            self._diffs[key] = table_diff(old, new) or nothing
        return self._diffs[key]
