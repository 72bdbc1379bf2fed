"""What HTTP/1.1 messages become on their way through."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from mesh.proxy import l7
from mesh.proxy.server import ProxyServer
from mesh.table import Rule, TableRoute, Target
from tests.parts.ports import free_port
from tests.patience import soon, until
from tests.proxy_server.wire import GET, OK, Mesh, Peer, Upstream


async def test_a_request_and_its_answer(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, request = await mesh.pair(
        b"GET /a?b=%20c HTTP/1.1\r\nHost: web.svc.cluster:80\r\nAccept: */*\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n"
    )
    assert request.start == "GET /a?b=%20c HTTP/1.1"
    assert request["Host"] == "web.svc.cluster:80"
    assert request["Accept"] == "*/*"
    assert request.all("X-Two") == ["1", "2"]
    await server.send(b"HTTP/1.1 201 Made it\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello")
    answer, body = await client.answer()
    assert answer.start == "HTTP/1.1 201 Made it"
    assert answer["X-A"] == "b"
    assert body == b"hello"


async def test_both_connections_are_kept(mesh: Mesh) -> None:
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    for _ in range(3):
        await server.send(OK)
        assert (await client.answer())[1] == b"ok"
        await client.send(GET)
        await server.head()
    assert upstream.accepted == 1


async def test_hop_by_hop_fields_end_here(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, request = await mesh.pair(
        b"GET / HTTP/1.1\r\nHost: web\r\nConnection: X-Secret, keep-alive\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Connection: keep-alive\r\nProxy-Authorization: x\r\nTE: deflate\r\nTrailer: X-T\r\nX-Kept: 1\r\n\r\n"
    )
    assert {name.lower() for name, _ in request.fields} == {
        "host", "x-kept", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "traceparent",
        "via",
    }  # fmt: skip
    await server.send(
        b"HTTP/1.1 200 OK\r\nConnection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nX-Request-Id: 7\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    answer, _ = await client.answer()
    assert {name for name, _ in answer.fields} == {"Content-Length", "X-Request-Id"}


async def test_what_a_connection_field_names_is_made_anew(mesh: Mesh) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(
        b"GET / HTTP/1.1\r\nHost: web\r\nConnection: X-Request-Id, traceparent, tracestate\r\nX-Request-Id: mine\r\n"
        b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n\r\n"
    )
    assert request["traceparent"].split("-")[1] == request["X-Request-Id"] != "mine"
    assert "tracestate" not in request


@pytest.mark.parametrize(
    "sent", [b"TE: trailers", b"TE: deflate;q=0.5, Trailers", b"TE: gzip\r\nConnection: TE\r\nTE: trailers"]
)
async def test_of_te_only_trailers_is_left(mesh: Mesh, sent: bytes) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(b"GET / HTTP/1.1\r\nHost: web\r\n%b\r\n\r\n" % sent)
    assert request["TE"] == "trailers"


async def test_forwarding_fields_are_replaced_by_default(mesh: Mesh) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(
        b"GET / HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-Port: 6\r\n"
        b"X_Forwarded_For: 6.6.6.6\r\nX_Real-IP: 6\r\nContent_Length: 6\r\nMy_Own: 1\r\nVia: 1.0 edge\r\n\r\n"
    )
    assert request["X-Forwarded-For"] == "127.0.0.1"
    assert request["X-Forwarded-Proto"] == "http"
    assert request["X-Forwarded-Host"] == "shop.example"
    assert request.all("Via") == ["1.0 edge", "1.1 mesh"]
    assert request["My_Own"] == "1"
    for name in ("Forwarded", "X-Real-IP", "X-Forwarded-Port", "X_Forwarded_For", "X_Real-IP", "Content_Length"):
        assert name not in request  # with underscores: CGI and WSGI would take them for the others


async def test_a_trusted_peer_s_forwarding_fields_are_added_to(mesh: Mesh) -> None:
    trusting = Mesh(ProxyServer(trust=["127.0.0.0/8"]))
    await trusting.proxy.start()
    try:
        await trusting.add("web-1")
        _, _, request = await trusting.pair(
            b"GET / HTTP/1.1\r\nHost: web\r\nX-Forwarded-For: 1.1.1.1, 2.2.2.2\r\nX-Forwarded-Proto: https\r\n"
            b"X-Forwarded-Host: shop\r\nForwarded: for=1.1.1.1\r\nX-Forwarded-Port: 443\r\n\r\n"
        )
    finally:
        await trusting.close()
    assert request["X-Forwarded-For"] == "1.1.1.1, 2.2.2.2, 127.0.0.1"
    assert request["X-Forwarded-Proto"] == "https"
    assert request["X-Forwarded-Host"] == "shop"
    assert request["Forwarded"] == "for=1.1.1.1"
    assert request["X-Forwarded-Port"] == "443"


async def test_an_ipv4_client_of_both_families_listener_is_itself(mesh: Mesh) -> None:
    trusting = Mesh(ProxyServer(trust=["127.0.0.0/8"]))
    await trusting.proxy.start()
    try:
        port = free_port()
        trusting.routes["both"] = TableRoute(listen=f"[::]:{port}", rules=[Rule(to=[Target(service="web")])])
        await trusting.add("web-1")
        client = await trusting.dial(port)
        await client.send(b"GET / HTTP/1.1\r\nHost: web\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n")
        request = await (await trusting.upstream.accept()).head()
    finally:
        await trusting.close()
    assert request["X-Forwarded-For"] == "1.1.1.1, 127.0.0.1"


@pytest.mark.parametrize(("sent", "kept"), [(b"abc-123", True), (b"x" * 129, False), (b"a b", False)])
async def test_request_ids_are_kept_or_made(mesh: Mesh, sent: bytes, kept: bool) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(b"GET / HTTP/1.1\r\nHost: web\r\nX-Request-Id: %b\r\n\r\n" % sent)
    assert (request["X-Request-Id"] == sent.decode()) is kept
    assert request["X-Request-Id"]


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


async def trace_of(mesh: Mesh, *values: str) -> tuple[str, str, str, bool]:
    """What becomes of these `traceparent`s: trace, parent and flags; whether `tracestate` goes with it."""
    fields = "".join(f"traceparent: {value}\r\n" for value in values)
    client = await mesh.dial()
    await client.send(f"GET / HTTP/1.1\r\nHost: web\r\n{fields}tracestate: a=1\r\ntracestate: b=2\r\n\r\n".encode())
    request = await (await mesh.upstream.accept()).head()
    version, trace, parent, flags = request["traceparent"].split("-")
    assert (version, len(trace), len(parent)) == ("00", 32, 16)
    return trace, parent, flags, request.all("tracestate") == ["a=1", "b=2"]


@pytest.mark.parametrize(
    ("sent", "flags"),
    [
        (f"00-{TRACE}-{PARENT}-01", "01"),
        (f"00-{TRACE}-{PARENT}-00", "00"),
        (f"00-{TRACE}-{PARENT}-ff", "03"),
        (f"cc-{TRACE}-{PARENT}-01", "01"),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-then", "01"),
    ],
)
async def test_a_trace_is_continued(mesh: Mesh, sent: str, flags: str) -> None:
    await mesh.add("web-1")
    trace, parent, sent_flags, with_state = await trace_of(mesh, sent)
    assert (trace, sent_flags, with_state) == (TRACE, flags, True)
    assert parent != PARENT


@pytest.mark.parametrize(
    "sent",
    [
        (),
        (f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"),
        (f"ff-{TRACE}-{PARENT}-01",),
        (f"00-{TRACE}-{PARENT}-01-more",),
        (f"cc-{TRACE}-{PARENT}-01.more",),
        (f"00-{TRACE.upper()}-{PARENT}-01",),
        (f"00-{'0' * 32}-{PARENT}-01",),
        (f"00-{TRACE}-{'0' * 16}-01",),
        (f"00-{TRACE}-{PARENT}",),
        (f"00-{TRACE}x-{PARENT}-01",),
    ],
)
async def test_a_trace_that_is_none_begins_anew(mesh: Mesh, sent: tuple[str, ...]) -> None:
    await mesh.add("web-1")
    trace, _, flags, with_state = await trace_of(mesh, *sent)
    assert (flags, with_state) == ("01", False)
    assert trace != TRACE


async def test_an_absolute_target_s_authority_wins(mesh: Mesh) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(b"GET http://real.example:8080?q=1 HTTP/1.1\r\nHost: other\r\n\r\n")
    assert request.start == "GET /?q=1 HTTP/1.1"
    assert request["Host"] == "real.example:8080"


@pytest.mark.parametrize("target", [b"*", b"http://web"])
async def test_options_asterisk(mesh: Mesh, target: bytes) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(b"OPTIONS %b HTTP/1.1\r\nHost: web\r\n\r\n" % target)
    assert request.start == "OPTIONS * HTTP/1.1"


async def test_space_around_values_does_not_count(mesh: Mesh) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(b"GET / HTTP/1.1\r\nHost: \tweb \t\r\nX: a b \r\nX-Request-Id: 7\t\r\n\r\n")
    assert (request["Host"], request["X"], request["X-Request-Id"]) == ("web", "a b", "7")


async def test_empty_lines_before_a_request_are_ignored(mesh: Mesh) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(b"\r\n\r\n" + GET)
    assert request.start == "GET / HTTP/1.1"


# ── bodies


async def test_a_body_with_a_length(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, request = await mesh.pair(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\n12345")
    assert request["Content-Length"] == "10"
    await server.exactly(b"12345")
    await client.send(b"67890")
    await server.exactly(b"67890")
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"


async def test_a_post_without_a_body_says_so(mesh: Mesh) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(b"POST / HTTP/1.1\r\nHost: web\r\n\r\n")
    assert request["Content-Length"] == "0"


async def test_chunks_are_framed_anew_both_ways(mesh: Mesh) -> None:
    """Extensions and trailers are dropped, the payload is the same."""
    await mesh.add("web-1")
    client, server, request = await mesh.pair(
        b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;ext=1\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n"
    )
    assert "Content-Length" not in request
    assert await server.chunked() == b"abcdefg"
    await server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\nX-Trailer: 1\r\n\r\n")
    assert (await client.answer())[1] == b"hi"
    await client.send(GET)  # nothing is left over on either side
    await server.head()
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"


@pytest.mark.parametrize("method", [b"PROPFIND", b"VERSION-CONTROL", b"FOO"])
async def test_methods_that_we_do_not_know_pass(mesh: Mesh, method: bytes) -> None:
    await mesh.add("web-1")
    _, _, request = await mesh.pair(method + b" / HTTP/1.1\r\nHost: web\r\n\r\n")
    assert request.start == f"{method.decode()} / HTTP/1.1"


async def test_events_are_not_held_back(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.head()
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        await server.send(b"%x\r\n%b\r\n" % (len(event), event))
        await client.exactly(b"%x\r\n%b\r\n" % (len(event), event))


async def test_an_answer_that_ends_with_its_connection_is_chunked(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\n\r\nuntil ", b"the end")
    server.close()
    answer, body = await client.answer()
    assert answer["Transfer-Encoding"] == "chunked"
    assert body == b"until the end"


@pytest.mark.parametrize(
    ("method", "answer", "kept"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "5"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", None),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n", "5"),
    ],
)
async def test_answers_without_a_body(mesh: Mesh, method: bytes, answer: bytes, kept: str | None) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(method + b" / HTTP/1.1\r\nHost: web\r\n\r\n")
    for _ in range(2):  # the second shows that neither connection waits for a body
        await server.send(answer)
        head = await client.head()
        assert head.all("Content-Length") == ([kept] if kept else [])
        assert "Transfer-Encoding" not in head
        await client.send(method + b" / HTTP/1.1\r\nHost: web\r\n\r\n")
        await server.head()


async def test_pipelined_requests_are_answered_in_order(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, request = await mesh.pair(
        b"POST /1 HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc"
        b"POST /2 HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nd\r\n0\r\n\r\n" + GET
    )
    assert request.start.split()[1] == "/1"
    await server.exactly(b"abc")
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
    other = await mesh.upstream.accept()  # a POST takes a kept connection only of an endpoint known to keep them
    assert (await other.head()).start.split()[1] == "/2"
    assert await other.chunked() == b"d"
    await other.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2")
    server = other
    assert (await server.head()).start.split()[1] == "/"
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n3")
    assert [(await client.answer())[1] for _ in range(3)] == [b"1", b"2", b"3"]


async def test_large_bodies_flow_in_bounded_memory(mesh: Mesh) -> None:
    """A client that does not read stops the upstream, and the other way round."""
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000000\r\n\r\n")
    block = bytes(2**20)

    async def pour(peer: asyncio.StreamWriter) -> int:
        """Writes until nothing moves any more; how much went."""
        sent = 0
        while True:
            peer.write(block)
            try:
                await asyncio.wait_for(peer.drain(), 0.5)
            except TimeoutError:
                return sent
            sent += len(block)
            assert sent < 50 * 2**20, "nobody reads, yet everything is taken"

    client.reader._limit = server.reader._limit = 1  # type: ignore[attr-defined]  # the test's own ends buffer nothing
    await pour(client.writer)
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    await pour(server.writer)
    client.reset()
    server.reset()


# ── 1xx, early answers, upgrades


async def test_the_upstream_decides_on_100_continue(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, request = await mesh.pair(
        b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    )
    assert request["Expect"] == "100-continue"
    await server.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
    await client.exactly(b"HTTP/1.1 100 Continue\r\n\r\n")
    await client.send(b"body")
    await server.exactly(b"body")
    await server.send(OK)
    answer, _ = await client.answer()
    assert answer.start == "HTTP/1.1 200 OK"
    assert "Connection" not in answer


async def test_a_refused_expectation_ends_the_connection(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(
        b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    )
    await server.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    answer, _ = await client.answer()
    assert answer.start == "HTTP/1.1 413 Too Large"
    assert answer["Connection"] == "close"
    await client.closed()


async def test_an_endpoint_that_never_says_100_continue(mesh: Mesh) -> None:
    """The client waits for it: its body cannot be what is missing."""
    mesh.traffic = {"timeout": "200ms"}
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(
        b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await client.head()).start == "HTTP/1.1 504 Gateway Timeout"
    await server.closed()


async def test_early_answers_of_an_endpoint_that_then_closes(mesh: Mesh) -> None:
    """With bytes of the request unread: that resets its connection, often just as we write to it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        mesh.upstreams = [upstream := Upstream("web-1")]
        upstream.port = listening.getsockname()[1]
        await mesh.update()
        rounds = 40
        answering = asyncio.create_task(asyncio.to_thread(_answer_early, listening, rounds))
        for _ in range(rounds):
            client = await mesh.dial()
            await client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 90000000\r\n\r\n")
            sending = asyncio.create_task(_pour_in(client))
            answer, body = await client.answer()
            assert (answer.start, body) == ("HTTP/1.1 413 Too Large", b"no")
            sending.cancel()
        await soon(answering)
        mesh.upstreams = []


def _answer_early(listening: socket.socket, rounds: int) -> None:
    listening.settimeout(5)
    for _ in range(rounds):
        connection, _ = listening.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")


async def _pour_in(client: Peer) -> None:
    while True:
        await client.send(b"x" * 2**18)


async def test_a_client_that_goes_on_sending_reads_its_answer_in_peace(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(l7, "LINGER", 0.3)
    monkeypatch.setattr(l7, "MAX_LINGER", 1.0)
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 90000000\r\n\r\n")
    await server.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    answered = time.monotonic()
    with pytest.raises(ConnectionError):  # in the end its time is over
        await _pour_in(client)
    assert time.monotonic() - answered > 0.8


async def test_an_early_answer_while_the_body_still_comes(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\nstart")
    await server.send(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
    await client.send(b"x" * 10_000)  # must not make the answer be lost in a reset
    answer, body = await client.answer()
    assert answer.start == "HTTP/1.1 401 No"
    assert answer["Connection"] == "close"
    assert body == b"no"
    await client.closed()


async def test_an_upgrade_becomes_a_tunnel(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, request = await mesh.pair(
        b"GET /chat HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: x\r\n\r\nearly"
    )
    assert (request["Connection"], request["Upgrade"]) == ("Upgrade", "websocket")
    assert request["Sec-WebSocket-Key"] == "x"
    await server.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: y\r\n\r\nfirst"
    )
    answer = await client.head()
    assert (answer["Connection"], answer["Upgrade"], answer["Sec-WebSocket-Accept"]) == ("Upgrade", "websocket", "y")
    await client.exactly(b"first")
    await server.exactly(b"early")
    await client.send(b"\x00\r\n\r\nping")
    await server.exactly(b"\x00\r\n\r\nping")
    client.finish()
    await server.closed()
    await server.send(b"last words")
    server.close()
    assert await client.rest() == b"last words"
    await until(lambda: mesh.count("in_flight") == 0, "the tunnel's end")


async def test_an_upgrade_declined_is_an_answer(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(
        b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    await client.send(GET)
    await server.head()


@pytest.mark.parametrize("protocol", [b"h2c", b"web"])
async def test_an_upgrade_to_what_was_not_asked_for_is_none(mesh: Mesh, protocol: bytes) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(
        b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    await server.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % protocol)
    assert (await client.head()).start == "HTTP/1.1 502 Bad Gateway"


@pytest.mark.parametrize("protocols", [b"h2c", b"H2C", b"websocket, h2c", b"h2c/1"])
async def test_h2c_is_not_upgraded_to(mesh: Mesh, protocols: bytes) -> None:
    """It would carry requests past every check."""
    await mesh.add("web-1")
    _, _, request = await mesh.pair(
        b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n"
        b"HTTP2-Settings: x\r\n\r\n" % protocols
    )
    assert "Upgrade" not in request
    assert "HTTP2-Settings" not in request


# ── HTTP/1.0, closing


async def test_http_1_0_gets_an_answer_that_ends_with_the_connection(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, request = await mesh.pair(b"GET / HTTP/1.0\r\n\r\n")
    assert request.start == "GET / HTTP/1.1"
    assert request["Host"] == "web"
    await server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"3\r\ndef\r\n0\r\n\r\n")
    answer = await client.head()
    assert "Transfer-Encoding" not in answer
    assert await client.rest() == b"abcdef"


async def test_http_1_0_keep_alive(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
    await server.send(OK)
    answer, _ = await client.answer()
    assert answer["Connection"] == "keep-alive"
    await client.send(GET)
    await server.head()


@pytest.mark.parametrize("kept", [False, True])
async def test_an_http_1_0_endpoint(mesh: Mesh, kept: bool) -> None:
    """It ends its answer with the connection, or says that it keeps it."""
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    if kept:
        await server.send(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n1.")
    else:
        await server.send(b"HTTP/1.0 200 OK\r\n\r\n", b"1.")
        server.close()
    answer, body = await client.answer()
    assert (answer.start, body) == ("HTTP/1.1 200 OK", b"1.")
    await client.send(GET)
    if not kept:
        server = await upstream.accept()
    await server.head()
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    assert upstream.accepted == 2 - kept


async def test_connection_close_is_honoured_on_both_sides(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, request = await mesh.pair(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
    assert "Connection" not in request
    await server.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    answer, _ = await client.answer()
    assert answer["Connection"] == "close"
    await client.closed()
    await server.closed()


async def test_a_client_that_sends_no_more_still_gets_its_answers(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(GET + GET)
    client.finish()
    await server.send(OK)
    await server.head()
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    assert (await client.answer())[1] == b"ok"
    await client.closed()


async def test_a_client_that_ends_with_its_body_before_the_endpoint_is_connected(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client = await mesh.dial()
    await client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody")
    client.finish()
    server = await mesh.upstream.accept()
    await server.head()
    await server.exactly(b"body")
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    await client.closed()


async def test_a_client_that_ends_amid_its_body(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbo")
    client.finish()
    assert await server.rest() == b"bo"
    await client.closed()


async def test_idle_clients_are_let_go(mesh: Mesh) -> None:
    mesh.traffic = {"idle_timeout": "200ms"}
    await mesh.add("web-1")
    client = await mesh.dial()
    await client.closed()


async def test_a_client_that_leaves_frees_the_upstream(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    client.reset()
    await server.closed()
    assert mesh.count("requests", code="none") == 1


async def test_metrics_count_what_happened(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc")
    await server.exactly(b"abc")
    assert mesh.count("in_flight") == 1
    await server.send(OK)
    await client.answer()
    assert mesh.count("in_flight") == 0
    assert mesh.count("requests", code="2xx", service="web", port="http") == 1
    assert mesh.count("bytes", direction="in") == 3
    assert mesh.count("bytes", direction="out") == 2
    assert mesh.count("connections") == 1
