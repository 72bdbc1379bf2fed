"""Sessions that are kept alive, and locks with a fence.

A holder that was paused (a stopped process, a long swap) may believe that it still holds its lock. So
nothing is decided by belief: every write carries `Lock.fence()` in its transaction, and the store refuses it
if the session no longer holds the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from mesh.aio import Backoff, Tasks
from mesh.store import Entry, Op, Store, StoreError, StoreRejected

log = logging.getLogger(__name__)

FIRST_RETRY, LONGEST_RETRY = 0.1, 2.0


class Held(StoreError):
    """Somebody else holds the lock."""


class KeptSession:
    """A session that is renewed every third of its TTL until it is closed or the store has ended it.

    While the store is away it is neither alive nor lost: renewals go on, and the store's answer decides.
    """

    def __init__(self, store: Store, id_: str, name: str, ttl: float) -> None:
        self.id = id_
        self.name = name
        self._store = store
        self._ttl = ttl
        self._renewed = time.monotonic()
        self._lost = asyncio.Event()
        self._tasks = Tasks()
        self._tasks.spawn(self._keep(), f"session-{name}")

    @classmethod
    async def create(cls, store: Store, name: str, ttl: float, *, lock_delay: float = 0.0) -> KeptSession:
        """`ttl` and `lock_delay` in seconds. The store ends it after one to two TTLs without a renewal."""
        return cls(store, await store.create_session(name, ttl, lock_delay=lock_delay), name, ttl)

    @property
    def age(self) -> float:
        """Seconds since the last renewal that the store confirmed."""
        return time.monotonic() - self._renewed

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    async def lost(self) -> None:
        """Returns when the store has ended the session."""
        await self._lost.wait()

    async def close(self, *, destroy: bool = True) -> None:
        """Stops renewing; with `destroy` its locks are free at once, else when the TTL is over."""
        await self._tasks.close()
        if destroy and not self.is_lost:
            try:
                await self._store.destroy_session(self.id)
            except StoreError as error:
                log.warning("session not destroyed, it ends by its TTL name=%s: %s", self.name, error)

    async def _keep(self) -> None:
        backoff = Backoff(FIRST_RETRY, max(self._ttl / 3, FIRST_RETRY))
        pause = self._ttl / 3
        while True:
            await asyncio.sleep(pause)
            asked = time.monotonic()
            try:
                alive = await self._store.renew_session(self.id)
            except StoreError as error:
                log.warning("session not renewed name=%s age=%.1f: %s", self.name, self.age, error)
                pause = backoff.next()
                continue
            if not alive:
                log.warning("session lost name=%s", self.name)
                self._lost.set()
                return
            self._renewed = asked
            backoff.reset()
            pause = self._ttl / 3


class Lock:
    """A key held by a session of our own, from `acquire` or `claim`, until it is lost or given back."""

    def __init__(self, store: Store, key: str, session: KeptSession) -> None:
        self.key = key
        self.session = session
        self._store = store
        self._lost = asyncio.Event()
        self._tasks = Tasks()
        self._tasks.spawn(self._watch(), f"lock-{key}")
        self._tasks.spawn(self._follow_session(), f"lock-session-{key}")

    def fence(self) -> Op:
        """To put before the writes of a transaction: they happen only while this lock holds."""
        return Op("check-session", self.key, session=self.session.id)

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    async def lost(self) -> None:
        """Returns when the lock is no longer ours."""
        await self._lost.wait()

    async def release(self) -> None:
        """Gives it back: the next may have it at once."""
        await self._tasks.close()
        await self.session.close(destroy=True)

    async def abandon(self) -> None:
        """Ends our care for it, and leaves it held until the TTL is over: for a restart that claims it again."""
        await self._tasks.close()
        await self.session.close(destroy=False)

    async def _follow_session(self) -> None:
        await self.session.lost()
        self._lose("its session ended")

    async def _watch(self) -> None:
        async for change in self._store.watch(self.key):
            # Watches may lag behind: only the leader's word counts.
            if _holder(change.entries.get(self.key)) != self.session.id and not await self._still_ours():
                self._lose("somebody took or deleted the key")
                return

    async def _still_ours(self) -> bool:
        while True:
            try:
                return _holder(await self._store.get(self.key)) == self.session.id
            except StoreError:
                await asyncio.sleep(FIRST_RETRY)

    def _lose(self, reason: str) -> None:
        if not self.is_lost:
            log.warning("lock lost key=%s name=%s: %s", self.key, self.session.name, reason)
            self._lost.set()


async def acquire(
    store: Store, key: str, value: bytes, session_name: str, ttl: float, *, lock_delay: float = 0.0
) -> Lock:
    """Waits, however long, until the key's lock is ours. For leadership: several may wait, one has it."""
    backoff = Backoff(FIRST_RETRY, LONGEST_RETRY)
    while True:
        try:
            session = await KeptSession.create(store, session_name, ttl, lock_delay=lock_delay)
            try:
                await _wait_for_lock(store, key, value, session)
            except BaseException:
                await session.close()
                raise
        except StoreError as error:
            log.warning("lock not taken key=%s name=%s: %s", key, session_name, error)
            await backoff.sleep()
        else:
            log.info("lock taken key=%s name=%s", key, session_name)
            return Lock(store, key, session)


async def claim(store: Store, key: str, value: Callable[[Entry | None], bytes], session_name: str, ttl: float) -> Lock:
    """Takes the key's lock now. A session of exactly our name that holds it is an earlier life of ours: it is ended.

    `value` makes of what was in the key what is to be in it: all that the earlier life has written is there by then.
    Raises `Held` if a session of another name holds the lock, and other `StoreError`s as they come.
    """
    session = await KeptSession.create(store, session_name, ttl)
    backoff = Backoff(FIRST_RETRY, LONGEST_RETRY)
    try:
        while True:
            before = await store.get(key)
            if holder := _holder(before):
                await _end_earlier_life(store, key, holder, session_name)
            elif await store.acquire(key, value(before), session.id):
                return Lock(store, key, session)
            else:  # a lock-delay runs, or somebody was faster
                await backoff.sleep()
    except BaseException:
        await session.close()
        raise


@contextlib.asynccontextmanager
async def held(store: Store, key: str, value: bytes, session_name: str, ttl: float) -> AsyncIterator[Lock]:
    """`async with held(…) as lock`: acquired on entry, given back on exit."""
    lock = await acquire(store, key, value, session_name, ttl)
    try:
        yield lock
    finally:
        await lock.release()


async def _wait_for_lock(store: Store, key: str, value: bytes, session: KeptSession) -> None:
    backoff = Backoff(FIRST_RETRY, LONGEST_RETRY)
    while not await store.acquire(key, value, session.id):
        if _holder(await store.get(key)):
            await _until_free(store, key)
        else:  # free, but a lock-delay runs, or somebody was faster
            await backoff.sleep()
        if session.is_lost:
            raise StoreRejected(f"the session {session.name} ended while it waited for {key}")


async def _until_free(store: Store, key: str) -> None:
    async for change in store.watch(key):
        if _holder(change.entries.get(key)) is None:
            return


async def _end_earlier_life(store: Store, key: str, holder: str, session_name: str) -> None:
    name = await store.session_name(holder)
    if name is None:  # it ended just now
        return
    if name != session_name:
        raise Held(
            f"{key} is held by {name!r}, and this is {session_name!r}: "
            "another machine uses the same name. Stop that one, or choose another name"
        )
    log.info("taking over from an earlier life key=%s session=%s", key, holder)
    await store.destroy_session(holder)


def _holder(entry: Entry | None) -> str | None:
    return entry.session if entry else None
