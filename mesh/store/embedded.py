"""The embedded store: a small server that speaks the part of Consul's HTTP that the mesh uses.

Writes are computed on a draft, committed by one thread (those that arrive meanwhile share the next
commit), and only then visible and acknowledged. So nothing acknowledged is lost by `kill -9`, and nobody
has read what a crash takes back. While the disk is full writes fail, and reads go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web

from mesh.aio import Signal, Tasks
from mesh.settings import EmbeddedStoreSettings
from mesh.store import StoreError
from mesh.store.embedded_db import Database
from mesh.store.embedded_http import Busy, ConsulApi, is_loopback, split_listen
from mesh.store.embedded_state import Draft, Refused, State

log = logging.getLogger(__name__)

MAX_PENDING_WRITES = 4096
MAX_BLOCKING_QUERIES = 2048
RETRY_EXPIRY = 1.0
"""Seconds until a session that could not be ended (a full disk) is ended again."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Write:
    apply: Callable[[Draft], object]
    done: asyncio.Future[object]


@dataclass(eq=False, slots=True)
class _Watcher:
    """A blocking query: woken when a key it asks for changes."""

    key: str
    recurse: bool
    signal: Signal = field(default_factory=Signal)

    def concerns(self, key: str) -> bool:
        return key.startswith(self.key) if self.recurse else key == self.key


class EmbeddedStore:
    """The store as a server in the caller's loop. Raises `StoreError` if the folder or the port is taken."""

    def __init__(self, settings: EmbeddedStoreSettings) -> None:
        self._settings = settings
        self._tasks = Tasks()
        self._thread = ThreadPoolExecutor(1, "mesh-store")
        self._writes: list[_Write] = []
        self._wake_writer = Signal()
        self._watchers: set[_Watcher] = set()
        self._deadlines: dict[str, float] = {}  # session → when it lapses, on the loop's clock
        self._wake_expiry = Signal()
        self._address = ""
        self._database: Database | None = None
        self._runner: web.AppRunner | None = None
        self.state = State({}, {}, 1)

    @property
    def address(self) -> str:
        """Its URL; known once it is started."""
        return self._address

    @property
    def blocking_queries(self) -> int:
        """How many wait now."""
        return len(self._watchers)

    async def start(self) -> None:
        try:
            self._database = await self._in_thread(self._open)
            self.state = await self._in_thread(self._database.load)
            for session in self.state.sessions:  # a restart gives each a fresh term
                self.touch(session)
            await self._listen()
        except BaseException:
            await self.close()
            raise
        self._tasks.spawn(self._write_batches(self._database), "store-writer")
        self._tasks.spawn(self._expire_sessions(), "store-sessions")
        log.info("store listens address=%s data=%s index=%d", self.address, self._settings.data, self.state.index)

    async def close(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None
        await self._tasks.close()
        for write in self._writes:
            write.done.cancel()
        self._writes.clear()
        if self._database:
            await self._in_thread(self._database.close)
            self._database = None
        self._thread.shutdown()

    def _open(self) -> Database:
        return Database(self._settings.data)

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _listen(self) -> None:
        host, port = split_listen(self._settings.listen)
        loopback = is_loopback(host)
        if not loopback:
            log.warning("store is open to the network, without TLS or tokens address=%s", self._settings.listen)
        # Blocking queries end with the server: they have nothing to finish. (0 would mean: wait for ever.)
        application = ConsulApi(self).application(loopback=loopback)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, backlog=1024).start()
        except OSError as error:
            raise StoreError(
                f"the store cannot listen on {self._settings.listen}: {error.strerror or error}; "
                "stop what uses that port, or choose another address"
            ) from error
        bound = self._runner.addresses[0]
        self._address = f"http://[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"http://{bound[0]}:{bound[1]}"

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    async def write(self, apply: Callable[[Draft], _T]) -> _T:
        """Runs `apply` on a draft and returns what it returned once that is on the disk.

        Raises what `apply` raised (nothing is written then), `DatabaseError`, or `Busy`.
        """
        if len(self._writes) >= MAX_PENDING_WRITES:
            raise Busy(f"{MAX_PENDING_WRITES} writes are waiting already: try again")
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._writes.append(_Write(apply, done))
        self._wake_writer.set()
        return await done  # type: ignore[return-value]

    async def _write_batches(self, database: Database) -> None:
        while True:
            await self._wake_writer.wait()
            batch, self._writes = self._writes, []
            draft = Draft(self.state, self._now())
            outcomes = [(write.done, *_attempt(write.apply, draft)) for write in batch]
            failure: StoreError | None = None
            if draft.changed:
                try:
                    await self._in_thread(lambda draft=draft: database.commit(draft))  # type: ignore[misc]
                except StoreError as error:
                    log.warning("%s", error)
                    failure = error
                else:
                    self._publish(draft)
            for done, result, refusal in outcomes:
                if done.done():
                    continue
                if fault := failure or refusal:
                    done.set_exception(fault)
                else:
                    done.set_result(result)

    def _publish(self, draft: Draft) -> None:
        self.state.absorb(draft, self._now())
        for name, session in draft.sessions.items():
            if session is None:
                self._deadlines.pop(name, None)
            else:
                self.touch(name)
        for watcher in self._watchers:
            if any(watcher.concerns(key) for key in draft.rows):
                watcher.signal.set()

    # ── waiting ──────────────────────────────────────────────────────────────────────────────

    async def wait_for(self, key: str, recurse: bool, index: int, seconds: float) -> None:
        """Returns when the key (or, with `recurse`, the prefix) has changed after `index`, or after `seconds`."""
        if self.blocking_queries >= MAX_BLOCKING_QUERIES:
            raise Busy(f"{MAX_BLOCKING_QUERIES} blocking queries are waiting already: use fewer watches")
        index_of = self.state.prefix_index if recurse else self.state.key_index
        watcher = _Watcher(key, recurse)
        self._watchers.add(watcher)
        try:
            async with asyncio.timeout(seconds):
                while index_of(key) <= index:
                    await watcher.signal.wait()
        except TimeoutError:
            pass
        finally:
            self._watchers.discard(watcher)

    # ── sessions ─────────────────────────────────────────────────────────────────────────────

    def touch(self, session: str) -> None:
        """Begins a session's term anew. It lapses after twice its TTL, as Consul's do."""
        found = self.state.session(session)
        if found and found.ttl:
            self._deadlines[session] = self._now() + 2 * found.ttl
            self._wake_expiry.set()

    async def _expire_sessions(self) -> None:
        while True:
            now = self._now()
            lapsed = [session for session, at in self._deadlines.items() if at <= now]
            for session in lapsed:
                try:
                    await self.write(lambda draft, session=session: self._lapse(draft, session))  # type: ignore[misc]
                except StoreError:  # the writer has logged it
                    self._deadlines[session] = self._now() + RETRY_EXPIRY
            nearest = min(self._deadlines.values(), default=None)
            await self._wake_expiry.wait(None if nearest is None else max(nearest - self._now(), 0.0))

    def _lapse(self, draft: Draft, session: str) -> None:
        if self._deadlines.get(session, 0.0) <= self._now():  # else renewed meanwhile
            draft.destroy_session(session)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _attempt(apply: Callable[[Draft], object], batch: Draft) -> tuple[object, Refused | None]:
    """Runs one request's write; a refused one leaves no trace in the batch."""
    draft = batch.child()
    try:
        result = apply(draft)
    except Refused as refusal:
        return None, refusal
    batch.absorb(draft)
    return result, None
