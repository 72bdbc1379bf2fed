"""Whose connection it is, told by the PROXY protocol on the way in and on the way out."""

from __future__ import annotations

import struct

import pytest

from mesh.proxy import arrival
from mesh.proxy.proxy_protocol import write_header
from mesh.table import ProxyProtocol
from tests.proxy_server.wire import GET, Mesh, Peer

CLIENT, LOAD_BALANCER = ("192.0.2.7", 4711), ("192.0.2.1", 80)
LINE = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x20, 0, 0)


async def test_an_endpoint_is_told_the_client(mesh: Mesh) -> None:
    mesh.protocol = "tcp"
    mesh.proxy_protocol = ProxyProtocol(send="v1")
    await mesh.add("db-1")
    client = await mesh.dial()
    server = await mesh.upstream.accept()
    await server.exactly(b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (client.port, mesh.port))
    await client.send(b"hello")
    await server.exactly(b"hello")
    assert mesh.count("bytes", direction="in") == 5


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("pieces", [1, 7, 100])
async def test_what_comes_in_is_passed_on(mesh: Mesh, version: str, pieces: int) -> None:
    mesh.protocol = "tcp"
    mesh.proxy_protocol = ProxyProtocol(accept=True, send="v2")
    await mesh.add("db-1")
    client = await mesh.dial()
    sent = write_header(version, CLIENT, LOAD_BALANCER) + b"hello"
    for at in range(0, len(sent), pieces):
        await client.send(sent[at : at + pieces])
    server = await mesh.upstream.accept()
    await server.exactly(write_header("v2", CLIENT, ("127.0.0.1", mesh.port)) + b"hello")


async def test_it_may_change_while_the_port_is_open(mesh: Mesh) -> None:
    mesh.protocol = "tcp"
    await mesh.add("db-1")
    for version in (None, "v1", "v2", None):
        mesh.proxy_protocol = ProxyProtocol(send=version)
        await mesh.update()
        client = await mesh.dial()
        await client.send(b"hello")
        server = await mesh.upstream.accept()
        us = "127.0.0.1", client.port
        await server.exactly((write_header(version, us, ("127.0.0.1", mesh.port)) if version else b"") + b"hello")


async def forwarded_for(mesh: Mesh, client: Peer, request: bytes) -> str:
    await client.send(request)
    server = await mesh.upstream.accept()
    value = (await server.head())["X-Forwarded-For"]
    server.close()
    client.close()
    return value


async def test_requests_are_of_whom_the_header_names(mesh: Mesh) -> None:
    mesh.proxy_protocol = ProxyProtocol(accept=True)
    await mesh.add("web-1")
    assert await forwarded_for(mesh, await mesh.dial(), LINE + GET) == "192.0.2.7"
    assert await forwarded_for(mesh, await mesh.dial(), LOCAL + GET) == "127.0.0.1"  # the load balancer's own check
    client = await mesh.dial()
    await client.send(LINE)
    assert await forwarded_for(mesh, client, GET) == "192.0.2.7"


async def test_nothing_else_is_let_in(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "HEAD_TIMEOUT", 0.2)
    mesh.proxy_protocol = ProxyProtocol(accept=True)
    for mesh.protocol in ("http", "tcp"):
        await mesh.add("web-1")
        bare, slow, gone = [await mesh.dial() for _ in range(3)]
        await bare.send(GET)
        await slow.send(LINE[:20])
        await gone.send(LINE[:20])
        gone.finish()
        for client in (bare, slow, gone):
            assert await client.rest() == b""
        assert mesh.upstream.accepted == 0
        assert not mesh.proxy._context.arrivals
    assert mesh.count("upstream_failures", reason="no-proxy-header") == 6


async def test_a_header_that_nobody_asked_for_is_refused(mesh: Mesh) -> None:
    """Else anybody could claim to be anyone."""
    await mesh.add("web-1")
    client = await mesh.dial()
    await client.send(LINE + GET)
    assert (await client.head()).start.startswith("HTTP/1.1 400 ")
