"""What every store must do, whichever it is: a real Consul, the embedded store, the fake of the unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from mesh.store import MAX_TXN_OPS, MAX_VALUE, Change, Op, Store, StoreRejected
from mesh.store.marks import marked
from tests.patience import until

DEADLINE = 30.0
GONE = "adf4238a-882b-9ddc-4a9d-5b6758e4159e"
"""The id of no session."""


class Watching:
    """A watch in the background, whose changes a test takes one by one."""

    def __init__(self, store: Store, prefix: str, *, marked: bool = False) -> None:
        self._changes: asyncio.Queue[Change] = asyncio.Queue()
        self._task = asyncio.create_task(self._follow(store, prefix, marked=marked))

    async def _follow(self, store: Store, prefix: str, *, marked: bool) -> None:
        async for change in store.watch(prefix, marked=marked):
            self._changes.put_nowait(change)

    async def next(self) -> Change:
        async with asyncio.timeout(DEADLINE):
            return await self._changes.get()

    async def until(self, holds: Callable[[Change], bool]) -> Change:
        while not holds(change := await self.next()):
            pass
        return change

    @property
    def silent(self) -> bool:
        return self._changes.empty()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def watch(store: Store) -> AsyncIterator[Callable[[str], Watching]]:
    watches: list[Watching] = []

    def begin(prefix: str) -> Watching:
        watches.append(Watching(store, prefix))
        return watches[-1]

    yield begin
    for each in watches:
        await each.close()


async def index_of(store: Store, key: str) -> int:
    entry = await store.get(key)
    assert entry
    return entry.modify_index


# ── keys ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_read_as_written(store: Store) -> None:
    assert await store.get("t/a") is None
    assert await store.put("t/a", b"one")
    entry = await store.get("t/a")
    assert entry
    assert (entry.key, entry.value, entry.session) == ("t/a", b"one", None)
    assert entry.modify_index == entry.create_index > 0
    assert await store.get("t/a", stale=True) == entry


@pytest.mark.parametrize(
    "value", [b"", b"\0", bytes(range(256)), b'{"a": "\\u00e4"}', "grüße ☃".encode(), b"x" * MAX_VALUE]
)
async def test_any_bytes_are_a_value(store: Store, value: bytes) -> None:
    await store.put("t/v", value)
    entry = await store.get("t/v")
    assert entry
    assert entry.value == value
    assert (await store.list("t/v")).entries == {"t/v": entry}


ODD_KEYS = [
    "t/sp ace",
    "t/50%",
    "t/%2F",
    "t/a%20b",
    "t/q?x=1",
    "t/h#sh",
    "t/a+b",
    "t/ünï/☃",
    "t/a:b@c",
    "t/a;b,c=d&e",
    "t/.x",
    "t/x..y",
    "t/dir/",
]


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_odd_characters_in_keys(store: Store, key: str) -> None:
    await store.put(key, b"one")
    result = await store.txn([Op("set", key + "2", b"two")])
    assert result.entries[0].key == key + "2"
    assert set((await store.list("t/")).entries) == {key, key + "2"}
    assert await store.get(key) == (await store.list(key)).entries[key]
    assert await store.delete(key)
    assert await store.get(key) is None


@pytest.mark.parametrize("key", ["", "/t", "t//a", "t/../a", "t/./a", "t/..", "t/a\0b", "t/" + "x" * 2000])
async def test_keys_that_http_would_change_are_refused(store: Store, key: str) -> None:
    with pytest.raises(StoreRejected, match="key"):
        await store.put(key, b"")
    with pytest.raises(StoreRejected, match="key"):
        await store.txn([Op("set", key, b"")])


async def test_a_list_is_what_the_prefix_begins(store: Store) -> None:
    for key in ("t/a", "t/a/1", "t/a/2", "t/ab", "t/b"):
        await store.put(key, key.encode())
    listing = await store.list("t/a/")
    assert {key: entry.value for key, entry in listing.entries.items()} == {"t/a/1": b"t/a/1", "t/a/2": b"t/a/2"}
    assert listing.index >= max(entry.modify_index for entry in listing.entries.values())
    assert set((await store.list("t/a", stale=True)).entries) == {"t/a", "t/a/1", "t/a/2", "t/ab"}
    assert (await store.list("t/none")).entries == {}


async def test_compare_and_set(store: Store) -> None:
    assert await store.put("t/c", b"1", cas=0)
    assert not await store.put("t/c", b"2", cas=0)
    first = await index_of(store, "t/c")
    assert await store.put("t/c", b"2", cas=first)
    assert not await store.put("t/c", b"3", cas=first)
    assert not await store.put("t/none", b"", cas=first)
    assert not await store.delete("t/c", cas=first)
    assert await store.delete("t/c", cas=await index_of(store, "t/c"))
    assert await store.get("t/c") is None


async def test_an_equal_write_changes_nothing(store: Store) -> None:
    await store.put("t/e", b"same")
    before = await store.get("t/e")
    await store.put("t/e", b"same")
    assert await store.get("t/e") == before


async def test_deletion(store: Store) -> None:
    for key in ("t/d", "t/d/1", "t/d/2", "t/da"):
        await store.put(key, b"")
    assert await store.delete("t/d")
    assert await store.delete("t/never")
    await store.delete_prefix("t/d/")
    assert set((await store.list("t/")).entries) == {"t/da"}


async def test_create_index_survives_writes_but_not_deletion(store: Store) -> None:
    await store.put("t/i", b"1")
    first = await store.get("t/i")
    await store.put("t/i", b"2")
    second = await store.get("t/i")
    await store.delete("t/i")
    await store.put("t/i", b"3")
    third = await store.get("t/i")
    assert first
    assert second
    assert third
    assert second.create_index == first.create_index < second.modify_index < third.create_index


async def test_a_value_beyond_the_limit_is_refused(store: Store) -> None:
    with pytest.raises(StoreRejected):
        await store.put("t/big", b"x" * (MAX_VALUE + 1))
    assert await store.get("t/big") is None


# ── transactions ─────────────────────────────────────────────────────────────────────────────


async def test_a_transaction_happens_as_a_whole(store: Store) -> None:
    await store.put("t/1", b"old")
    await store.put("t/2", b"old")
    result = await store.txn(
        [
            Op("set", "t/1", b"\xff\0"),
            Op("check-index", "t/2", index=await index_of(store, "t/2")),
            Op("delete", "t/2"),
            Op("cas", "t/3", b"new", index=0),
        ]
    )
    assert result.ok
    assert [(entry.key, entry.value) for entry in result.entries] == [("t/1", b"\xff\0"), ("t/3", b"new")]
    assert (await store.list("t/")).entries == {entry.key: entry for entry in result.entries}


async def test_a_refused_transaction_changes_nothing_and_says_why(store: Store) -> None:
    await store.put("t/1", b"old")
    before = await store.list("t/")
    result = await store.txn(
        [
            Op("set", "t/1", b"new"),
            Op("cas", "t/1", b"new", index=1),
            Op("delete", "t/1"),
            Op("check-index", "t/none", index=5),
            Op("delete-cas", "t/none", index=9),
        ]
    )
    assert not result.ok
    assert list(result.failed) == [1, 3]
    assert "index is stale" in result.errors[0]
    assert "t/none" in result.errors[1]
    assert (await store.list("t/")).entries == before.entries


async def test_steps_see_those_before_them(store: Store) -> None:
    session = await store.create_session("s", 60)
    result = await store.txn(
        [
            Op("lock", "t/l", b"mine", session=session),
            Op("check-session", "t/l", session=session),
            Op("set", "t/l", b"still mine"),
            Op("unlock", "t/l", b"free", session=session),
            Op("delete-cas", "t/none"),
        ]
    )
    assert result.ok, result.errors
    entry = await store.get("t/l")
    assert entry
    assert (entry.value, entry.session) == (b"free", None)


async def test_the_limits_of_a_transaction(store: Store) -> None:
    steps = [Op("set", f"t/{n:02}", b"") for n in range(MAX_TXN_OPS + 1)]
    with pytest.raises(StoreRejected):
        await store.txn(steps)
    assert (await store.txn(steps[:-1])).ok
    assert len((await store.list("t/")).entries) == MAX_TXN_OPS
    assert (await store.txn([])).ok
    with pytest.raises(StoreRejected):
        await store.txn([Op("set", f"t/{n}", b"x" * 200_000) for n in range(3)])


async def test_a_fence_holds_back_who_lost_the_lock(store: Store) -> None:
    mine, other = await store.create_session("mine", 60), await store.create_session("other", 60)
    assert await store.acquire("t/lock", b"", mine)
    fenced = [Op("check-session", "t/lock", session=mine), Op("set", "t/work", b"done")]
    assert (await store.txn(fenced)).ok
    await store.destroy_session(mine)
    assert not (await store.txn(fenced)).ok
    assert await store.acquire("t/lock", b"", other)
    refused = await store.txn(fenced)
    assert list(refused.failed) == [0]
    await store.delete("t/lock")
    assert not (await store.txn(fenced)).ok


async def test_concurrent_increments_lose_none(store: Store) -> None:
    await store.put("t/count", b"0")

    async def increment() -> None:
        while True:
            entry = await store.get("t/count")
            assert entry
            if await store.put("t/count", str(int(entry.value) + 1).encode(), cas=entry.modify_index):
                return

    await asyncio.gather(*(increment() for _ in range(10)))
    entry = await store.get("t/count")
    assert entry
    assert entry.value == b"10"


# ── watches ──────────────────────────────────────────────────────────────────────────────────

Begin = Callable[[str], Watching]


async def test_a_watch_begins_with_everything(store: Store, watch: Begin) -> None:
    assert (await watch("t/").next()).entries == {}
    await store.put("t/a", b"1")
    await store.put("ta", b"1")
    change = await watch("t/").next()
    assert change.changed == set(change.entries) == {"t/a"}
    assert change.index >= change.entries["t/a"].modify_index


async def test_a_watch_says_which_keys_changed(store: Store, watch: Begin) -> None:
    await store.put("t/a", b"1")
    await store.put("t/b", b"1")
    watching = watch("t/")
    await watching.next()
    await store.put("t/b", b"2")
    change = await watching.next()
    assert change.changed == {"t/b"}
    assert {key: entry.value for key, entry in change.entries.items()} == {"t/a": b"1", "t/b": b"2"}
    await store.txn([Op("set", "t/c", b"3"), Op("delete", "t/a")])
    assert (await watching.next()).changed == {"t/a", "t/c"}


async def test_a_watch_sees_deletions_even_of_all(store: Store, watch: Begin) -> None:
    await store.put("t/a", b"1")
    watching = watch("t/")
    await watching.next()
    await store.delete("t/a")
    gone = await watching.next()
    assert gone.changed == {"t/a"}
    assert not gone.entries
    await store.put("t/a", b"1")
    assert (await watching.next()).changed == {"t/a"}
    await store.delete_prefix("t/")
    assert (await watching.next()).changed == {"t/a"}


async def test_a_watch_sees_locks_taken_and_freed(store: Store, watch: Begin) -> None:
    watching = watch("t/")
    await watching.next()
    session = await store.create_session("s", 60)
    await store.acquire("t/lock", b"", session)
    assert (await watching.next()).entries["t/lock"].session == session
    await store.destroy_session(session)
    freed = await watching.next()
    assert freed.changed == {"t/lock"}
    assert freed.entries["t/lock"].session is None


async def test_a_watch_is_silent_about_other_keys_and_equal_writes(store: Store, watch: Begin) -> None:
    await store.put("t/a/x", b"1")
    watching = watch("t/a/")
    await watching.next()
    await store.put("t/b", b"1")
    await store.put("t/a", b"1")
    await store.delete("t/b")
    await store.put("t/a/x", b"1")
    await store.put("t/a/end", b"")
    assert (await watching.next()).changed == {"t/a/end"}


async def test_a_watch_of_one_key_is_told_of_no_longer_ones(store: Store, watch: Begin) -> None:
    await store.put("t/n1", b"1")
    await store.put("t/n10", b"1")
    watching = watch("t/n1")
    assert set((await watching.next()).entries) == {"t/n1"}
    await store.put("t/n10", b"2")
    await store.delete("t/n1")
    change = await watching.until(lambda change: "t/n1" in change.changed)
    assert not change.entries


@pytest.fixture
async def marked_watch(store: Store) -> AsyncIterator[Watching]:
    """Of `t/d/`, where `a` and `b` are, and `a` is held by the session in its value."""
    session = await store.create_session("s", 10)
    assert (await store.txn(marked(Op("lock", "t/d/a", session.encode(), session=session)))).ok
    assert (await store.txn(marked(Op("set", "t/d/b", b"1")))).ok
    watching = Watching(store, "t/d/", marked=True)
    assert set((await watching.next()).entries) == {"t/d/a", "t/d/b"}
    yield watching
    await watching.close()


async def test_a_marked_change_is_seen_with_all_that_did_not_change(store: Store, marked_watch: Watching) -> None:
    for value in (b"2", b"3", b"3", b"4"):
        assert (await store.txn(marked(Op("set", "t/d/b", value)))).ok
    change = await marked_watch.until(lambda change: change.entries["t/d/b"].value == b"4")
    assert change.changed == {"t/d/b"}
    assert set(change.entries) == {"t/d/a", "t/d/b"}
    entry = await store.get("t/d/b")
    assert change.entries["t/d/b"] == entry


async def test_what_changes_together_is_seen_together(store: Store, marked_watch: Watching) -> None:
    names = [f"t/d/{name}" for name in "bcd"]
    assert (await store.txn([step for name in names for step in marked(Op("set", name, b"new"))])).ok
    change = await marked_watch.next()
    assert {name: change.entries[name].value for name in change.changed} == dict.fromkeys(names, b"new")
    removed = Op("delete-cas", "t/d/c", index=change.entries["t/d/c"].modify_index)
    assert (
        await store.txn([*marked(Op("set", "t/d/b", b"2")), *marked(removed), *marked(Op("set", "t/d/e", b"3"))])
    ).ok
    change = await marked_watch.next()
    assert change.changed == {"t/d/b", "t/d/c", "t/d/e"}
    assert set(change.entries) == {"t/d/a", "t/d/b", "t/d/d", "t/d/e"}


async def test_a_change_without_a_mark_is_seen_as_well(store: Store, marked_watch: Watching) -> None:
    await store.put("t/d/b", b"by hand")
    assert (await marked_watch.next()).entries["t/d/b"].value == b"by hand"
    await store.put("t/d/c", b"new")
    assert (await marked_watch.next()).changed == {"t/d/c"}
    assert (await store.txn(marked(Op("set", "t/d/a", b"and marked again")))).ok
    assert (await marked_watch.next()).changed == {"t/d/a"}


async def test_the_end_of_a_session_shows_in_a_marked_watch(store: Store, marked_watch: Watching) -> None:
    entry = await store.get("t/d/a")
    assert entry
    await store.destroy_session(entry.value.decode())
    change = await marked_watch.next()
    assert change.changed == {"t/d/a"}
    assert change.entries["t/d/a"].session is None


async def test_what_is_removed_with_its_mark_leaves_a_marked_watch(store: Store, marked_watch: Watching) -> None:
    index = await index_of(store, "t/d/b")
    assert (await store.txn(marked(Op("delete-cas", "t/d/b", index=index)))).ok
    assert set((await marked_watch.next()).entries) == {"t/d/a"}
    assert set((await store.list("t/d.marks/")).entries) == {"t/d.marks/a"}


async def test_a_slow_watcher_gets_many_changes_as_one(store: Store) -> None:
    changes = aiter(store.watch("t/"))
    await anext(changes)
    for n in range(20):
        await store.put(f"t/{n}", b"")
    async with asyncio.timeout(DEADLINE):
        seen: set[str] = set()
        count = 0
        async for change in changes:
            seen |= change.changed
            count += 1
            if len(seen) == 20:
                break
    assert count < 20


async def test_a_watch_ends_by_cancellation(store: Store) -> None:
    watching = Watching(store, "t/")
    await watching.next()
    await watching.close()
    assert await store.put("t/a", b"")
    assert watching.silent


async def test_many_watches_hold_up_no_write(store: Store, watch: Begin) -> None:
    watching = [watch(f"t/{n}/") for n in range(120)]  # the pool of py-consul's own client ends at 100
    for each in watching:
        await each.next()
    for n in range(0, 120, 17):
        await store.put(f"t/{n}/a", b"")
        assert (await watching[n].next()).changed == {f"t/{n}/a"}


# ── sessions and locks ───────────────────────────────────────────────────────────────────────


async def test_the_life_of_a_session(store: Store) -> None:
    session = await store.create_session("mesh-agent n1 ☃", 60)
    assert await store.session_name(session) == "mesh-agent n1 ☃"
    assert await store.renew_session(session)
    await store.destroy_session(session)
    assert await store.session_name(session) is None
    assert not await store.renew_session(session)
    await store.destroy_session(session)
    with pytest.raises(StoreRejected, match="session"):
        await store.acquire("t/lock", b"", session)


async def test_one_session_at_a_time_holds_a_lock(store: Store) -> None:
    mine, other = await store.create_session("mine", 60), await store.create_session("other", 60)
    assert await store.acquire("t/lock", b"1", mine)
    assert await store.acquire("t/lock", b"2", mine)
    assert not await store.acquire("t/lock", b"3", other)
    assert not await store.release("t/lock", other)
    entry = await store.get("t/lock")
    assert entry
    assert (entry.value, entry.session) == (b"2", mine)
    assert await store.release("t/lock", mine)
    assert not await store.release("t/lock", mine)
    assert await store.acquire("t/lock", b"3", other)


async def test_a_plain_write_leaves_the_lock(store: Store) -> None:
    session = await store.create_session("s", 60)
    await store.acquire("t/lock", b"1", session)
    await store.put("t/lock", b"2")
    entry = await store.get("t/lock")
    assert entry
    assert (entry.value, entry.session) == (b"2", session)


async def test_a_deleted_key_is_free(store: Store) -> None:
    mine, other = await store.create_session("mine", 60), await store.create_session("other", 60)
    await store.acquire("t/lock", b"", mine)
    await store.delete("t/lock")
    assert await store.acquire("t/lock", b"", other)


async def test_release_keeps_the_value(store: Store) -> None:
    session = await store.create_session("s", 60)
    await store.acquire("t/lock", b"word", session)
    await store.release("t/lock", session)
    entry = await store.get("t/lock")
    assert entry
    assert (entry.value, entry.session) == (b"word", None)


@pytest.mark.parametrize("behavior", ["release", "delete"])
async def test_an_unrenewed_session_ends(store: Store, watch: Begin, behavior: str) -> None:
    session = await store.create_session("s", 1, behavior="delete" if behavior == "delete" else "release")
    await store.acquire("t/lock", b"word", session)
    change = await watch("t/").until(
        lambda change: "t/lock" not in change.entries or not change.entries["t/lock"].session
    )
    assert ("t/lock" in change.entries) == (behavior == "release")
    assert not await store.renew_session(session)


async def test_a_renewed_session_lives_on(store: Store) -> None:
    """It outlives an unrenewed one that was made after it."""
    kept = await store.create_session("kept", 1)
    other = await store.create_session("other", 1.5)

    async def other_ended() -> bool:
        assert await store.renew_session(kept)
        return await store.session_name(other) is None

    await until(other_ended)
    assert await store.renew_session(kept)


async def test_lock_delay_keeps_an_invalidated_lock_from_the_next(store: Store) -> None:
    mine, other = await store.create_session("mine", 60, lock_delay=1), await store.create_session("other", 60)
    await store.acquire("t/lock", b"", mine)
    await store.acquire("t/given", b"", mine)
    await store.release("t/given", mine)
    await store.destroy_session(mine)
    assert await store.acquire("t/given", b"", other)
    assert not await store.acquire("t/lock", b"", other)
    refused = await store.txn([Op("lock", "t/lock", session=other)])
    assert "lock delay" in refused.errors[0]
    await until(lambda: store.acquire("t/lock", b"", other))


async def test_a_lock_step_with_a_dead_session_is_refused(store: Store) -> None:
    result = await store.txn([Op("lock", "t/lock", session=GONE)])
    assert not result.ok
    assert "invalid session" in result.errors[0]


async def test_the_store_says_where_it_is_and_when_it_last_answered(store: Store) -> None:
    await store.get("t/a")
    assert store.address
    assert store.contact_age < DEADLINE
