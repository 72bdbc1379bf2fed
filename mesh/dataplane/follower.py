"""A worker's side of the Table's way: keeps a Table, outlives its supervisor, tells what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from mesh.aio import Backoff
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
    Waiting,
    pack,
    read_to_worker,
)
from mesh.dataplane.load import PortLoad
from mesh.metrics import Family
from mesh.table import Table, TableDelta, apply_delta, table_diff

log = logging.getLogger(__name__)

FIRST_CONTACT = 10.0
"""Seconds after which a worker that never met its supervisor ends: it has nothing to serve."""


class Served(Protocol):
    """What a follower feeds, and asks for what the supervisor wants to know."""

    async def begin(self) -> None:
        """Serve without a Table."""

    async def update(self, table: Table, delta: TableDelta | None) -> None:
        """Serve this one."""

    def give_secrets(self, secrets: Mapping[str, str]) -> None:
        """What the Table names and does not hold: before it comes, and whenever it is another."""

    def connected(self) -> None:
        """A supervisor is there, and is about to hear who this is."""

    def each_second(self) -> None:
        """Called as often while there is a supervisor."""

    def problems(self) -> list[str]: ...

    def metrics(self) -> list[Family]: ...

    def loads(self) -> list[PortLoad]:
        """What came since the last call."""


class Follower:
    """`run` until it returns; `leaving` is set when the worker is to end, `close` says goodbye."""

    def __init__(self, path: Path, hello: Hello, served: Served, *, packed: bool = False) -> None:
        """`packed`: the Table's services are kept as bytes."""
        self._path = path
        self._hello = hello
        self._served = served
        self._packed = packed
        self._table: Table | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._told: list[str] = []
        self._waiting: Mapping[str, int] = {}
        self._closing = False
        self._counting_since = time.monotonic()
        self.leaving: asyncio.Future[Quit] = asyncio.get_running_loop().create_future()

    async def run(self, *, survive: bool = True) -> None:
        """Returns when the supervisor has not come back within the time it told us to linger.

        When it dies without a word we serve on; not so with `survive` false.
        """
        backoff = Backoff(0.02, 0.25)
        loop = asyncio.get_running_loop()
        deadline: float | None = loop.time() + FIRST_CONTACT
        while deadline is None or loop.time() < deadline:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                await backoff.sleep()
                continue
            try:
                deadline = None
                goodbye = await self._follow(reader)
                deadline = loop.time() + goodbye.linger
                backoff.reset()
            except EOFError as error:
                if not survive or self._closing:
                    return
                log.warning("supervisor is away (%s): serving on with the last Table", error or "closed")
                backoff.reset()
            except msgspec.DecodeError as error:  # of another version: it is about to start our successor
                if not survive:
                    raise
                log.warning("supervisor is not understood (%s): serving on with the last Table", error)
                await backoff.sleep()
            finally:
                self._writer.close()
                self._writer = None

    async def _follow(self, reader: asyncio.StreamReader) -> Quit:
        """Until a `Quit` that is no farewell: it lets us linger."""
        self._served.connected()
        self._say(self._hello)
        self._told = []
        if self._waiting:
            self.tell_waiting(self._waiting)
        teller = asyncio.create_task(self._tell_each_second(), name="tell")
        try:
            while True:
                match await read_to_worker(reader, packed=self._packed):
                    case NoTable():
                        await self._served.begin()
                    case Snapshot(sequence, table):
                        before, self._table = self._table, table
                        if before is None:
                            await self._served.update(table, None)
                        elif delta := table_diff(before, table):
                            await self._served.update(table, delta)
                        self._say(Applied(sequence))
                        self._tell_problems()
                    case Delta(sequence, delta) if self._table is not None:
                        self._table = apply_delta(self._table, delta)
                        await self._served.update(self._table, delta)
                        self._say(Applied(sequence))
                        self._tell_problems()
                    case Secrets(values):
                        self._served.give_secrets(values)
                        self._tell_problems()
                    case AskMetrics(request):
                        self._say(Metrics(request, self._served.metrics()))
                    case AskLoads(request):
                        self._tell_loads(request)
                    case Quit() as goodbye:
                        if goodbye.linger:
                            return goodbye
                        if not self.leaving.done():
                            self.leaving.set_result(goodbye)
        finally:
            teller.cancel()

    def tell_waiting(self, services: Mapping[str, int]) -> None:
        """So many requests and connections wait, for each service that sleeps."""
        self._waiting = services
        self._say(Waiting(dict(services)))

    def ask_to_leave(self) -> bool:
        """Somebody wants this worker to end; False if there is no supervisor that could find a successor."""
        return self._say(Leaving())

    async def close(self) -> None:
        """Says what has been counted to the end, as its last word."""
        self._closing = True
        self._tell_loads(0)
        self._say(Metrics(0, self._served.metrics()))
        if self._writer is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    self._writer.close()
                    await self._writer.wait_closed()

    def _say(self, frame: Frame) -> bool:
        if self._writer is None or self._writer.is_closing():
            return False
        self._writer.write(pack(frame))
        return True

    def _tell_problems(self) -> None:
        if (texts := self._served.problems()) != self._told:
            self._told = texts
            self._say(Problems(texts))

    def _tell_loads(self, request: int) -> None:
        """What was asked for is answered; unasked, only what moved is told."""
        second, self._counting_since = int(self._counting_since), time.monotonic()
        loads = self._served.loads()
        if loads or request:
            self._say(Loads(request, second, loads))

    async def _tell_each_second(self) -> None:
        """At the turn of each second, the same for all workers. Problems also come and go by themselves: a port that
        was taken is freed."""
        while True:
            await asyncio.sleep(1 - time.monotonic() % 1)
            self._served.each_second()
            self._tell_loads(0)
            self._tell_problems()
