"""What a marked watch reads, and what it leaves unread; servers that lag."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pytest

from mesh.store import Entry, Listing, Op
from mesh.store.marks import MANY, Mark, MarkedPrefix, mark_of, marked
from tests.fakes.store import FakeStore


class Server:
    """A store that notes what it is asked; `lag`: what its stale answers say instead of the truth."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.asked: list[str] = []
        self.lag: FakeStore | None = None

    def _of(self, stale: bool) -> FakeStore:
        return self.lag if stale and self.lag else self.store

    async def touched(self, prefix: str, beyond: int) -> int:
        return (await self.store.list(prefix)).index

    async def list(self, prefix: str, *, stale: bool = False) -> Listing:
        self.asked.append(prefix if stale else f"{prefix} of the leader")
        return await self._of(stale).list(prefix)

    async def marks(self, prefix: str, *, stale: bool = False) -> tuple[int, Mapping[str, Mark]]:
        self.asked.append(prefix if stale else f"{prefix} of the leader")
        return await self._of(stale).marks(prefix)

    async def read(self, keys: Collection[str], *, stale: bool = False) -> Mapping[str, Entry]:
        self.asked += [key if stale else f"{key} of the leader" for key in keys]
        found = [await self._of(stale).get(key) for key in keys]
        return {entry.key: entry for entry in found if entry}

    async def write(self, name: str, value: bytes) -> None:
        assert (await self.store.txn(marked(Op("set", f"d/{name}", value)))).ok

    def forget(self) -> Sequence[str]:
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
async def server() -> Server:
    server = Server()
    for number in range(3):
        await server.write(f"n{number}", b"1")
    return server


@pytest.fixture
async def watch(server: Server) -> MarkedPrefix:
    watch = MarkedPrefix(server, "d/")
    await watch.next()
    server.forget()
    return watch


def test_a_mark_has_the_name_of_its_document() -> None:
    assert mark_of("mesh/observed/nodes/n1") == "mesh/observed/nodes.marks/n1"
    lock, mark = marked(Op("lock", "d/n1", b"a long report", session="s"))
    assert (lock.key, mark.key, mark.verb, mark.session) == ("d/n1", "d.marks/n1", "lock", "s")
    assert len(mark.value) == 4


async def test_of_many_documents_only_what_has_changed_is_read(server: Server, watch: MarkedPrefix) -> None:
    await server.write("n1", b"2")
    listing = await watch.next()
    assert [entry.value for entry in listing.entries.values()] == [b"1", b"2", b"1"]
    assert server.forget() == ["d.marks/", "d/n1"]
    await watch.next()
    assert server.forget() == ["d.marks/"]


async def test_very_many_changes_are_read_at_once(server: Server, watch: MarkedPrefix) -> None:
    for number in range(MANY + 1):
        await server.write(f"n{number}", b"2")
    await watch.next()
    assert server.forget() == ["d.marks/", "d.marks/", "d/"]


async def test_after_an_absence_all_is_read(server: Server, watch: MarkedPrefix) -> None:
    watch.forget()
    await watch.next()
    assert server.forget() == ["d.marks/", "d/"]


async def test_a_server_that_lags_is_not_believed(server: Server, watch: MarkedPrefix) -> None:
    server.lag = FakeStore()
    await server.lag.txn(marked(Op("set", "d/n0", b"old")))
    await server.write("n1", b"2")
    assert (await watch.next()).entries["d/n1"].value == b"2"
    assert server.forget()[-1] == "d/ of the leader"


async def test_a_document_older_than_its_mark_is_asked_of_the_leader(server: Server, watch: MarkedPrefix) -> None:
    await server.write("n1", b"2")
    read = server.read

    async def late(keys: Collection[str], *, stale: bool = False) -> Mapping[str, Entry]:
        found = await read(keys, stale=stale)
        return {key: Entry(key, b"old", entry.modify_index - stale) if stale else entry for key, entry in found.items()}

    server.read = late  # type: ignore[method-assign]
    assert (await watch.next()).entries["d/n1"].value == b"2"


async def test_documents_from_a_server_that_lags_behind_that_of_the_marks_are_asked_of_the_leader(
    server: Server, watch: MarkedPrefix
) -> None:
    behind = FakeStore()
    await behind.txn(marked(Op("set", "d/n0", b"old")))
    await server.write("n1", b"2")
    watch.forget()
    marks = server.marks

    async def of_another_server(prefix: str, *, stale: bool = False) -> tuple[int, Mapping[str, Mark]]:
        server.lag = None
        found = await marks(prefix, stale=stale)
        server.lag = behind
        return found

    server.marks = of_another_server  # type: ignore[method-assign]
    assert (await watch.next()).entries["d/n1"].value == b"2"
