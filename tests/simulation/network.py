"""The store in the middle, and each client's way to it, on which everything may go wrong.

A request travels, is carried out at one instant whatever became of its sender, and its answer travels back: so a write
may have happened though its answer was lost. Watches are blocking queries and may lag behind.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Literal, TypeVar

from mesh.keys import Keys
from mesh.store import Change, Entry, Listing, Op, StoreError, StoreUnavailable, TxnResult
from mesh.store.embedded_state import Draft, Session
from mesh.store.marks import Mark, MarkedPrefix
from mesh.store.watching import changes
from tests.fakes.store import FakeStore
from tests.simulation.clock import VirtualLoop
from tests.simulation.history import Fact, Written

_T = TypeVar("_T")

PATIENCE = 5.0
"""Seconds that a client waits for an answer."""

KEYS = Keys()


class Middle(FakeStore):
    """The store's servers: knows who writes, and tells only those whose prefix has changed."""

    def __init__(self, loop: VirtualLoop, record: Callable[[Fact], None]) -> None:
        super().__init__()
        self.down = False
        self.writer = ""
        self.owners: dict[str, str] = {}  # session → the client that made it
        self._loop = loop
        self._record = record
        self._numbers = itertools.count(1)
        self._waiting: dict[str, list[tuple[int, Callable[[Listing], None]]]] = {}
        self._listings: dict[str, Listing] = {}

    def now(self, operation: Coroutine[Any, Any, _T], writer: str = "") -> _T:
        """Carries out an operation at once."""
        self.writer = writer
        try:
            while True:
                operation.send(None)  # the fake store only ever sleeps for 0
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        finally:
            self.writer = ""

    def listing(self, prefix: str) -> Listing:
        if prefix not in self._listings:
            self._listings[prefix] = self.now(super().list(prefix))
        return self._listings[prefix]

    def query(self, prefix: str, index: int, answer: Callable[[Listing], None]) -> None:
        """Answers when the prefix is newer than `index`."""
        listing = self.listing(prefix)
        if listing.index > index:
            answer(listing)
        else:
            self._waiting.setdefault(prefix, []).append((index, answer))

    def leads(self, client: str) -> bool:
        """Whether that client's session holds the leader's lock."""
        entry = self._state.get(KEYS.leader)
        return entry is not None and self.owners.get(entry.session or "") == client

    def set_down(self, down: bool) -> None:
        """No quorum. Those who lead afterwards begin every session's term anew, as Consul's do."""
        self.down = down
        for session in self.sessions.values():
            if down:
                self._timers.pop(session.id).cancel()
            else:
                self._begin_term(session)

    async def create_session(
        self,
        name: str,
        ttl: float,
        *,
        behavior: Literal["release", "delete"] = "release",
        lock_delay: float = 0.0,
    ) -> str:
        session = Session(f"{self.writer}-{next(self._numbers):04}", name, ttl, behavior, lock_delay)
        self.owners[session.id] = self.writer
        self._write(lambda draft: draft.create_session(session))
        self._begin_term(session)
        return session.id

    def _begin_term(self, session: Session) -> None:
        if timer := self._timers.get(session.id):
            timer.cancel()
        self._timers[session.id] = self._loop.later(2 * session.ttl, self.end_session, session.id)

    def _write(self, apply: Callable[[Draft], _T]) -> _T:
        now = self._loop.time()
        draft = Draft(self._state, now)
        as_leader = self.leads(self.writer)
        result = apply(draft)
        if draft.changed:
            self._state.absorb(draft, now)
            for key, row in draft.rows.items():
                value, session = (row.value, row.session) if row else (None, None)
                self._record(Written(now, key, value, draft.index, session, self.writer, as_leader))
            self._tell(draft.rows)
        return result

    def _tell(self, changed: Mapping[str, object]) -> None:
        for prefix in [known for known in self._listings if any(key.startswith(known) for key in changed)]:
            del self._listings[prefix]
        for prefix in [known for known in self._waiting if any(key.startswith(known) for key in changed)]:
            for _, answer in self._waiting.pop(prefix):
                answer(self.listing(prefix))


class Link:
    """One client's way to the store: `mesh.store.Store`.

    Faults: `cut` (nothing arrives), `loss` (share of requests and of answers that are lost), `delay` (more seconds
    each way), `lag` (more seconds on the answers of watches), `repeat` (share of requests that arrive twice).
    """

    address = "simulated"

    def __init__(self, loop: VirtualLoop, middle: Middle, client: str, choose: random.Random) -> None:
        self.client = client
        self.cut = False
        self.loss = 0.0
        self.delay = 0.0
        self.lag = 0.0
        self.repeat = 0.0
        self.closed = False
        self._loop = loop
        self._middle = middle
        self._choose = choose
        self._answered = loop.time()

    @property
    def contact_age(self) -> float:
        return self._loop.time() - self._answered

    def heal(self) -> None:
        self.cut = False
        self.loss = self.delay = self.lag = self.repeat = 0.0

    # ── the way there and back ───────────────────────────────────────────────────────────────

    def _trip(self) -> float:
        return self._choose.uniform(0.0002, 0.003) + (self.delay and self.delay * self._choose.uniform(0.5, 1.5))

    def _is_lost(self) -> bool:
        return self.cut or (self.loss > 0 and self._choose.random() < self.loss)

    async def _ask(self, operation: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        if self.closed:
            raise StoreUnavailable("the simulation is over")
        answer: asyncio.Future[_T] = self._loop.create_future()
        sent = self._loop.time()

        def fail(why: str) -> None:
            if not answer.done():
                answer.set_exception(StoreUnavailable(why))

        def lose() -> None:
            at_once = self._choose.random() < 0.5
            left = 0.0 if at_once else max(0.0, sent + PATIENCE - self._loop.time())
            self._loop.later(left, fail, "connection reset" if at_once else f"no answer within {PATIENCE:g} s")

        def arrive() -> None:
            if self._is_lost():
                lose()
                return
            if self._middle.down:
                self._loop.later(self._trip(), fail, "no leader")
                return
            try:
                if self.repeat and self._choose.random() < self.repeat:
                    self._middle.now(operation(), self.client)
                result: _T | StoreError = self._middle.now(operation(), self.client)
            except StoreError as error:
                result = error
            self._loop.later(self._trip(), deliver, result)

        def deliver(result: _T | StoreError) -> None:
            if self._is_lost():
                lose()
            elif not answer.done():
                self._answered = self._loop.time()
                if isinstance(result, StoreError):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

        self._loop.later(self._trip(), arrive)
        return await answer

    async def _query(self, prefix: str, index: int) -> Listing:
        """A blocking query; a broken connection is noticed late."""
        answer: asyncio.Future[Listing] = self._loop.create_future()

        def fail() -> None:
            if not answer.done():
                answer.set_exception(StoreUnavailable("connection lost"))

        def ready(listing: Listing) -> None:
            if not answer.done():  # else nobody asks any more
                self._loop.later(self._trip() + self.lag * self._choose.random(), deliver, listing)

        def deliver(listing: Listing) -> None:
            if self._is_lost() or self._middle.down:
                self._loop.later(self._choose.uniform(0.0, PATIENCE), fail)
            elif not answer.done():
                self._answered = self._loop.time()
                answer.set_result(listing)

        def arrive() -> None:
            if self._is_lost() or self._middle.down:
                self._loop.later(self._choose.uniform(0.0, PATIENCE), fail)
            else:
                self._middle.query(prefix, index, ready)

        self._loop.later(self._trip(), arrive)
        self._loop.later(60.0, fail)
        return await answer

    def watch(self, prefix: str, seen: int = 0, *, marked: bool = False) -> AsyncIterator[Change]:
        return changes(MarkedPrefix(self, prefix, seen) if marked else _Whole(self._query, prefix), prefix)

    async def touched(self, prefix: str, beyond: int) -> int:
        return (await self._query(prefix, beyond)).index

    async def marks(self, prefix: str, *, stale: bool = False) -> tuple[int, Mapping[str, Mark]]:
        return await self._ask(lambda: self._middle.marks(prefix))

    async def read(self, keys: Collection[str], *, stale: bool = False) -> Mapping[str, Entry]:
        found = [await self.get(key) for key in keys]
        return {entry.key: entry for entry in found if entry}

    # ── the protocol ─────────────────────────────────────────────────────────────────────────

    async def get(self, key: str, *, stale: bool = False) -> Entry | None:
        return await self._ask(lambda: self._middle.get(key))

    async def list(self, prefix: str, *, stale: bool = False) -> Listing:
        return await self._ask(lambda: self._middle.list(prefix))

    async def put(self, key: str, value: bytes, *, cas: int | None = None) -> bool:
        return await self._ask(lambda: self._middle.put(key, value, cas=cas))

    async def delete(self, key: str, *, cas: int | None = None) -> bool:
        return await self._ask(lambda: self._middle.delete(key, cas=cas))

    async def delete_prefix(self, prefix: str) -> None:
        await self._ask(lambda: self._middle.delete_prefix(prefix))

    async def txn(self, ops: Sequence[Op]) -> TxnResult:
        return await self._ask(lambda: self._middle.txn(ops))

    async def create_session(
        self,
        name: str,
        ttl: float,
        *,
        behavior: Literal["release", "delete"] = "release",
        lock_delay: float = 0.0,
    ) -> str:
        return await self._ask(
            lambda: self._middle.create_session(name, ttl, behavior=behavior, lock_delay=lock_delay)
        )  # fmt: skip

    async def renew_session(self, session: str) -> bool:
        return await self._ask(lambda: self._middle.renew_session(session))

    async def destroy_session(self, session: str) -> None:
        await self._ask(lambda: self._middle.destroy_session(session))

    async def session_name(self, session: str) -> str | None:
        return await self._ask(lambda: self._middle.session_name(session))

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        return await self._ask(lambda: self._middle.acquire(key, value, session))

    async def release(self, key: str, session: str) -> bool:
        return await self._ask(lambda: self._middle.release(key, session))

    async def close(self) -> None:
        """Nothing to close."""


class _Whole:
    """A prefix, or a key, that is read as a whole at each change."""

    def __init__(self, query: Callable[[str, int], Coroutine[Any, Any, Listing]], prefix: str) -> None:
        self._query = query
        self._prefix = prefix
        self._index = 0

    def forget(self) -> None:
        self._index = 0

    async def next(self) -> Listing:
        listing = await self._query(self._prefix, self._index)
        self._index = listing.index
        if self._prefix.endswith("/"):
            return listing
        return Listing(listing.index, {key: entry for key, entry in listing.entries.items() if key == self._prefix})
