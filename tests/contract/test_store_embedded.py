"""The embedded store as a server: Consul's own program against it, crashes, full disks, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from mesh.settings import EmbeddedStoreSettings, StoreSettings
from mesh.store import MAX_VALUE, Op, StoreError, StoreUnavailable
from mesh.store.consul import ConsulStore
from mesh.store.embedded import EmbeddedStore
from mesh.store.embedded_db import Database, DatabaseError
from mesh.store.embedded_state import Draft
from tests.parts.consul import consul_binary
from tests.parts.ports import free_port
from tests.patience import until

DEADLINE = 30.0
MAIN = [sys.executable, "-m", "tests.parts.embedded_main"]
ROOT = Path(__file__).parents[2]


def settings(folder: Path, listen: str = "127.0.0.1:0") -> EmbeddedStoreSettings:
    return EmbeddedStoreSettings(folder, listen)


@contextlib.asynccontextmanager
async def client(address: str) -> AsyncIterator[ConsulStore]:
    store = ConsulStore(StoreSettings(address=address))
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    server = EmbeddedStore(settings(tmp_path / "data"))
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def store(server: EmbeddedStore) -> AsyncIterator[ConsulStore]:
    async with client(server.address) as store:
        yield store


@pytest.fixture
async def http(server: EmbeddedStore) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.address) as session:
        yield session


# ── Consul's own program ─────────────────────────────────────────────────────────────────────


async def consul(server: EmbeddedStore, *words: str, given: bytes = b"", fails: bool = False) -> str:
    process = await asyncio.create_subprocess_exec(
        consul_binary(), *words[:2], f"-http-addr={server.address}", *words[2:],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(given), DEADLINE)
    assert bool(process.returncode) == fails, said
    return said.decode()


@pytest.mark.consul
async def test_consul_kv_works_against_it(server: EmbeddedStore, tmp_path: Path) -> None:
    spec = tmp_path / "web.json"
    spec.write_text('{"name": "wéb"}')
    assert "Success" in await consul(server, "kv", "put", "mesh/desired/services/web", f"@{spec}")
    assert await consul(server, "kv", "get", "mesh/desired/services/web") == '{"name": "wéb"}\n'
    assert "Success" in await consul(server, "kv", "put", "-flags=18446744073709551615", "mesh/a", "-", given=b"in")
    detail = await consul(server, "kv", "get", "-detailed", "mesh/a")
    assert "18446744073709551615" in detail
    assert (
        await consul(server, "kv", "get", "-recurse", "mesh/")
        == 'mesh/a:in\nmesh/desired/services/web:{"name": "wéb"}\n'
    )
    assert await consul(server, "kv", "get", "-keys", "-separator=/", "mesh/") == "mesh/a\nmesh/desired/\n"
    assert "No key" in await consul(server, "kv", "get", "mesh/none", fails=True)

    index = detail.split("ModifyIndex")[1].split()[0]
    assert "Success" in await consul(server, "kv", "put", "-cas", f"-modify-index={index}", "mesh/a", "new")
    assert "CAS failed" in await consul(
        server, "kv", "put", "-cas", f"-modify-index={index}", "mesh/a", "x", fails=True
    )
    assert "CAS failed" in await consul(server, "kv", "delete", "-cas", f"-modify-index={index}", "mesh/a", fails=True)

    exported = await consul(server, "kv", "export", "mesh/")
    assert {row["key"] for row in json.loads(exported)} == {"mesh/a", "mesh/desired/services/web"}
    assert "Success" in await consul(server, "kv", "delete", "-recurse", "mesh/")
    assert await consul(server, "kv", "get", "-recurse", "mesh/") == ""
    await consul(server, "kv", "import", "-", given=exported.encode())
    assert await consul(server, "kv", "export", "mesh/") == exported
    assert "Success" in await consul(server, "kv", "delete", "mesh/a")


@pytest.mark.consul
async def test_consul_lock_works_against_it(server: EmbeddedStore, store: ConsulStore, tmp_path: Path) -> None:
    note = tmp_path / "ran"
    process = await asyncio.create_subprocess_exec(
        consul_binary(), "lock", f"-http-addr={server.address}", "jobs/night", f"echo ran > {note}; exit 0",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert process.returncode == 0, said
    assert note.read_text() == "ran\n"
    left = (await store.list("jobs/night")).entries
    assert all(entry.session is None for entry in left.values())


# ── blocking queries ─────────────────────────────────────────────────────────────────────────


async def test_a_blocking_query_wakes_for_its_own_keys_alone(
    server: EmbeddedStore, http: aiohttp.ClientSession, store: ConsulStore
) -> None:
    await store.put("a/1", b"")
    await store.put("a/10", b"")

    async def index(path: str) -> int:
        async with http.get(path) as answer:
            return int(answer.headers["X-Consul-Index"])

    async def wait(path: str) -> tuple[int, int]:
        beyond = await index(path)
        async with http.get(path, params={"index": beyond, "wait": "60s"}) as answer:
            return beyond, int(answer.headers["X-Consul-Index"])

    key, prefix, missing = (
        asyncio.create_task(wait(path)) for path in ("/v1/kv/a/1", "/v1/kv/a/?recurse", "/v1/kv/b")
    )  # fmt: skip

    async def all_wait() -> bool:
        return server.blocking_queries == 3

    await until(all_wait)
    await store.put("c", b"")
    await store.put("a/10", b"other")
    before, after = await asyncio.wait_for(prefix, DEADLINE)
    assert after > before
    assert not key.done()
    await store.delete("a/1")
    before, after = await asyncio.wait_for(key, DEADLINE)
    assert after > before
    assert not missing.done()
    await store.put("b", b"")
    await asyncio.wait_for(missing, DEADLINE)


async def test_a_blocking_query_ends_with_its_wait(http: aiohttp.ClientSession, store: ConsulStore) -> None:
    await store.put("a", b"")
    async with http.get("/v1/kv/a") as answer:
        index = answer.headers["X-Consul-Index"]
    async with http.get("/v1/kv/a", params={"index": index, "wait": "10ms"}) as answer:
        assert answer.headers["X-Consul-Index"] == index
        assert answer.headers["X-Consul-KnownLeader"] == "true"
        assert answer.headers["X-Consul-LastContact"] == "0"


async def test_blocking_queries_are_bounded(server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.store.embedded.MAX_BLOCKING_QUERIES", 0)
    async with aiohttp.ClientSession(server.address) as http:
        async with http.get("/v1/kv/a", params={"index": 1}) as answer:
            assert answer.status == 429
        async with http.get("/v1/kv/a") as answer:
            assert answer.status == 404


# ── what it refuses ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/v1/kv/", b"", 400),
        ("PUT", "/v1/kv/a%FFb", b"", 400),
        ("PUT", "/v1/kv/" + "k" * 1025, b"", 400),
        ("PUT", "/v1/kv/a?cas=x", b"", 400),
        ("PUT", "/v1/kv/a?cas=-1", b"", 400),
        ("PUT", "/v1/kv/a?cas=0&acquire=b", b"", 400),
        ("PUT", "/v1/kv/a?flags=18446744073709551616", b"", 400),
        ("PUT", "/v1/kv/a?acquire=none", b"", 500),
        ("PUT", "/v1/kv/a", b"x" * (MAX_VALUE + 1), 413),
        ("GET", "/v1/kv/a?index=x", b"", 400),
        ("GET", "/v1/kv/a?index=1&wait=soon", b"", 400),
        ("GET", "/v1/kv/a?stale&consistent", b"", 400),
        ("POST", "/v1/kv/a", b"", 405),
        ("PUT", "/v1/txn", b"{", 400),
        ("PUT", "/v1/txn", b'[{"KV": {"Verb": "set", "Key": "a", "Value": "***"}}]', 400),
        ("PUT", "/v1/txn", b'[{"KV": {"Verb": "burn", "Key": "a"}}]', 409),
        ("PUT", "/v1/txn", b'[{"KV": {"Verb": "set"}}]', 409),
        ("PUT", "/v1/session/create", b'{"TTL": "soon"}', 400),
        ("PUT", "/v1/session/create", b'{"Behavior": "explode"}', 400),
        ("PUT", "/v1/session/renew/none", b"", 404),
        ("GET", "/v1/catalog/nodes", b"", 404),
    ],
)
async def test_bad_requests_are_refused(
    http: aiohttp.ClientSession, store: ConsulStore, method: str, path: str, body: bytes, status: int
) -> None:
    async with http.request(method, path, data=body) as answer:
        assert answer.status == status
    assert (await store.list("")).entries == {}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8500", "127.0.0.1.evil.example", ""])
async def test_a_foreign_host_name_is_refused(http: aiohttp.ClientSession, host: str) -> None:
    async with http.get("/v1/kv/a", headers={"Host": host}) as answer:
        assert answer.status == 403
    async with http.get("/v1/kv/a", headers={"Host": "localhost:8500"}) as answer:
        assert answer.status == 404


async def test_a_second_store_on_the_folder_is_refused(server: EmbeddedStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"data is in use by another store \(process \d+\)"):
        await EmbeddedStore(settings(tmp_path / "data")).start()
    async with client(server.address) as store:
        assert await store.put("a", b"")


async def test_a_taken_port_is_said(server: EmbeddedStore, tmp_path: Path) -> None:
    listen = server.address.removeprefix("http://")
    with pytest.raises(StoreError, match=f"cannot listen on {listen}: .*in use"):
        await EmbeddedStore(settings(tmp_path / "other", listen)).start()
    free = EmbeddedStore(settings(tmp_path / "other"))  # its folder was let go
    await free.start()
    await free.close()


@pytest.mark.parametrize("listen", ["8500", "localhost", "127.0.0.1:x", "127.0.0.1:99999", "nowhere.invalid:1"])
async def test_an_impossible_listen_address_is_said(tmp_path: Path, listen: str) -> None:
    with pytest.raises(StoreError, match="cannot listen"):
        await EmbeddedStore(settings(tmp_path, listen)).start()


async def test_the_folder_is_for_its_owner_alone(server: EmbeddedStore, tmp_path: Path) -> None:
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 10, b""])
async def test_a_damaged_or_newer_database_is_refused_unharmed(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "store.db"
    if content:
        file.write_bytes(content)
    else:
        with contextlib.closing(sqlite3.connect(file)) as newer:
            newer.execute("PRAGMA user_version = 99")
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"cannot open|newer mesh"):
        await EmbeddedStore(settings(tmp_path)).start()
    assert file.read_bytes() == before


# ── crashes and full disks ───────────────────────────────────────────────────────────────────


class Process:
    """The store in a process of its own, to be killed."""

    def __init__(self, folder: Path) -> None:
        self.address = f"http://127.0.0.1:{free_port()}"
        self._command = [*MAIN, str(folder), self.address.removeprefix("http://")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout
        assert self._process.stdout.readline().strip().decode() == self.address

    def kill(self) -> None:
        assert self._process
        assert self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path / "data")
    process.start()
    yield process
    process.kill()


async def test_nothing_acknowledged_is_lost_by_kill_9(process: Process) -> None:
    """Killed in the middle of many writers' work, several times; every acknowledged write must be there."""
    acknowledged: dict[str, bytes] = {}
    pairs: set[str] = set()

    async def writer(store: ConsulStore, number: int, life: int) -> None:
        with contextlib.suppress(StoreUnavailable):
            for count in range(10_000):
                key, value = f"w/{number}", f"{life}-{count}".encode() * 50
                await store.put(key, value)
                acknowledged[key] = value
                pair = f"{number}-{life}-{count}"
                if (await store.txn([Op("set", f"pair/a/{pair}", b""), Op("set", f"pair/b/{pair}", b"")])).ok:
                    pairs.add(pair)

    for life in range(3):
        async with client(process.address) as store:
            enough = len(pairs) + 100
            writers = [asyncio.create_task(writer(store, number, life)) for number in range(8)]
            async with asyncio.timeout(DEADLINE):
                while len(pairs) < enough:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await asyncio.to_thread(process.kill)
            await asyncio.gather(*writers)
        await asyncio.to_thread(process.start)
        async with client(process.address) as store:
            written = (await store.list("w/")).entries
            for key, value in acknowledged.items():
                # A write that was under way may have happened without an answer: then the value is newer.
                assert _count(written[key].value) >= _count(value)
            first = {key.removeprefix("pair/a/") for key in (await store.list("pair/a/")).entries}
            second = {key.removeprefix("pair/b/") for key in (await store.list("pair/b/")).entries}
            assert first == second >= pairs


def _count(value: bytes) -> tuple[int, int]:
    life, count = value[: len(value) // 50].split(b"-")
    return int(life), int(count)


async def test_nobody_sees_what_a_crash_takes_back(process: Process) -> None:
    """The newest index that a reader saw is there after a crash."""
    async with client(process.address) as store:
        writers = [asyncio.create_task(store.put(f"w/{n}", b"x" * 1000)) for n in range(200)]
        seen = 0
        while seen < 50:
            seen = len((await store.list("w/")).entries)
        await asyncio.to_thread(process.kill)
        await asyncio.gather(*writers, return_exceptions=True)
    await asyncio.to_thread(process.start)
    async with client(process.address) as store:
        assert len((await store.list("w/")).entries) >= seen


async def fill_and_recover(store: ConsulStore, folder: Path, make_room: Callable[[], Awaitable[object]]) -> None:
    big = b"x" * 100_000
    await store.put("before", b"x")
    refusal = ""
    count = 0
    while not refusal:
        try:
            await store.put(f"big/{count}", big)
        except StoreUnavailable as error:
            refusal = str(error)
        else:
            count += 1
    assert f"could not write to {folder}: database or disk is full" in refusal
    with pytest.raises(StoreUnavailable, match="Free space there"):
        await store.txn([Op("delete", "before"), Op("set", "after", big)])
    listing = await store.list("")
    assert set(listing.entries) == {"before", *(f"big/{n}" for n in range(count))}

    await make_room()

    async def takes_writes() -> bool:
        with contextlib.suppress(StoreUnavailable):
            return await store.put("after", big)
        return False

    await until(takes_writes)
    entry = await store.get("after")
    assert entry
    assert entry.value == big


async def test_a_full_database_fails_writes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedStore, "_open", lambda self: Database(tmp_path, max_pages=256))
    server = EmbeddedStore(settings(tmp_path))
    await server.start()
    async with client(server.address) as store:

        async def make_room() -> None:
            await store.delete("big/0")
            await store.delete("big/1")

        await fill_and_recover(store, tmp_path, make_room)
    await server.close()


@pytest.mark.root
async def test_a_full_disk_fails_writes_alone(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=4m", "mesh-test", str(folder))
    assert await mount.wait() == 0, "root's privileges include mounting a tmpfs; in a container give it CAP_SYS_ADMIN"
    try:
        server = EmbeddedStore(settings(folder / "data"))
        await server.start()
        ballast = folder / "ballast"
        ballast.write_bytes(b"x" * 1_000_000)
        async with client(server.address) as store:
            await fill_and_recover(store, folder / "data", lambda: asyncio.to_thread(ballast.unlink))
        await server.close()
        again = EmbeddedStore(settings(folder / "data"))
        await again.start()
        await again.close()
    finally:
        await (await asyncio.create_subprocess_exec("umount", str(folder))).wait()


async def test_a_session_that_ends_while_the_disk_is_full_ends_afterwards(
    store: ConsulStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await store.create_session("s", 0.1)
    await store.acquire("lock", b"", session)
    refused = 0

    def refuse(self: Database, draft: Draft) -> None:
        nonlocal refused
        refused += 1
        raise DatabaseError("full")

    async def was_tried_again() -> bool:
        return refused > 1

    async def is_free() -> bool:
        entry = await store.get("lock")
        return entry is not None and entry.session is None

    monkeypatch.setattr("mesh.store.embedded.RETRY_EXPIRY", 0.01)
    with monkeypatch.context() as full:
        full.setattr(Database, "commit", refuse)
        await until(was_tried_again)
        assert not await is_free()
    await until(is_free)


# ── time ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_clock_that_jumps_ends_no_session(store: ConsulStore, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await store.create_session("s", 3600)
    short = await store.create_session("s", 1)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 10 * 86400)
    await store.put("a", b"")
    assert await store.renew_session(session)
    monkeypatch.setattr(time, "time", lambda: wall() - 10 * 86400)

    async def short_ended() -> bool:
        return await store.session_name(short) is None

    await until(short_ended)
    assert await store.renew_session(session)


async def test_the_store_copied_while_it_runs_can_be_opened(store: ConsulStore, tmp_path: Path) -> None:
    """SQLite's own backup is how to copy it."""
    await store.put("a", b"1")
    copy = tmp_path / "copy"
    copy.mkdir()
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "data" / "store.db")) as source,
        contextlib.closing(sqlite3.connect(copy / "store.db")) as target,
    ):
        source.backup(target)
    restored = EmbeddedStore(settings(copy))
    await restored.start()
    async with client(restored.address) as other:
        assert (await other.list("")).entries == (await store.list("")).entries
    await restored.close()
    shutil.rmtree(copy)
