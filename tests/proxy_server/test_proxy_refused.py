"""What is ambiguous is refused before anything of it reaches an upstream; answers are judged as strictly."""

from __future__ import annotations

import pytest

from tests.proxy_server.wire import GET, OK, Mesh

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n"


def _post(*fields: bytes, body: bytes = b"0\r\n\r\n") -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: web", *fields, b"", b""]) + body


def _get(*fields: bytes) -> bytes:
    return b"\r\n".join([b"GET / HTTP/1.1", *fields, b"", b""])


REFUSED = {
    "length and chunked": (400, _post(b"Content-Length: 5", b"Transfer-Encoding: chunked")),
    "chunked and length": (400, _post(b"Transfer-Encoding: chunked", b"Content-Length: 5")),
    "two lengths": (400, _post(b"Content-Length: 5", b"Content-Length: 6")),
    "the same length twice": (400, _post(b"Content-Length: 5", b"Content-Length: 5")),
    "a list of lengths": (400, _post(b"Content-Length: 5, 5")),
    "a signed length": (400, _post(b"Content-Length: +5")),
    "a negative length": (400, _post(b"Content-Length: -5")),
    "a hexadecimal length": (400, _post(b"Content-Length: 0x5")),
    "an empty length": (400, _post(b"Content-Length:")),
    "a spaced length": (400, _post(b"Content-Length: 5 0")),
    "an endless length": (400, _post(b"Content-Length: 99999999999999999999")),
    "gzip, chunked": (400, _post(b"Transfer-Encoding: gzip, chunked")),
    "chunked, identity": (400, _post(b"Transfer-Encoding: chunked, identity")),
    "chunked twice": (400, _post(b"Transfer-Encoding: chunked, chunked")),
    "two encodings": (400, _post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    "identity": (400, _post(b"Transfer-Encoding: identity")),
    "xchunked": (400, _post(b"Transfer-Encoding: xchunked")),
    "chunked with a vertical tab": (400, _post(b"Transfer-Encoding: \x0bchunked")),
    "chunked with parameters": (400, _post(b"Transfer-Encoding: chunked;x=1")),
    "an empty encoding": (400, _post(b"Transfer-Encoding:")),
    "chunked in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "space before the colon": (400, _post(b"Content-Length : 5")),
    "tab before the colon": (400, _post(b"Transfer-Encoding\t: chunked")),
    "no name": (400, _get(b"Host: web", b": x")),
    "a field without a colon": (400, _get(b"Host: web", b"nonsense")),
    "a name with a control": (400, _get(b"Host: web", b"X\x01Y: 1")),
    "obs-fold": (400, _get(b"Host: web", b"X: 1", b" folded")),
    "obs-fold with a tab": (400, _get(b"Host: web", b"X: 1", b"\tfolded")),
    "a folded first field": (400, _get(b" Host: web")),
    "bare CR in a value": (400, _get(b"Host: web", b"X: a\rb")),
    "bare CR as a line end": (400, b"GET / HTTP/1.1\rHost: web\r\n\r\n"),
    "bare LF as a line end": (400, b"GET / HTTP/1.1\nHost: web\n\n"),
    "bare LF in a head": (400, b"GET / HTTP/1.1\r\nHost: web\nX: 1\r\n\r\n"),
    "bare LF before the end": (400, b"GET / HTTP/1.1\r\nHost: web\n\r\n\r\n"),
    "NUL in a value": (400, _get(b"Host: web", b"X: a\x00b")),
    "a control in a value": (400, _get(b"Host: web", b"X: a\x07b")),
    "DEL in a value": (400, _get(b"Host: web", b"X: a\x7fb")),
    "no Host": (400, _get(b"X: 1")),
    "two Hosts": (400, _get(b"Host: web", b"Host: web")),
    "an empty Host": (400, _get(b"Host:")),
    "a Host that is no host": (400, _get(b"Host: a b")),
    "a Host with a path": (400, _get(b"Host: web/x")),
    "a Host with a user": (400, _get(b"Host: a@web")),
    "a Host list": (400, _get(b"Host: a,b\xff")),
    "a control in the target": (400, b"GET /\x01 HTTP/1.1\r\nHost: web\r\n\r\n"),
    "NUL in the target": (400, b"GET /\x00 HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a tab in the target": (400, b"GET /a\tb HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a fragment in the target": (400, b"GET /a#b HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a target that is no path": (400, b"GET web HTTP/1.1\r\nHost: web\r\n\r\n"),
    "an absolute target with a user": (400, b"GET http://a@b/ HTTP/1.1\r\nHost: web\r\n\r\n"),
    "an absolute target without a host": (400, b"GET http:///x HTTP/1.1\r\nHost: web\r\n\r\n"),
    "an asterisk": (400, b"GET * HTTP/1.1\r\nHost: web\r\n\r\n"),
    "no target": (400, b"GET  HTTP/1.1\r\nHost: web\r\n\r\n"),
    "no version": (400, b"GET /\r\nHost: web\r\n\r\n"),
    "HTTP/2 by its preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (400, b"GET / HTTP/1.2\r\nHost: web\r\n\r\n"),
    "HTTP/0.9": (505, b"GET / HTTP/0.9\r\nHost: web\r\n\r\n"),
    "no HTTP at all": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "a method in lower case": (400, b"get / HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a request line that begins with a space": (400, b" GET / HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a tab in the request line": (400, b"GET\t/ HTTP/1.1\r\nHost: web\r\n\r\n"),
    "two spaces before the version": (400, b"GET /  HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a space after the version": (400, b"GET / HTTP/1.1 \r\nHost: web\r\n\r\n"),
    "HTTP/1.1 in lower case": (400, b"GET / http/1.1\r\nHost: web\r\n\r\n"),
    "HTTP/01.1": (400, b"GET / HTTP/01.1\r\nHost: web\r\n\r\n"),
    "Connection names Host": (400, _get(b"Host: web", b"Connection: close, Host")),
    "Connection names Content-Length": (400, _post(b"Content-Length: 1", b"Connection: content-length", body=b"x")),
    "Connection names X-Forwarded-For": (400, _get(b"Host: web", b"Connection: X-Forwarded-For")),
    "Connection names Cookie": (400, _get(b"Host: web", b"Connection: keep-alive", b"Connection: cookie")),
    "CONNECT": (405, b"CONNECT web:443 HTTP/1.1\r\nHost: web:443\r\n\r\n"),
    "an unknown expectation": (417, _post(b"Content-Length: 1", b"Expect: a-miracle", body=b"x")),
    "an endless head": (431, b"GET / HTTP/1.1\r\nHost: web\r\nX: " + b"x" * 40_000),
    "a head too long": (431, _get(b"Host: web", b"X: " + b"x" * 33_000)),
    "101 fields": (431, _get(b"Host: web", *[b"X: 1"] * 100)),
}


@pytest.mark.parametrize(("status", "request_"), REFUSED.values(), ids=REFUSED.keys())
async def test_refused(mesh: Mesh, status: int, request_: bytes) -> None:
    upstream = await mesh.add("web-1")
    client = await mesh.dial()
    await client.send(request_ + SMUGGLED)
    answer, body = await client.answer()
    assert int(answer.start.split()[1]) == status
    assert answer["Connection"] == "close"
    assert body.endswith(b"\n")
    await client.closed()
    assert upstream.accepted == 0


async def test_100_fields_and_32_kib_pass(mesh: Mesh) -> None:
    await mesh.add("web-1")
    head = _get(b"Host: web", *[b"X: " + b"x" * 300] * 99)
    _, _, request = await mesh.pair(head)
    assert len(request.all("X")) == 99


BROKEN_BODIES = {
    "no number": b"x\r\nabc\r\n",
    "a signed size": b"+3\r\nabc\r\n",
    "a prefixed size": b"0x3\r\nabc\r\n",
    "a space after the size": b"3 \r\nabc\r\n",
    "an empty size": b"\r\nabc\r\n",
    "an endless size": b"1" * 17 + b"\r\n",
    "an endless extension": b"3;" + b"x" * 300 + b"\r\nabc\r\n",
    "a control in the extension": b"3;a=\x01\r\nabc\r\n",
    "bare LF after the size": b"3\nabc\r\n",
    "bare CR in the extension": b"3;a\rb\r\nabc\r\n",
    "longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "bare LF after the data": b"3\r\nabc\n0\r\n\r\n",
    "a trailer that is no field": b"0\r\nnonsense\r\n\r\n",
    "a folded trailer": b"0\r\nX: 1\r\n y\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X: 1\r\n" * 2000,
}


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
async def test_a_broken_body_ends_both_connections(mesh: Mesh, body: bytes) -> None:
    """What came before is with the upstream already; it must never see the request as whole."""
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(_post(b"Transfer-Encoding: chunked", body=b"2\r\nok\r\n" + body + SMUGGLED))
    assert (await client.head()).start.startswith("HTTP/1.1 400")
    received = await server.rest()
    assert not received.endswith(b"0\r\n\r\n")
    assert b"smuggled" not in received


BROKEN_ANSWERS = {
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "an odd length": b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
    "an unknown encoding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "obs-fold": b"HTTP/1.1 200 OK\r\nX: 1\r\n y\r\nContent-Length: 0\r\n\r\n",
    "bare CR": b"HTTP/1.1 200 OK\r\nX: 1\ry\r\nContent-Length: 0\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: 1\x00\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nX : 1\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"-ERR unknown command\r\n\r\n",
    "another version": b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "an odd status": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "unasked 101": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "an endless head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000,
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 101 + b"\r\n",
}


@pytest.mark.parametrize("answer", BROKEN_ANSWERS.values(), ids=BROKEN_ANSWERS.keys())
async def test_an_answer_that_is_ambiguous_is_a_bad_gateway(mesh: Mesh, answer: bytes) -> None:
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair(_post(b"Content-Length: 0", body=b""))
    await server.send(answer)
    head, body = await client.answer()
    assert head.start == "HTTP/1.1 502 Bad Gateway"
    assert b"web.http: web-1 " in body
    await client.send(GET)  # the client's connection is fine, the upstream's is not used again
    await upstream.accept()
    assert mesh.count("upstream_failures", reason="protocol") == 1


@pytest.mark.parametrize("surplus", [b"x", OK], ids=["noise", "a whole answer"])
@pytest.mark.parametrize("late", [False, True])
async def test_bytes_after_an_answer_poison_nobody(mesh: Mesh, surplus: bytes, late: bool) -> None:
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1." + (b"" if late else surplus))
    assert (await client.answer())[1] == b"1."
    if late:
        await server.send(surplus)
    await server.closed()
    await client.send(GET)
    second = await upstream.accept()
    await second.head()
    await second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n2.")
    assert (await client.answer())[1] == b"2."
