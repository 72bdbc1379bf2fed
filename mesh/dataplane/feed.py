"""The Table's way from a supervisor to its workers: a unix socket, length-prefixed msgpack frames.

A worker says `Hello`, gets one snapshot and then deltas, and acknowledges each. A slow worker holds nobody
up and queues nothing: when it is ready again it gets one delta from what it has to what is newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from mesh.aio import Backoff, Signal
from mesh.metrics import Family
from mesh.table import RawTable, Table, TableDelta, apply_delta, table_diff

log = logging.getLogger(__name__)

MAX_FRAME = 64 * 2**20

FIRST_CONTACT = 10.0
"""Seconds after which a worker that never met its supervisor ends: it has nothing to serve."""

_LENGTH = struct.Struct(">I")


class Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of what goes over the socket."""


class Hello(Frame, frozen=True):
    """Who a worker is; `version` and `arguments` tell a new supervisor whether it may keep an old worker."""

    kind: str
    number: int
    pid: int
    version: str
    arguments: str


class NoTable(Frame, frozen=True):
    """There is none yet: the worker opens its listeners, and answers that it does not know."""


class Snapshot(Frame, frozen=True):
    sequence: int
    table: Table


class RawSnapshot(Frame, frozen=True, tag="Snapshot"):
    """The same, as a worker reads it that keeps services packed."""

    sequence: int
    table: RawTable


class Delta(Frame, frozen=True):
    sequence: int
    delta: TableDelta


class Applied(Frame, frozen=True):
    """The worker's answers agree with the Table of this sequence number."""

    sequence: int


class Problems(Frame, frozen=True):
    texts: list[str]


class AskMetrics(Frame, frozen=True):
    request: int


class Metrics(Frame, frozen=True):
    request: int
    families: list[Family]


class Quit(Frame, frozen=True):
    """End gracefully; after `linger` seconds, for a supervisor that comes back to say otherwise."""

    linger: float = 0.0


_encoder = msgspec.msgpack.Encoder()
_decode_to_worker = msgspec.msgpack.Decoder(NoTable | Snapshot | Delta | AskMetrics | Quit)
_decode_to_packing_worker = msgspec.msgpack.Decoder(NoTable | RawSnapshot | Delta | AskMetrics | Quit)
_decode_to_supervisor = msgspec.msgpack.Decoder(Hello | Applied | Problems | Metrics)


def _decode_packed(body: bytes) -> NoTable | Snapshot | Delta | AskMetrics | Quit:
    frame = _decode_to_packing_worker.decode(body)
    return Snapshot(frame.sequence, frame.table.packed()) if isinstance(frame, RawSnapshot) else frame


def _pack(frame: Frame) -> bytes:
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


async def _read(reader: asyncio.StreamReader) -> bytes:
    """One frame's body. Raises EOFError at the end, or where the other side does not speak our language."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise EOFError(f"a frame of {length} bytes")
        return await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError) as error:
        raise EOFError(str(error)) from None


class Link:
    """The supervisor's end of one worker's connection."""

    def __init__(self, hello: Hello, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self.applied = 0  # sequence the worker has acknowledged
        self.problems: list[str] = []
        self.news = Signal()
        self.ready = asyncio.Event()  # it answers from a Table, or is closed
        self.closed = asyncio.Event()
        self._writer = writer
        self._metrics: dict[int, asyncio.Future[list[Family]]] = {}

    def send(self, frame: Frame) -> None:
        self._writer.write(_pack(frame))

    async def drain(self) -> None:
        with contextlib.suppress(ConnectionError):  # the reading side notices
            await self._writer.drain()

    def take(self, frame: Applied | Problems | Metrics | Hello) -> None:
        match frame:
            case Applied(sequence):
                self.applied = max(self.applied, sequence)
                self.ready.set()
            case Problems(texts):
                self.problems = texts
            case Metrics(request, families):
                if (asked := self._metrics.pop(request, None)) and not asked.done():
                    asked.set_result(families)

    async def metrics(self, timeout: float) -> list[Family]:
        """The worker's families; none if it does not answer in time."""
        request = max(self._metrics, default=0) + 1
        asked: asyncio.Future[list[Family]] = asyncio.get_running_loop().create_future()
        self._metrics[request] = asked
        self.send(AskMetrics(request))
        try:
            async with asyncio.timeout(timeout):
                return await asked
        except TimeoutError:
            return []
        finally:
            self._metrics.pop(request, None)

    def close(self) -> None:
        self._writer.close()


class Feed:
    """The supervisor's side: publishes Tables, collects what the workers say."""

    def __init__(self, path: Path, *, on_hello: Callable[[Link], None], on_change: Callable[[], None]) -> None:
        """`on_hello`: a worker has come; `on_change`: what the workers say of problems may have changed."""
        self._path = path
        self._on_hello = on_hello
        self._on_change = on_change
        self._server: asyncio.Server | None = None
        self._table: Table | None = None
        self._sequence = 0
        self._links: set[Link] = set()
        self._told = asyncio.Condition()
        self._diffs: dict[tuple[int, int], TableDelta] = {}

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
        return self._sequence

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
        return sorted({text for link in self._links for text in link.problems})

    async def metrics(self, timeout: float = 0.5) -> list[Family]:
        answers = await asyncio.gather(*(link.metrics(timeout) for link in self._links))
        return [family for families in answers for family in families]

    async def dismiss(self, linger: float) -> None:
        """Takes no more workers, and tells those that are here to quit."""
        if self._server:
            self._server.close()
        self._path.unlink(missing_ok=True)
        for link in self._links:
            link.send(Quit(linger))
            await link.drain()

    async def close(self) -> None:
        """Breaks the connections that are left."""
        if self._server:
            self._server.close()
        for link in self._links:
            link.close()
        await asyncio.gather(*(link.closed.wait() for link in self._links))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                hello = _decode_to_supervisor.decode(await _read(reader))
        except (EOFError, TimeoutError, msgspec.DecodeError):
            hello = None
        if not isinstance(hello, Hello):
            writer.close()
            return
        link = Link(hello, writer)
        self._links.add(link)
        self._on_hello(link)
        sender = asyncio.create_task(self._send_tables(link), name=f"feed {hello.kind}-{hello.number}")
        try:
            while True:
                frame = _decode_to_supervisor.decode(await _read(reader))
                link.take(frame)
                await self._tell(changed=isinstance(frame, Problems))
        except EOFError:
            pass
        except msgspec.DecodeError as error:
            log.warning("worker %s-%d sent what is no frame: %s", hello.kind, hello.number, error)
        finally:
            sender.cancel()
            self._links.discard(link)
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
        if self._table is None:
            link.send(NoTable())
        while True:
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


class Follower:
    """The worker's side: keeps a Table, outlives its supervisor."""

    def __init__(
        self,
        path: Path,
        hello: Hello,
        *,
        begin: Callable[[], Awaitable[None]],
        update: Callable[[Table, TableDelta | None], Awaitable[None]],
        problems: Callable[[], list[str]],
        metrics: Callable[[], list[Family]],
        packed: bool = False,
    ) -> None:
        """`begin`: serve without a Table; `update`: serve this one; the rest is asked for the supervisor.

        `packed`: the Table's services are kept as bytes.
        """
        self._path = path
        self._hello = hello
        self._begin = begin
        self._update = update
        self._problems = problems
        self._metrics = metrics
        self._decode = _decode_packed if packed else _decode_to_worker.decode
        self._table: Table | None = None

    async def run(self, *, survive: bool = True) -> None:
        """Returns when the supervisor says `Quit`, or has not come back within the time it told us to linger.

        When it dies without a word we serve on; not so with `survive` false.
        """
        backoff = Backoff(0.02, 0.25)
        loop = asyncio.get_running_loop()
        deadline: float | None = loop.time() + FIRST_CONTACT
        while deadline is None or loop.time() < deadline:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                await backoff.sleep()
                continue
            backoff.reset()
            try:
                deadline = None
                goodbye = await self._follow(reader, writer)
                if goodbye.linger == 0:
                    return
                deadline = loop.time() + goodbye.linger
            except EOFError as error:
                if not survive:
                    return
                log.warning("supervisor is away (%s): serving on with the last Table", error or "closed")
            finally:
                writer.close()

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Quit:
        writer.write(_pack(self._hello))
        told: list[str] = []
        watcher = asyncio.create_task(self._report_problems(writer, told), name="problems")
        try:
            while True:
                match self._decode(await _read(reader)):
                    case NoTable():
                        await self._begin()
                    case Snapshot(sequence, table):
                        before, self._table = self._table, table
                        if before is None:
                            await self._update(table, None)
                        elif delta := table_diff(before, table):
                            await self._update(table, delta)
                        writer.write(_pack(Applied(sequence)))
                        self._tell_problems(writer, told)
                    case Delta(sequence, delta) if self._table is not None:
                        self._table = apply_delta(self._table, delta)
                        await self._update(self._table, delta)
                        writer.write(_pack(Applied(sequence)))
                        self._tell_problems(writer, told)
                    case AskMetrics(request):
                        writer.write(_pack(Metrics(request, self._metrics())))
                    case Quit() as goodbye:
                        return goodbye
        finally:
            watcher.cancel()

    def _tell_problems(self, writer: asyncio.StreamWriter, told: list[str]) -> None:
        if (texts := self._problems()) != told:
            told[:] = texts
            writer.write(_pack(Problems(texts)))

    async def _report_problems(self, writer: asyncio.StreamWriter, told: list[str]) -> None:
        """Problems also come and go by themselves: a port that was taken is freed."""
        while True:
            await asyncio.sleep(1)
            self._tell_problems(writer, told)
