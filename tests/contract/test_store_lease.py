"""Kept sessions, locks and their fences, over the fake, the embedded store and a real Consul."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.settings import EmbeddedStoreSettings, StoreSettings
from mesh.store import Entry, Op, Store, StoreUnavailable, lease
from mesh.store.consul import ConsulStore
from mesh.store.embedded import EmbeddedStore
from mesh.store.lease import Held, KeptSession, Lock
from tests.fakes.store import FakeStore
from tests.patience import soon, until

DEADLINE = 30.0
TTL = 1.0
KEY = "t/lock"
HOLDER = [sys.executable, "-m", "tests.parts.lock_holder"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def fake() -> AsyncIterator[FakeStore]:
    fake = FakeStore()
    yield fake
    await fake.close()


async def holder(store: Store) -> str | None:
    entry = await store.get(KEY)
    return entry.session if entry else None


async def write_fenced(store: Store, lock: Lock, value: bytes) -> bool:
    return (await store.txn([lock.fence(), Op("set", "t/work", value)])).ok


# ── sessions ─────────────────────────────────────────────────────────────────────────────────


async def test_a_kept_session_outlives_its_ttl(store: Store) -> None:
    session = await KeptSession.create(store, "kept", TTL)
    unkept = await store.create_session("unkept", TTL * 1.5)

    async def other_ended() -> bool:
        return await store.session_name(unkept) is None

    await until(other_ended)
    assert not session.is_lost
    assert session.age < DEADLINE
    await session.close()
    assert await store.session_name(session.id) is None


async def test_a_session_that_the_store_ended_is_lost(store: Store) -> None:
    session = await KeptSession.create(store, "kept", TTL)
    await store.destroy_session(session.id)
    await soon(session.lost())
    assert session.is_lost
    await session.close()


async def test_a_session_is_not_lost_while_the_store_is_away(fake: FakeStore) -> None:
    session = await KeptSession.create(fake, "kept", 0.3)
    with fake.away():

        async def old() -> bool:
            return session.age > 0.2

        await until(old)
        assert not session.is_lost

    async def renewed() -> bool:
        return session.age < 0.2

    await until(renewed)
    assert not session.is_lost
    await session.close()


async def test_closing_without_the_store_raises_nothing(fake: FakeStore) -> None:
    session = await KeptSession.create(fake, "kept", TTL)
    with fake.away():
        await session.close()


# ── leadership ───────────────────────────────────────────────────────────────────────────────


async def test_one_leads_and_the_next_follows_at_once(store: Store) -> None:
    first = await lease.acquire(store, KEY, b"first", "first", TTL)
    waiting = asyncio.create_task(lease.acquire(store, KEY, b"second", "second", TTL))
    assert await write_fenced(store, first, b"1")
    assert await holder(store) == first.session.id
    assert not waiting.done()
    await first.release()
    async with asyncio.timeout(DEADLINE):
        second = await waiting
    assert not await write_fenced(store, first, b"old")
    assert await write_fenced(store, second, b"2")
    await second.release()
    assert await holder(store) is None


async def test_the_next_leads_when_the_first_vanishes(store: Store) -> None:
    first = await lease.acquire(store, KEY, b"first", "first", TTL)
    await first.abandon()
    assert await holder(store) == first.session.id
    async with asyncio.timeout(DEADLINE):
        second = await lease.acquire(store, KEY, b"second", "second", TTL)
    assert not await write_fenced(store, first, b"old")
    await second.release()


@pytest.mark.parametrize("cause", ["session", "deletion", "theft"])
async def test_a_holder_is_told_of_its_loss(store: Store, cause: str) -> None:
    lock = await lease.acquire(store, KEY, b"", "holder", 60)
    other = await store.create_session("thief", 60)
    match cause:
        case "session":
            await store.destroy_session(lock.session.id)
        case "deletion":
            await store.delete(KEY)
        case "theft":
            await store.release(KEY, lock.session.id)
            await store.acquire(KEY, b"", other)
    await soon(lock.lost())
    assert not await write_fenced(store, lock, b"old")
    await lock.release()
    assert await holder(store) == (other if cause == "theft" else None)


async def test_a_write_to_the_lock_by_its_holder_is_no_loss(store: Store) -> None:
    lock = await lease.acquire(store, KEY, b"1", "holder", 60)
    for value in (b"2", b"3"):
        assert (await store.txn([lock.fence(), Op("set", KEY, value)])).ok
    lost = asyncio.create_task(lock.lost())
    changes = aiter(store.watch(KEY))
    assert (await anext(changes)).entries[KEY].value == b"3"
    assert not lost.done()
    lost.cancel()
    await lock.release()


async def test_lock_delay_is_waited_out(store: Store) -> None:
    first = await lease.acquire(store, KEY, b"", "first", TTL, lock_delay=0.5)
    await store.destroy_session(first.session.id)
    async with asyncio.timeout(DEADLINE):
        second = await lease.acquire(store, KEY, b"", "second", TTL)
    assert await write_fenced(store, second, b"")
    await first.release()
    await second.release()


async def test_waiting_ends_by_cancellation_and_leaves_no_session(fake: FakeStore) -> None:
    first = await lease.acquire(fake, KEY, b"", "first", TTL)
    waiting = asyncio.create_task(lease.acquire(fake, KEY, b"", "second", TTL))

    async def waits() -> bool:
        return len(fake.sessions) == 2

    await until(waits)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert set(fake.sessions) == {first.session.id}
    await first.release()
    assert not fake.sessions


async def test_it_waits_for_a_store_that_is_away(fake: FakeStore) -> None:
    with fake.away():
        waiting = asyncio.create_task(lease.acquire(fake, KEY, b"", "first", TTL))
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable):
            await fake.get(KEY)
    async with asyncio.timeout(DEADLINE):
        lock = await waiting
    await lock.release()


async def test_an_outage_loses_no_lock(fake: FakeStore) -> None:
    lock = await lease.acquire(fake, KEY, b"", "first", 60)
    with fake.away(), pytest.raises(StoreUnavailable):
        await write_fenced(fake, lock, b"")
    assert await write_fenced(fake, lock, b"1")
    assert not lock.is_lost
    await lock.release()


async def test_held_gives_back_what_it_took(store: Store) -> None:
    async with lease.held(store, KEY, b"", "holder", TTL) as lock:
        assert await holder(store) == lock.session.id
    assert await holder(store) is None


async def test_a_stopped_holder_cannot_write_behind_its_fence(tmp_path: Path) -> None:
    """SIGSTOP: the holder sleeps through its session's end and wakes up believing that it leads."""
    server = EmbeddedStore(EmbeddedStoreSettings(tmp_path, "127.0.0.1:0"))
    await server.start()
    store = ConsulStore(StoreSettings(address=server.address))
    process = subprocess.Popen([*HOLDER, server.address, KEY, str(TTL)], cwd=ROOT)  # noqa: ASYNC220

    async def works() -> bool:
        return await store.get("t/work") is not None

    try:
        await until(works)
        process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(DEADLINE):
            lock = await lease.acquire(store, KEY, b"", "next", TTL)
        assert await write_fenced(store, lock, b"next")
        process.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(process.wait, DEADLINE) == 0  # it was refused, and ended
        entry = await store.get("t/work")
        assert entry
        assert entry.value == b"next"
        await lock.release()
    finally:
        process.kill()
        process.wait()
        await store.close()
        await server.close()


# ── an agent's key ───────────────────────────────────────────────────────────────────────────


async def test_an_earlier_life_of_the_same_name_is_ended(store: Store) -> None:
    first = await lease.claim(store, KEY, lambda _: b"1", "mesh-agent n1 id", 60)
    await first.abandon()
    second = await lease.claim(store, KEY, lambda _: b"2", "mesh-agent n1 id", 60)
    assert await holder(store) == second.session.id
    assert await store.session_name(first.session.id) is None
    assert not await write_fenced(store, first, b"old")
    await second.release()


async def test_what_an_earlier_life_wrote_last_is_known(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await lease.claim(store, KEY, lambda _: b"1", "mesh-agent n1 id", 60)
    await first.abandon()
    destroy = store.destroy_session

    async def destroy_late(session: str) -> None:
        assert (await store.txn([Op("lock", KEY, b"2", session=session)])).ok  # it was under way
        await destroy(session)

    monkeypatch.setattr(store, "destroy_session", destroy_late)
    known: list[bytes] = []

    def value(before: Entry | None) -> bytes:
        known.append(before.value if before else b"")
        return b"3"

    second = await lease.claim(store, KEY, value, "mesh-agent n1 id", 60)
    assert known[-1] == b"2"
    monkeypatch.undo()
    await second.release()


async def test_another_machine_with_the_name_is_refused(store: Store) -> None:
    first = await lease.claim(store, KEY, lambda _: b"1", "mesh-agent n1 one", 60)
    with pytest.raises(Held, match=r"held by 'mesh-agent n1 one'.*'mesh-agent n1 two'"):
        await lease.claim(store, KEY, lambda _: b"2", "mesh-agent n1 two", 60)
    assert await write_fenced(store, first, b"1")
    await first.release()
    second = await lease.claim(store, KEY, lambda _: b"2", "mesh-agent n1 two", 60)
    await second.release()


async def test_a_claim_needs_the_store(fake: FakeStore) -> None:
    with fake.away(), pytest.raises(StoreUnavailable):
        await lease.claim(fake, KEY, lambda _: b"", "mesh-agent n1 id", 60)
