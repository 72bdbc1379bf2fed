"""TLS at routes: ended here with the certificate for the name, or passed on unopened; certificates come and go."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from mesh.proxy import arrival, listener, server
from mesh.proxy.server import ProxyServer
from mesh.table import PemSource, ProxyProtocol, Rule, TableRoute, TableTls, Target
from tests.parts.ports import free_port
from tests.patience import soon, until
from tests.proxy_server import certificates
from tests.proxy_server.certificates import Pair
from tests.proxy_server.test_proxy_first_bytes import client_hello, records
from tests.proxy_server.wire import GET, Mesh, Peer, Upstream, answering

pytestmark = pytest.mark.openssl  # makes the certificates


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("certificates")
    return {
        "shop": certificates.make(folder, "shop", "shop.test"),
        "wild": certificates.make(folder, "wild", "*.wild.test"),
        "again": certificates.make(folder, "again", "shop.test"),
        "expired": certificates.make(folder, "expired", "old.test", ends="20210101000000Z"),
        "early": certificates.make(folder, "early", "early.test", begins="20500101000000Z"),
    }


def in_files(pair: Pair) -> TableTls:
    return TableTls(cert=PemSource(file=str(pair.cert)), key=PemSource(file=str(pair.key)))


def in_secrets(name: str) -> TableTls:
    return TableTls(cert=PemSource(secret=f"{name}-cert"), key=PemSource(secret=f"{name}-key"))


def values(name: str, pair: Pair) -> dict[str, str]:
    return {f"{name}-cert": pair.cert.read_text(), f"{name}-key": pair.key.read_text()}


@dataclass
class Edge:
    """A proxy with routes on one address."""

    mesh: Mesh
    port: int

    def route(self, name: str, host: str, **more: object) -> None:
        rule = Rule(host=host, to=[Target(service="web", port="http")])
        self.mesh.routes[name] = TableRoute(listen=f"127.0.0.1:{self.port}", rules=[rule], **more)  # type: ignore[arg-type]

    async def shown(self, name: str | None) -> str:
        """The subject of the certificate that a client is shown who asks for `name`."""
        _, writer = await self.dial(name)
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return next(each for each in ("shop", "wild", "expired", "early") if each.encode() in certificate)

    async def dial(self, name: str | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        return await soon(asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=name or ""))

    async def ask(self, name: str, request: bytes = GET) -> bytes:
        peer = Peer(*await self.dial(name))
        await peer.send(request)
        _, body = await peer.answer()
        peer.close()
        return body

    @property
    def problems(self) -> list[str]:
        return self.mesh.proxy.problems()


@pytest_asyncio.fixture
async def edge(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Edge]:
    monkeypatch.setattr(server, "RETRY_SECONDS", 0.1)  # between looks at files
    proxy = ProxyServer()
    await proxy.start()
    running = Edge(Mesh(proxy), free_port())
    yield running
    await running.mesh.close()


async def test_requests_over_tls(edge: Edge, pairs: dict[str, Pair]) -> None:
    edge.route("shop", "shop.test", tls=in_files(pairs["shop"]))
    await edge.mesh.add("web-1")
    reader, writer = await edge.dial("shop.test")
    connection = writer.get_extra_info("ssl_object")
    assert connection.selected_alpn_protocol() == "http/1.1"
    assert connection.version() == "TLSv1.3"
    client = Peer(reader, writer)
    await client.send(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n")
    server = await edge.mesh.upstream.accept()
    head = await server.head()
    assert head["X-Forwarded-Proto"] == "https"
    assert head["X-Forwarded-For"] == "127.0.0.1"
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert (await client.answer())[1] == b"ok"
    await client.send(b"GET / HTTP/1.1\r\nHost: shop.test\r\nHost: two\r\n\r\n")  # refused, and closed after the answer
    assert (await client.answer())[0].start == "HTTP/1.1 400 Bad Request"
    await client.closed()
    assert edge.mesh.count("route_tls_handshakes", result="ok") == 1


async def test_each_client_is_shown_the_certificate_of_the_name(edge: Edge, pairs: dict[str, Pair]) -> None:
    edge.route("a-shop", "shop.test", tls=in_files(pairs["shop"]))
    edge.route("b-wild", "*.wild.test", tls=in_files(pairs["wild"]))
    edge.route("c-plain", "other.test")
    await edge.mesh.add("web-1", answering(b"hello"))
    assert await edge.shown("shop.test") == "shop"
    assert await edge.shown("SHOP.test") == "shop"
    assert await edge.shown("a.wild.test") == "wild"
    assert await edge.shown("a.b.wild.test") == "shop"  # a wildcard is for one label
    assert await edge.shown("unknown.test") == "shop"  # the default: the first route's
    assert await edge.shown(None) == "shop"
    assert edge.problems == []
    assert await edge.ask("other.test", b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n") == b"hello"


async def test_old_tls_and_weak_ciphers_are_refused(edge: Edge, pairs: dict[str, Pair]) -> None:
    edge.route("shop", "shop.test", tls=in_files(pairs["shop"]))
    await edge.mesh.add("web-1")
    old, weak = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    for context in (old, weak):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await soon(asyncio.open_connection("127.0.0.1", edge.port, ssl=context, server_hostname="shop.test"))


async def test_a_new_certificate_is_shown_and_open_connections_go_on(
    edge: Edge, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    here = Pair(tmp_path / "crt", tmp_path / "key")

    def put(pair: Pair) -> None:
        for new, path in ((pair.cert, here.cert), (pair.key, here.key)):
            path.with_suffix(".new").write_bytes(new.read_bytes())
            os.replace(path.with_suffix(".new"), path)

    put(pairs["shop"])
    edge.route("shop", "shop.test", tls=in_files(here))
    await edge.mesh.add("web-1", answering(b"hello"))
    old = Peer(*await edge.dial("shop.test"))
    await old.send(GET.replace(b"web", b"shop.test"))
    assert (await old.answer())[1] == b"hello"
    put(pairs["wild"])
    for _ in range(200):
        if await edge.shown("shop.test") == "wild":
            break
        await asyncio.sleep(0.05)
    await old.send(GET.replace(b"web", b"shop.test"))
    assert (await old.answer())[1] == b"hello"


async def test_the_last_good_certificate_stays(edge: Edge, pairs: dict[str, Pair], tmp_path: Path) -> None:
    here = Pair(tmp_path / "crt", tmp_path / "key")
    here.cert.write_bytes(pairs["shop"].cert.read_bytes())
    here.key.write_bytes(pairs["shop"].key.read_bytes())
    edge.route("shop", "shop.test", tls=in_files(here))
    await edge.mesh.add("web-1")
    assert edge.problems == []
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"
    for field, content, fault in (
        ("key", pairs["wild"].key.read_bytes(), "tls.key: it is not the key of tls.cert"),
        ("key", b"", "tls.key: there is no private key in it (PEM)"),
        ("key", encrypted, "tls.key: it is encrypted; store it without a passphrase"),
        ("crt", b"nonsense", "tls.cert: there is no certificate in it (PEM)"),
        ("crt", None, f"tls.cert: {here.cert}: No such file or directory"),
    ):
        here.key.write_bytes(pairs["shop"].key.read_bytes())
        path = tmp_path / field
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        await until(lambda fault=fault: edge.problems == [f"route shop: {fault}; the last good one stays"], fault)  # type: ignore[misc]
        assert await edge.shown("shop.test") == "shop"
    here.cert.write_bytes(pairs["shop"].cert.read_bytes())
    await until(lambda: edge.problems == [], "all well again")


async def test_a_certificate_out_of_secrets(edge: Edge, pairs: dict[str, Pair]) -> None:
    """They may come after the Table; what one route lacks is no harm to the others."""
    edge.route("shop", "shop.test", tls=in_secrets("shop"))
    edge.route("wild", "*.wild.test", tls=in_files(pairs["wild"]))
    await edge.mesh.add("web-1")
    assert edge.problems == ["route shop: tls.cert: there is no secret shop-cert; its names are refused"]
    assert await edge.shown("a.wild.test") == "wild"
    edge.mesh.proxy.give_secrets(values("shop", pairs["shop"]))
    assert edge.problems == []
    assert await edge.shown("shop.test") == "shop"
    edge.mesh.proxy.give_secrets({})
    assert edge.problems == ["route shop: tls.cert: there is no secret shop-cert; the last good one stays"]
    assert await edge.shown("shop.test") == "shop"


async def test_without_any_certificate_the_name_is_refused(edge: Edge) -> None:
    edge.route("shop", "shop.test", tls=in_secrets("shop"))
    await edge.mesh.add("web-1")
    with pytest.raises((ssl.SSLError, ConnectionError)):  # uvloop resets before the alert has gone out
        await edge.shown("shop.test")


async def test_certificates_out_of_their_time_are_told(edge: Edge, pairs: dict[str, Pair]) -> None:
    edge.route("old", "old.test", tls=in_files(pairs["expired"]))
    edge.route("early", "early.test", tls=in_files(pairs["early"]))
    await edge.mesh.add("web-1")
    assert sorted(edge.problems) == [
        "route early: tls.cert: the certificate is valid only from 2050-01-01 on",
        "route old: tls.cert: the certificate expired on 2021-01-01",
    ]
    assert await edge.shown("old.test") == "expired"


async def test_clients_that_do_not_speak_tls_or_nothing_at_all(
    edge: Edge, pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT", 0.2)
    edge.route("shop", "shop.test", tls=in_files(pairs["shop"]))
    await edge.mesh.add("web-1", answering(b"hello"))
    silent = await edge.mesh.dial(edge.port)
    plain = await edge.mesh.dial(edge.port)
    await plain.send(GET)
    await plain.rest()
    await silent.closed()
    assert await edge.ask("shop.test", GET.replace(b"web", b"shop.test")) == b"hello"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_route_turns_to_tls_and_back(edge: Edge, pairs: dict[str, Pair]) -> None:
    await edge.mesh.add("web-1", answering(b"hello"))
    request = GET.replace(b"web", b"shop.test")
    for _ in range(2):
        edge.route("shop", "shop.test")
        await edge.mesh.update()
        plain = await edge.mesh.dial(edge.port)
        await plain.send(request)
        assert (await plain.answer())[1] == b"hello"
        edge.route("shop", "shop.test", tls=in_files(pairs["shop"]))
        await edge.mesh.update()
        assert await edge.ask("shop.test", request) == b"hello"


async def test_a_websocket_over_tls(edge: Edge, pairs: dict[str, Pair]) -> None:
    async def socket(request: web.Request) -> web.WebSocketResponse:
        peer = web.WebSocketResponse()
        await peer.prepare(request)
        async for message in peer:
            await peer.send_bytes(message.data[::-1])
        return peer

    app = web.Application()
    app.router.add_get("/", socket)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream = Upstream("web-1")
    upstream.port = runner.addresses[0][1]
    edge.mesh.upstreams = [upstream]
    edge.route("shop", "", tls=in_files(pairs["shop"]))
    await edge.mesh.update()
    data = os.urandom(300_000)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"https://127.0.0.1:{edge.port}/", ssl=False, max_msg_size=0) as peer,
    ):
        await peer.send_bytes(data)
        assert await peer.receive_bytes(timeout=10) == data[::-1]
    edge.mesh.upstreams = []
    await runner.cleanup()


# ── passing through


async def test_tls_passes_through_by_its_name(edge: Edge, pairs: dict[str, Pair]) -> None:
    """The service itself ends it; a name of our own beside it on the same address does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pairs["wild"].cert, pairs["wild"].key)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"you asked for " + await reader.readline())
        writer.close()

    service = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    upstream = Upstream("web-1")
    upstream.port = service.sockets[0].getsockname()[1]
    edge.mesh.upstreams = [upstream]
    edge.route("a", "*.wild.test", tls="passthrough")
    edge.route("b", "shop.test", tls=in_files(pairs["shop"]))
    await edge.mesh.update()
    assert edge.problems == []
    assert await edge.shown("shop.test") == "shop"
    reader, writer = await edge.dial("a.wild.test")
    assert b"wild" in writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.write(b"that\n")
    assert await soon(reader.read()) == b"you asked for that\n"
    edge.mesh.upstreams = []
    service.close()


async def test_a_hello_in_pieces_is_passed_on_byte_for_byte(edge: Edge) -> None:
    edge.route("a", "shop.test", tls="passthrough")
    await edge.mesh.add("web-1")
    hello = client_hello("shop.test")
    spread = records(hello[5:], *[7] * 20)
    client = await edge.mesh.dial(edge.port)
    for at in range(0, len(spread), 97):
        await client.send(spread[at : at + 97])
    await client.send(b"and more")
    server = await edge.mesh.upstream.accept()
    await server.exactly(spread + b"and more")
    await server.send(b"answer")
    await client.exactly(b"answer")


async def test_a_name_that_nobody_has_is_told_so(edge: Edge) -> None:
    edge.route("a", "shop.test", tls="passthrough")
    await edge.mesh.add("web-1")
    for name in ("other.test", None):
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
            await edge.dial(name)
    edge.route("b", "", tls="passthrough")  # any name, and none
    await edge.mesh.update()
    client = await edge.mesh.dial(edge.port)
    await client.send(client_hello(None))
    server = await edge.mesh.upstream.accept()
    await server.exactly(client_hello(None)[:3])


async def test_what_is_no_hello_is_closed(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "HEAD_TIMEOUT", 0.2)
    edge.route("a", "", tls="passthrough")
    await edge.mesh.add("web-1")
    plain, silent, half, gone = [await edge.mesh.dial(edge.port) for _ in range(4)]
    await plain.send(GET)
    await half.send(client_hello("shop.test")[:100])
    await gone.send(client_hello("shop.test")[:100])
    gone.finish()
    for client in (plain, silent, half, gone):
        assert await client.rest() == b""
    assert edge.mesh.upstream.accepted == 0
    assert not edge.mesh.proxy._context.arrivals


async def test_what_passing_through_cannot_do_is_told(edge: Edge) -> None:
    edge.route("a", "shop.test", tls="passthrough")
    edge.route("b", "other.test")
    rule = Rule(host="path.test", path="/api", to=[Target(service="web", port="http")])
    edge.mesh.routes["c"] = TableRoute(listen=f"127.0.0.1:{edge.port}", rules=[rule], tls="passthrough")
    await edge.mesh.add("web-1")
    assert edge.problems == [
        f"route b: 127.0.0.1:{edge.port} is for TLS that passes through; give it `tls` or another `listen`",
        "route c: only `host` and `to` of a rule can be told where TLS passes through",
    ]


# ── PROXY protocol before it


async def test_the_client_s_address_before_tls(edge: Edge, pairs: dict[str, Pair]) -> None:
    edge.route("shop", "shop.test", tls=in_files(pairs["shop"]), proxy_protocol=ProxyProtocol(accept=True))
    await edge.mesh.add("web-1")
    raw = await edge.mesh.dial(edge.port)
    await raw.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    await soon(raw.writer.start_tls(context, server_hostname="shop.test"))
    await raw.send(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n")
    server = await edge.mesh.upstream.accept()
    head = await server.head()
    assert head["X-Forwarded-For"] == "192.0.2.7"
    assert head["X-Forwarded-Proto"] == "https"


async def test_the_client_s_address_through_a_passage(edge: Edge) -> None:
    edge.route("a", "shop.test", tls="passthrough", proxy_protocol=ProxyProtocol(accept=True, send="v1"))
    await edge.mesh.add("web-1")
    client = await edge.mesh.dial(edge.port)
    hello = client_hello("shop.test")
    await client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n" + hello)
    server = await edge.mesh.upstream.accept()
    await server.exactly(b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 %d\r\n" % edge.port + hello)
