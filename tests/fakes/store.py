"""A store in memory for unit tests: the embedded store's own rules, without files, sockets or threads.

It passes the same contract as the real ones. `away()` makes it unreachable for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from mesh.aio import Signal
from mesh.store import (
    MAX_TXN_OPS,
    MAX_VALUE,
    Change,
    Entry,
    Listing,
    Op,
    StoreRejected,
    StoreUnavailable,
    TxnResult,
    key_fault,
)
from mesh.store.embedded_state import Draft, Refused, Row, Session, State, UnknownSession
from mesh.store.marks import Mark

_T = TypeVar("_T")


class FakeStore:
    """`mesh.store.Store` in memory; must be used inside a running loop, whose clock ends its sessions."""

    address = "fake"

    def __init__(self) -> None:
        self.writes = 0
        """How many writes changed something: for tests of coalescing."""
        self._state = State({}, {}, 1)
        self._watchers: set[Signal] = set()
        self._away = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def contact_age(self) -> float:
        return 60.0 if self._away else 0.0

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Unreachable inside the block."""
        self._away = True
        try:
            yield
        finally:
            self._away = False
            self._wake()

    async def get(self, key: str, *, stale: bool = False) -> Entry | None:
        await self._reach(key)
        row = self._state.get(key)
        return _entry(row) if row else None

    async def list(self, prefix: str, *, stale: bool = False) -> Listing:
        await self._reach()
        return Listing(self._state.prefix_index(prefix), {row.key: _entry(row) for row in self._state.scan(prefix)})

    async def marks(self, prefix: str) -> tuple[int, Mapping[str, Mark]]:
        listing = await self.list(prefix)
        marks = {key: Mark(key, entry.modify_index, entry.session) for key, entry in listing.entries.items()}
        return listing.index, marks

    async def put(self, key: str, value: bytes, *, cas: int | None = None) -> bool:
        await self._reach(key, value)
        if cas is None:
            return self._succeeds(lambda draft: draft.put(key, value))
        return self._succeeds(lambda draft: draft.put_if(key, value, 0, cas))

    async def delete(self, key: str, *, cas: int | None = None) -> bool:
        await self._reach(key)
        if cas is None:
            return self._succeeds(lambda draft: draft.delete(key))
        return self._succeeds(lambda draft: draft.delete_if(key, cas))

    async def delete_prefix(self, prefix: str) -> None:
        await self._reach(prefix)
        self._write(lambda draft: draft.delete_prefix(prefix))

    async def txn(self, ops: Sequence[Op]) -> TxnResult:
        for op in ops:
            await self._reach(op.key)
        if len(ops) > MAX_TXN_OPS or sum(len(op.value) * 4 // 3 + 64 for op in ops) > MAX_VALUE:
            raise StoreRejected("the transaction is too large")
        failures: list[tuple[int, str]] = []

        def run(draft: Draft) -> list[Entry]:
            written = []
            for position, op in enumerate(ops):
                try:
                    row = _run(draft, op)
                except Refused as refusal:
                    failures.append((position, str(refusal)))
                else:
                    written += [_entry(row)] if row else []
            if failures:
                raise Refused
            return written

        try:
            return TxnResult(True, self._write(run))
        except Refused:
            return TxnResult(False, failed=[at for at, _ in failures], errors=[words for _, words in failures])

    async def watch(self, prefix: str, seen: int = 0, *, marked: bool = False) -> AsyncIterator[Change]:
        signal = Signal()
        self._watchers.add(signal)
        known: dict[str, Entry] | None = None
        try:
            while True:
                if not self._away:
                    found = self._state.scan(prefix)
                    entries = {row.key: _entry(row) for row in found if row.key == prefix or prefix.endswith("/")}
                    before = known or {}
                    changed = frozenset(k for k in entries.keys() | before.keys() if entries.get(k) != before.get(k))
                    if known is None or changed:
                        known = entries
                        yield Change(self._state.prefix_index(prefix), entries, changed)
                        continue
                await signal.wait()
        finally:
            self._watchers.discard(signal)

    async def create_session(
        self,
        name: str,
        ttl: float,
        *,
        behavior: Literal["release", "delete"] = "release",
        lock_delay: float = 0.0,
    ) -> str:
        await self._reach()
        session = Session(str(uuid.uuid4()), name, ttl, behavior, lock_delay)
        self._write(lambda draft: draft.create_session(session))
        self._begin_term(session)
        return session.id

    async def renew_session(self, session: str) -> bool:
        await self._reach()
        found = self._state.session(session)
        if found:
            self._begin_term(found)
        return found is not None

    async def destroy_session(self, session: str) -> None:
        await self._reach()
        self.end_session(session)

    async def session_name(self, session: str) -> str | None:
        await self._reach()
        found = self._state.session(session)
        return found.name if found else None

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        await self._reach(key, value)
        try:
            return self._succeeds(lambda draft: draft.lock(key, value, 0, session))
        except UnknownSession as error:
            raise StoreRejected(str(error)) from error

    async def release(self, key: str, session: str) -> bool:
        await self._reach(key)
        row = self._state.get(key)
        return row is not None and self._succeeds(lambda draft: draft.unlock(key, row.value, 0, session))

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    # ── for tests ────────────────────────────────────────────────────────────────────────────

    @property
    def sessions(self) -> Mapping[str, Session]:
        return self._state.sessions

    def end_session(self, session: str) -> None:
        """As if its TTL were over."""
        if timer := self._timers.pop(session, None):
            timer.cancel()
        self._write(lambda draft: draft.destroy_session(session))

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    async def _reach(self, key: str = "any", value: bytes = b"") -> None:
        await asyncio.sleep(0)
        if self._away:
            raise StoreUnavailable("the fake store is away")
        if fault := key_fault(key):
            raise StoreRejected(fault)
        if len(value) > MAX_VALUE:
            raise StoreRejected("the value is too large")

    def _begin_term(self, session: Session) -> None:
        if timer := self._timers.get(session.id):
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._timers[session.id] = loop.call_later(2 * session.ttl, self.end_session, session.id)

    def _succeeds(self, apply: Callable[[Draft], object]) -> bool:
        try:
            self._write(apply)
        except UnknownSession:
            raise
        except Refused:
            return False
        return True

    def _write(self, apply: Callable[[Draft], _T]) -> _T:
        now = asyncio.get_running_loop().time()
        draft = Draft(self._state, now)
        result = apply(draft)
        if draft.changed:
            self.writes += 1
            self._state.absorb(draft, now)
            self._wake()
        return result

    def _wake(self) -> None:
        for signal in self._watchers:
            signal.set()


def _entry(row: Row) -> Entry:
    return Entry(row.key, row.value, row.modify_index, row.create_index, row.session)


def _run(draft: Draft, op: Op) -> Row | None:
    """One step; the row if it wrote one."""
    match op.verb:
        case "set":
            return draft.put(op.key, op.value)
        case "cas":
            return draft.put_if(op.key, op.value, 0, op.index)
        case "lock":
            return draft.lock(op.key, op.value, 0, op.session or "")
        case "unlock":
            return draft.unlock(op.key, op.value, 0, op.session or "")
        case "delete":
            draft.delete(op.key)
        case "delete-cas":
            draft.delete_if(op.key, op.index)
        case "check-index":
            draft.check_index(op.key, op.index)
        case "check-session":
            draft.check_session(op.key, op.session or "")
    return None
