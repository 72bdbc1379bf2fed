"""The store's client when things go wrong: outages, restarts, tokens, certificates, strangers on the port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from aiohttp import web

from mesh.settings import EmbeddedStoreSettings, StoreSettings
from mesh.store import Change, Op, StoreDenied, StoreError, StoreRejected, StoreUnavailable
from mesh.store.consul import ConsulStore
from mesh.store.diagnosis import diagnose
from mesh.store.embedded import EmbeddedStore
from tests.parts.consul import ConsulServer, consul_binary
from tests.parts.ports import free_port

DEADLINE = 30.0


class Server(Protocol):
    """A store server that can be taken away and brought back with its data."""

    address: str

    async def stop(self) -> None: ...
    async def start(self) -> None: ...


class EmbeddedServer:
    def __init__(self, folder: Path) -> None:
        self._settings = EmbeddedStoreSettings(folder, f"127.0.0.1:{free_port()}")
        self._store: EmbeddedStore | None = None
        self.address = f"http://{self._settings.listen}"

    async def start(self) -> None:
        self._store = EmbeddedStore(self._settings)
        await self._store.start()

    async def stop(self) -> None:
        if self._store:
            await self._store.close()
            self._store = None


class RealServer:
    def __init__(self, folder: Path) -> None:
        self._consul = ConsulServer(folder)
        self.address = self._consul.address

    async def start(self) -> None:
        await asyncio.to_thread(self._consul.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self._consul.kill)


@pytest.fixture(params=["embedded", pytest.param("consul", marks=pytest.mark.consul)])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    server: Server = EmbeddedServer(tmp_path) if request.param == "embedded" else RealServer(tmp_path)
    await server.start()
    yield server
    await server.stop()


@contextlib.asynccontextmanager
async def connected(settings: StoreSettings) -> AsyncIterator[ConsulStore]:
    store = ConsulStore(settings)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def changes() -> AsyncIterator[Callable[[ConsulStore, str], asyncio.Queue[Change]]]:
    tasks: list[asyncio.Task[None]] = []

    def begin(store: ConsulStore, prefix: str) -> asyncio.Queue[Change]:
        queue: asyncio.Queue[Change] = asyncio.Queue()

        async def follow() -> None:
            async for change in store.watch(prefix):
                queue.put_nowait(change)

        tasks.append(asyncio.create_task(follow()))
        return queue

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def soon(queue: asyncio.Queue[Change]) -> Change:
    async with asyncio.timeout(DEADLINE):
        return await queue.get()


Begin = Callable[[ConsulStore, str], asyncio.Queue[Change]]


async def test_nobody_there_is_said_with_address_and_remedy() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with connected(StoreSettings(address=address)) as store:
        for ask in (store.get("a"), store.list("a"), store.put("a", b""), store.txn([]), store.create_session("s", 10)):
            with pytest.raises(StoreUnavailable, match=rf"http://{address}.*CONSUL_HTTP_ADDR"):
                await ask


async def test_a_watch_begins_when_the_store_comes(tmp_path: Path, changes: Begin) -> None:
    server = EmbeddedServer(tmp_path)
    async with connected(StoreSettings(address=server.address)) as store:
        watching = changes(store, "t/")
        with pytest.raises(StoreUnavailable):
            await store.get("a")
        await server.start()
        assert not (await soon(watching)).entries
        await server.stop()


async def test_a_watch_survives_the_store_and_tells_what_it_missed(server: Server, changes: Begin) -> None:
    async with connected(StoreSettings(address=server.address)) as store:
        await store.put("t/a", b"1")
        await store.put("t/b", b"1")
        watching = changes(store, "t/")
        assert set((await soon(watching)).entries) == {"t/a", "t/b"}
        await server.stop()
        with pytest.raises(StoreUnavailable):
            await store.put("t/a", b"2")
        await server.start()
        async with connected(StoreSettings(address=server.address)) as other:
            await other.txn([Op("set", "t/a", b"2"), Op("delete", "t/b"), Op("set", "t/c", b"1")])
        missed: frozenset[str] = frozenset()
        while missed != {"t/a", "t/b", "t/c"}:
            change = await soon(watching)
            missed |= change.changed
        assert {key: entry.value for key, entry in change.entries.items()} == {"t/a": b"2", "t/c": b"1"}
        assert await store.put("t/c", b"2")
        assert (await soon(watching)).changed == {"t/c"}


async def test_what_was_written_is_there_after_a_restart(server: Server) -> None:
    async with connected(StoreSettings(address=server.address)) as store:
        session = await store.create_session("s", 30)
        await store.acquire("t/lock", b"\xffheld", session)
        await store.put("t/a", b"")
        before = await store.list("t/")
        await server.stop()
        await server.start()
        assert (await store.list("t/")).entries == before.entries
        assert await store.renew_session(session)
        assert await store.put("t/new", b"")
        new = await store.get("t/new")
        assert new
        assert new.modify_index > before.index


async def test_an_emptied_store_is_told_as_deletions(tmp_path: Path, changes: Begin) -> None:
    """Another history with smaller indexes: what a restored snapshot looks like."""
    server = EmbeddedServer(tmp_path / "a")
    await server.start()
    async with connected(StoreSettings(address=server.address)) as store:
        for n in range(10):
            await store.put(f"t/{n}", b"")
        watching = changes(store, "t/")
        await soon(watching)
        await server.stop()
        shutil.rmtree(tmp_path / "a")
        await server.start()
        gone = await soon(watching)
        assert not gone.entries
        assert len(gone.changed) == 10
        await store.put("t/anew", b"")
        assert (await soon(watching)).changed == {"t/anew"}
    await server.stop()


async def test_contact_age_grows_only_while_the_store_is_away(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    await server.start()
    async with connected(StoreSettings(address=server.address)) as store:
        await store.get("a")
        await server.stop()
        age = store.contact_age
        with pytest.raises(StoreUnavailable):
            await store.get("a")
        assert store.contact_age > age
        await server.start()
        away = store.contact_age
        await store.get("a")
        assert store.contact_age < away
    await server.stop()


async def test_a_stranger_on_the_port_is_recognised() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<h1>It works!</h1>")

    async def missing(_: web.Request) -> web.Response:
        return web.Response(status=404)

    application = web.Application()
    application.router.add_route("*", "/v1/kv/missing", missing)
    application.router.add_route("*", "/{path:.*}", page)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with connected(StoreSettings(address=f"{host}:{port}")) as store:
        for ask in (store.get("a"), store.get("missing"), store.list("a"), store.list("missing"), store.put("a", b""),
                    store.txn([]), store.create_session("s", 10), store.session_name("s")):  # fmt: skip
            with pytest.raises(StoreUnavailable, match="no Consul"):
                await ask
    await runner.cleanup()


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:8500", "unix:///run/consul.sock", "http://"])
async def test_an_impossible_address_is_refused(address: str) -> None:
    with pytest.raises(StoreRejected, match="CONSUL_HTTP_ADDR"):
        ConsulStore(StoreSettings(address=address))


@pytest.mark.consul
async def test_a_hanging_store_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.store.consul_http.ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr("mesh.store.consul_http.FIRST_PATIENCE", 0.1)
    with ConsulServer(tmp_path) as consul:
        async with connected(consul.settings) as store:
            await store.put("t/a", b"")
            consul.pause()
            with pytest.raises(StoreUnavailable, match="did not answer in time"):
                await store.put("t/a", b"1")
            consul.resume()


async def test_what_is_older_than_what_was_seen_is_asked_of_a_leader_that_has_applied_its_log() -> None:
    """After all servers were restarted each of them, the new leader too, may answer from the beginning of its log."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
        index = 9 if "consistent" in asked[-1] else 5
        row = b'[{"Key":"t/a","Value":"MQ==","ModifyIndex":1,"CreateIndex":1}]'
        head = f"HTTP/1.1 200 OK\r\nX-Consul-Index: {index}\r\nContent-Length: {len(row)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + row)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connected(StoreSettings(address=f"127.0.0.1:{port}")) as store:
        change = await anext(aiter(store.watch("t/", seen=8)))
    assert change.index == 9
    assert asked == ["/v1/kv/t/?recurse=&stale=", "/v1/kv/t/?recurse=&consistent="]


@pytest.mark.parametrize("what", ["a write", "a session"])
async def test_a_question_that_gets_no_answer_is_asked_again(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two sessions the one that nobody knows of holds nothing, and ends by itself."""
    monkeypatch.setattr("mesh.store.consul_http.ANSWER_TIMEOUT", 10.0)
    monkeypatch.setattr("mesh.store.consul_http.FIRST_PATIENCE", 0.1)
    body = b"true" if what == "a write" else b'{"ID":"x"}'
    asked: list[str] = []

    async def answer_the_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
        if len(asked) == 2:
            head = f"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer_the_second, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connected(StoreSettings(address=f"127.0.0.1:{port}")) as store:
        if what == "a write":
            assert await store.put("t/a", b"1", cas=7)
            assert asked == ["/v1/kv/t/a?cas=7"] * 2
        else:
            assert await store.create_session("s", 10) == "x"
            assert asked == ["/v1/session/create"] * 2


# ── tokens ───────────────────────────────────────────────────────────────────────────────────

ROOT_TOKEN = "6b0e8c5c-9d0f-4f59-9a7f-6d2f5a3b1c01"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[ConsulServer]:
    tokens = {"master": ROOT_TOKEN, "agent": ROOT_TOKEN}
    acl = {"enabled": True, "default_policy": "deny", "tokens": tokens}
    with ConsulServer(tmp_path, {"acl": acl}, token=ROOT_TOKEN) as consul:
        yield consul


def mesh_token(consul: ConsulServer) -> str:
    """A token with what the mesh needs, and no more."""

    def acl(*words: str) -> dict[str, str]:
        command = [
            consul_binary(),
            "acl",
            *words,
            "-format=json",
            f"-http-addr={consul.address}",
            f"-token={ROOT_TOKEN}",
        ]
        return dict(json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout))

    rules = 'key_prefix "mesh/" { policy = "write" } session_prefix "" { policy = "write" }'
    acl("policy", "create", "-name=mesh", f"-rules={rules}")
    return acl("token", "create", "-policy-name=mesh")["SecretID"]


@pytest.mark.consul
async def test_the_token_goes_with_every_call(guarded: ConsulServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "00000000-0000-0000-0000-000000000000")  # settings decide, not this
    token = mesh_token(guarded)
    async with connected(StoreSettings(address=guarded.address, token=token)) as store:
        session = await store.create_session("s", 10)
        assert await store.acquire("mesh/lock", b"", session)
        assert (await store.txn([Op("check-session", "mesh/lock", session=session), Op("set", "mesh/a", b"1")])).ok
        assert set((await store.list("mesh/")).entries) == {"mesh/a", "mesh/lock"}
        assert await store.renew_session(session)
        assert await store.session_name(session) == "s"
        change = await anext(aiter(store.watch("mesh/")))
        assert change.changed == {"mesh/a", "mesh/lock"}
        await store.destroy_session(session)
        await store.delete_prefix("mesh/")
        with pytest.raises(StoreDenied, match="CONSUL_HTTP_TOKEN") as denied:
            await store.put("other", b"")
        assert token not in str(denied.value)
        with pytest.raises(StoreDenied):
            await store.txn([Op("set", "mesh/a", b""), Op("set", "other", b"")])
        assert await store.get("mesh/a") is None
        found = await diagnose(StoreSettings(address=guarded.address, token=token))
        assert found.error is None
        assert found.write_seconds
        assert found.version is None  # not shown to this token


@pytest.mark.consul
@pytest.mark.parametrize("token", [None, "11111111-2222-3333-4444-555555555555"])
async def test_without_a_good_token_it_is_denied(guarded: ConsulServer, token: str | None) -> None:
    async with connected(StoreSettings(address=guarded.address, token=token)) as store:
        for ask in (store.put("mesh/a", b""), store.txn([Op("set", "mesh/a", b"")]), store.create_session("s", 10),
                    store.list("mesh/")):  # fmt: skip
            with pytest.raises(StoreDenied, match="CONSUL_HTTP_TOKEN"):
                await ask


# ── certificates ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.consul
async def test_tls_with_a_private_authority_and_client_certificates(tmp_path: Path) -> None:
    def make(*words: str) -> None:
        subprocess.run([consul_binary(), "tls", *words], check=True, cwd=tmp_path, capture_output=True, timeout=30)

    make("ca", "create")
    make("cert", "create", "-server", "-dc", "dc1")
    make("cert", "create", "-client", "-dc", "dc1")
    authority = tmp_path / "consul-agent-ca.pem"
    port = free_port()
    config = {
        "ports": {"https": port},
        "ca_file": str(authority),
        "cert_file": str(tmp_path / "dc1-server-consul-0.pem"),
        "key_file": str(tmp_path / "dc1-server-consul-0-key.pem"),
        "verify_incoming": True,
    }
    address = f"https://127.0.0.1:{port}"
    mine = StoreSettings(
        address=address,
        ca_file=authority,
        cert_file=tmp_path / "dc1-client-consul-0.pem",
        key_file=tmp_path / "dc1-client-consul-0-key.pem",
    )
    with ConsulServer(tmp_path / "server", config):
        async with connected(mine) as store:
            assert await store.put("t/a", b"1")
            assert set((await anext(aiter(store.watch("t/")))).entries) == {"t/a"}
        for wrong in (
            StoreSettings(address=address),  # does not trust the authority
            StoreSettings(address=address, ca_file=authority),  # shows no certificate of its own
        ):
            async with connected(wrong) as store:
                with pytest.raises(StoreUnavailable):
                    await store.put("t/a", b"2")
    with pytest.raises(StoreError, match="CONSUL_CACERT"):
        ConsulStore(StoreSettings(address=address, ca_file=tmp_path / "missing.pem"))


# ── diagnosis ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.consul
async def test_the_diagnosis_of_a_consul(tmp_path: Path) -> None:
    with ConsulServer(tmp_path, {"performance": {"raft_multiplier": 3}, "session_ttl_min": "10s"}) as consul:
        found = await diagnose(consul.settings)
        assert found.error is None
        assert found.version
        assert found.leader
        assert found.write_seconds
        assert (found.raft_multiplier, found.short_sessions, found.session_ttl_min) == (3, False, 10)
        assert found.max_connections_per_client == 200
        async with connected(consul.settings) as store:
            assert not (await store.list("mesh")).entries


async def test_the_diagnosis_of_the_embedded_store(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    await server.start()
    found = await diagnose(StoreSettings(address=server.address))
    assert found.error is None
    assert found.version
    assert found.version.startswith("mesh-")
    assert found.short_sessions
    assert found.raft_multiplier is None
    await server.stop()


async def test_the_diagnosis_of_nothing() -> None:
    found = await diagnose(StoreSettings(address=f"127.0.0.1:{free_port()}"))
    assert found.error
    assert "cannot reach" in found.error
