"""Random histories on each store beside a model of twenty lines: same answers, same content, and honest indexes."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from mesh.settings import EmbeddedStoreSettings, StoreSettings
from mesh.store import Change, Entry, Op, Store
from mesh.store.consul import ConsulStore
from mesh.store.embedded import EmbeddedStore
from tests.fakes.store import FakeStore
from tests.parts.consul import ConsulServer

DEADLINE = 30.0
T = TypeVar("T")

KEYS = [f"m/{name}" for name in ("a", "a/1", "a/2", "ab", "ü b", "c%2Fd", "z/")]
PREFIXES = ["m/", "m/a", "m/a/", "m/none"]
VALUES = [b"", b"1", b"2", bytes(range(256))]

Verb = Literal["set", "cas", "delete", "delete-cas", "lock", "unlock", "check-session", "check-index"]


class Held(NamedTuple):
    """What a key holds. A write that leaves all three as they are gives no new index."""

    value: bytes
    session: str | None = None
    locks: int = 0  # how often its lock was taken since the last plain write: Consul counts so


@dataclass
class Model:
    """What a store holds, without indexes: which keys got a new one is all that it knows of time."""

    entries: dict[str, Held] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)  # id → behavior
    changed: set[str] = field(default_factory=set)  # since the copy
    born: set[str] = field(default_factory=set)  # since the copy

    def copy(self) -> Model:
        return Model(dict(self.entries), dict(self.sessions))

    def step(self, op: Op, unchanged: bool) -> bool:
        """`unchanged`: the step names the index that the key had at the copy."""
        exists = op.key in self.entries
        _, session, locks = self.entries.get(op.key, Held(b""))
        unchanged = unchanged and op.key not in self.changed
        match op.verb:
            case "set":
                self._write(op.key, Held(op.value, session))
            case "cas" if unchanged if op.index else not exists:
                self._write(op.key, Held(op.value, session))
            case "delete":
                self._write(op.key, None)
            case "delete-cas" if unchanged or not exists:
                self._write(op.key, None)
            case "lock" if op.session in self.sessions and session in (None, op.session):
                self._write(op.key, Held(op.value, op.session, locks + (session is None)))
            case "unlock" if session is not None and session == op.session:
                self._write(op.key, Held(op.value, None, locks))
            case "check-session" if exists and session == op.session:
                pass
            case "check-index" if unchanged:
                pass
            case _:
                return False
        return True

    def delete_prefix(self, prefix: str) -> None:
        for key in [key for key in self.entries if key.startswith(prefix)]:
            self._write(key, None)

    def end(self, session: str) -> None:
        behavior = self.sessions.pop(session)
        for key, held in list(self.entries.items()):
            if held.session == session:
                self._write(key, None if behavior == "delete" else held._replace(session=None))

    def _write(self, key: str, content: Held | None) -> None:
        before = self.entries.get(key)
        if content == before:
            return
        self.changed.add(key)
        if content is None:
            del self.entries[key]
        else:
            self.entries[key] = content
            if before is None:
                self.born.add(key)


class StoreHistory(RuleBasedStateMachine):
    """The rules; subclasses say which store."""

    live = Bundle("live")
    dead = Bundle("dead")
    any_session = st.one_of(live, dead)

    def open(self) -> contextlib.AbstractAsyncContextManager[Store]:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._opened = self.open()
        self.store = self.run(self._opened.__aenter__())
        self.run(self.store.delete_prefix("m/"))
        self.model = Model()
        self.seen: dict[str, Entry] = {}
        self.newest = self.run(self.store.list("")).index
        self.watched: dict[str, Entry] = {}
        self.watched_changes = asyncio.Event()
        self.watching = self._loop.create_task(self._watch())
        self.agrees = False  # store and model, after the last step

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self.agrees = False
        return self._loop.run_until_complete(asyncio.wait_for(work, DEADLINE))

    async def _watch(self) -> None:
        async for change in self.store.watch("m/"):
            self._follow(change)

    def _follow(self, change: Change) -> None:
        """A follower that heeds only the keys that are said to have changed must end with the same content."""
        for key in change.changed:
            if key in change.entries:
                self.watched[key] = change.entries[key]
            else:
                del self.watched[key]
        assert self.watched == change.entries
        self.watched_changes.set()

    def teardown(self) -> None:
        if self.agrees:
            self.run(self._caught_up())
        self.watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self.watching)
        self.run(self._opened.__aexit__(None, None, None))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _caught_up(self) -> None:
        while self.watched != self.seen:
            assert not self.watching.done()
            self.watched_changes.clear()
            await self.watched_changes.wait()

    # ── rules ────────────────────────────────────────────────────────────────────────────────

    @initialize(target=live)
    def begin(self) -> Any:
        """So that both bundles hold something."""
        return multiple(*(self.new_session("release") for _ in range(2)))

    @rule(target=live, behavior=st.sampled_from(["release", "delete"]))
    def new_session(self, behavior: Literal["release", "delete"]) -> str:
        session = self.run(self.store.create_session("model", 3600, behavior=behavior))
        assert session not in self.model.sessions
        self.model = self.model.copy()
        self.model.sessions[session] = behavior
        return session

    @rule(target=dead, session=consumes(live))
    def end_session(self, session: str) -> str:
        assert self.run(self.store.renew_session(session))
        self.run(self.store.destroy_session(session))
        self.model = self.model.copy()
        self.model.end(session)
        assert not self.run(self.store.renew_session(session))
        return session

    @rule(key=st.sampled_from(KEYS), value=st.sampled_from(VALUES))
    def put(self, key: str, value: bytes) -> None:
        assert self.run(self.store.put(key, value))
        self.step(Op("set", key, value))

    @rule(key=st.sampled_from(KEYS), value=st.sampled_from(VALUES), index=st.sampled_from(["current", "none", "old"]))
    def put_if(self, key: str, value: bytes, index: str) -> None:
        op = Op("cas", key, value, self._index(key, index))
        assert self.run(self.store.put(key, value, cas=op.index)) == self.step(op)

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: str) -> None:
        assert self.run(self.store.delete(key))
        self.step(Op("delete", key))

    @rule(key=st.sampled_from(KEYS), index=st.sampled_from(["current", "old"]))
    def delete_if(self, key: str, index: str) -> None:
        op = Op("delete-cas", key, index=self._index(key, index))
        assert self.run(self.store.delete(key, cas=op.index)) == self.step(op)

    @rule(prefix=st.sampled_from(PREFIXES))
    def delete_prefix(self, prefix: str) -> None:
        self.run(self.store.delete_prefix(prefix))
        self.model = self.model.copy()
        self.model.delete_prefix(prefix)

    @rule(key=st.sampled_from(KEYS), value=st.sampled_from(VALUES), session=live)
    def acquire(self, key: str, value: bytes, session: str) -> None:
        expected = self.step(Op("lock", key, value, session=session))
        assert self.run(self.store.acquire(key, value, session)) == expected

    @rule(key=st.sampled_from(KEYS), session=any_session)
    def release(self, key: str, session: str) -> None:
        value = self.model.entries.get(key, Held(b"")).value
        expected = self.step(Op("unlock", key, value, session=session))
        assert self.run(self.store.release(key, session)) == expected

    @rule(
        steps=st.lists(
            st.tuples(
                st.sampled_from(Verb.__args__),  # type: ignore[attr-defined]
                st.sampled_from(KEYS),
                st.sampled_from(VALUES),
                st.sampled_from(["current", "none", "old"]),
                any_session,
            ),
            max_size=5,
        )
    )
    def transaction(self, steps: Sequence[tuple[Verb, str, bytes, str, str]]) -> None:
        ops = [
            Op(verb, key, value, self._index(key, index), session if verb in SESSION_VERBS else None)
            for verb, key, value, index, session in steps
        ]
        draft = self.model.copy()
        failed = []
        for position, op in enumerate(ops):
            if not draft.step(op, self._unchanged(op)):
                failed.append(position)
        result = self.run(self.store.txn(ops))
        assert (result.ok, list(result.failed)) == (not failed, failed), result.errors
        self.model = draft if result.ok else self.model.copy()
        if result.ok:
            wrote = [(op.key, op.value) for op in ops if op.verb in ("set", "cas", "lock", "unlock")]
            assert [(entry.key, entry.value) for entry in result.entries] == wrote

    def step(self, op: Op) -> bool:
        """One step on the model, as a write of its own."""
        self.model = self.model.copy()
        return self.model.step(op, self._unchanged(op))

    def _index(self, key: str, which: str) -> int:
        entry = self.seen.get(key)
        return {"current": entry.modify_index if entry else 0, "none": 0, "old": 1}[which]

    def _unchanged(self, op: Op) -> bool:
        entry = self.seen.get(op.key)
        return entry is not None and entry.modify_index == op.index

    # ── what always holds ────────────────────────────────────────────────────────────────────

    @invariant()
    def content_is_the_models(self) -> None:
        listing = self.run(self.store.list("m/"))
        assert {key: (entry.value, entry.session) for key, entry in listing.entries.items()} == {
            key: (held.value, held.session) for key, held in self.model.entries.items()
        }
        for key, entry in listing.entries.items():
            if key not in self.model.changed:
                assert entry == self.seen[key]
                continue
            assert self.newest < entry.modify_index <= listing.index
            began = entry.modify_index if key in self.model.born else self.seen[key].create_index
            assert entry.create_index == began
        if listing.entries != self.seen:
            assert listing.index > self.newest
        self.newest = max(self.newest, *(entry.modify_index for entry in listing.entries.values()), listing.index)
        self.seen = dict(listing.entries)
        for prefix in PREFIXES:
            under = self.run(self.store.list(prefix, stale=True)).entries
            assert under == {key: entry for key, entry in self.seen.items() if key.startswith(prefix)}
        for key in KEYS[:3]:
            assert self.run(self.store.get(key)) == self.seen.get(key)
        self.agrees = True


SESSION_VERBS = ("lock", "unlock", "check-session")


class FakeHistory(StoreHistory):
    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        fake = FakeStore()
        yield fake
        await fake.close()


class EmbeddedHistory(StoreHistory):
    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        with tempfile.TemporaryDirectory() as folder:
            server = EmbeddedStore(EmbeddedStoreSettings(Path(folder), "127.0.0.1:0"))
            await server.start()
            store = ConsulStore(StoreSettings(address=server.address))
            yield store
            await store.close()
            await server.close()


class ConsulHistory(StoreHistory):
    server: ClassVar[ConsulServer]

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        store = ConsulStore(self.server.settings)
        yield store
        await store.close()


def examples(count: int, steps: int) -> settings:
    return settings(
        max_examples=count,
        stateful_step_count=steps,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


class TestFake(FakeHistory.TestCase):  # type: ignore[misc,valid-type]
    settings = examples(60, 30)


class TestEmbedded(EmbeddedHistory.TestCase):  # type: ignore[misc,valid-type]
    settings = examples(15, 30)


@pytest.fixture
def history_of_consul(consul: ConsulServer) -> None:
    ConsulHistory.server = consul


@pytest.mark.consul
@pytest.mark.usefixtures("history_of_consul")
class TestConsul(ConsulHistory.TestCase):  # type: ignore[misc,valid-type]
    settings = examples(8, 30)
