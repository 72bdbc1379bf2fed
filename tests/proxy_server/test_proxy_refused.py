"""What is ambiguous is refused before anything of it reaches an upstream; answers are judged as strictly."""

from __future__ import annotations

import pytest

from tests.proxy_server.wire import GET, OK, Mesh, answering

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
    "a quoted encoding": (400, _post(b'Transfer-Encoding: "chunked"')),
    "an encoding and a tab": (400, _post(b"Transfer-Encoding: chunked\t")),
    "an encoding and NUL": (400, _post(b"Transfer-Encoding: chunked\x00")),
    "an encoding on the next line": (400, _post(b"Transfer-Encoding:", b" chunked")),
    "an encoding after a colon too many": (400, _post(b"Transfer-Encoding:: chunked")),
    "an encoding in a name with NUL": (400, _post(b"Transfer-Encoding\x00: chunked")),
    "an encoding after a vertical tab": (400, _post(b"X: 1", b"\x0bTransfer-Encoding: chunked")),
    "an encoding after a byte order mark": (400, _post(b"\xef\xbb\xbfTransfer-Encoding: chunked")),
    "an encoding behind a bare CR": (400, _post(b"X: 1\rTransfer-Encoding: chunked")),
    "an encoding behind CR CR LF": (400, _post(b"X: 1\r", b"Transfer-Encoding: chunked")),
    "a length and an empty length": (400, _post(b"Content-Length: 5", b"Content-Length:")),
    "a length and a comma": (400, _post(b"Content-Length: 5,")),
    "a length with a fraction": (400, _post(b"Content-Length: 5.0")),
    "a length with underscores": (400, _post(b"Content-Length: 5_0")),
    "a length in other digits": (400, _post("Content-Length: \u0665".encode())),
    "a length of 19 digits": (400, _post(b"Content-Length: 1" + b"0" * 18)),
    "an empty encoding": (400, _post(b"Transfer-Encoding:")),
    "chunked in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "space before the colon": (400, _post(b"Content-Length : 5")),
    "tab before the colon": (400, _post(b"Transfer-Encoding\t: chunked")),
    "no name": (400, _get(b"Host: web", b": x")),
    "a field without a colon": (400, _get(b"Host: web", b"nonsense")),
    "a name with a space": (400, _get(b"Host: web", b"X Y: 1")),
    "a name beyond ASCII": (400, _get(b"Host: web", b"X\xe9: 1")),
    "CR CR LF": (400, b"GET / HTTP/1.1\r\r\nHost: web\r\n\r\n"),
    "an empty line that ends with LF": (400, b"\n" + GET),
    "an empty line that is a CR": (400, b"\r" + GET),
    "an empty line that is CR CR LF": (400, b"\r\n\r\r\n" + GET),
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
    "a Host list": (400, _get(b"Host: a,b")),
    "an escaped Host": (400, _get(b"Host: %77eb")),
    "a Host with two ports": (400, _get(b"Host: web:1:2")),
    "a Host with a port of letters": (400, _get(b"Host: web:http")),
    "an unclosed IPv6 Host": (400, _get(b"Host: [::1")),
    "a Host beyond ASCII": (400, _get(b"Host: w\xc3\xa9b")),
    "Host folded away": (400, _get(b"X: 1", b" Host: web")),
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
    "NUL in the method": (400, b"G\x00T / HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a long method": (400, b"G" * 40 + b" / HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a target of another scheme": (400, b"GET ftp://web/ HTTP/1.1\r\nHost: web\r\n\r\n"),
    "a backslash in a target's host": (400, b"GET http://a\\b/ HTTP/1.1\r\nHost: web\r\n\r\n"),
    "DEL in the target": (400, b"GET /\x7f HTTP/1.1\r\nHost: web\r\n\r\n"),
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


@pytest.mark.parametrize("first", [b"\x16", b"\r\n\x16\x03", b"\r\r", b" "])
async def test_what_cannot_become_a_request_is_refused_before_it_is_whole(mesh: Mesh, first: bytes) -> None:
    await mesh.add("web-1")
    client = await mesh.dial()
    await client.send(first)
    assert (await client.head()).start.split()[1] == "400"


@pytest.mark.parametrize("first", [32767, 32768, 40_000])
async def test_32_kib_are_counted_alike_however_they_come(mesh: Mesh, first: int) -> None:
    await mesh.add("web-1", answering(b"ok"))
    for size, status in ((32 * 1024, "200"), (32 * 1024 + 1, "431")):
        head = b"GET / HTTP/1.1\r\nHost: web\r\nX: ".ljust(size - 4, b"x") + b"\r\n\r\n"
        client = await mesh.dial()
        await client.send(head[:first])
        await client.send(head[first:])
        assert (await client.head()).start.split()[1] == status


async def test_100_fields_and_32_kib_pass(mesh: Mesh) -> None:
    await mesh.add("web-1")
    head = _get(b"Host: web", *[b"X: " + b"x" * 300] * 99)
    _, _, request = await mesh.pair(head)
    assert len(request.all("X")) == 99


BROKEN_BODIES = {
    "a space before the size": b" 3\r\nabc\r\n",
    "a size with an underscore": b"1_0\r\nabc\r\n",
    "a size of 16 digits": b"0" * 15 + b"3\r\nabc\r\n",
    "a tab after the size": b"3\t\r\nabc\r\n",
    "a comma after the size": b"3,\r\nabc\r\n",
    "NUL after the size": b"3\x00\r\nabc\r\n",
    "bare LF in the extension": b"3;a\nb\r\nabc\r\n",
    "CR CR LF after the size": b"3\r\r\nabc\r\n",
    "shorter than its size": b"4\r\nabc\r\n0\r\n\r\n",
    "bare CR after the data": b"3\r\nabc\r0\r\n\r\n",
    "a trailer with a space before its colon": b"0\r\nX : 1\r\n\r\n",
    "a trailer with a bare CR": b"0\r\nX: 1\ry\r\n\r\n",
    "a trailer with NUL": b"0\r\nX: \x00\r\n\r\n",
    "bare LF after the last chunk": b"0\r\n\n",
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
    client, server, _ = await mesh.pair(_post(b"Transfer-Encoding: chunked", body=b"2\r\nok\r\n"))
    await client.send(body + SMUGGLED)
    assert (await client.head()).start.startswith("HTTP/1.1 400")
    received = await server.rest()
    assert not received.endswith(b"0\r\n\r\n")
    assert b"smuggled" not in received


async def test_a_body_that_is_broken_from_the_start_reaches_nobody(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client = await mesh.dial()
    await client.send(_post(b"Transfer-Encoding: chunked", body=b"2\r\nokay" + SMUGGLED))
    assert (await client.head()).start.startswith("HTTP/1.1 400")
    await (await mesh.upstream.accept()).closed()


BROKEN_ANSWERS = {
    "an empty line first": b"\r\n" + OK,
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a name in lower case": b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "two spaces before the status": b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "a status with a letter": b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
    "no space after the status": b"HTTP/1.1 200OK\r\nContent-Length: 0\r\n\r\n",
    "NUL in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "bare CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "bare LF after the status": b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    "bare LFs alone": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare LF between fields": b"HTTP/1.1 200 OK\r\nX: 1\nContent-Length: 0\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n: 1\r\nContent-Length: 0\r\n\r\n",
    "a field without a colon": b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 0\r\n\r\n",
    "the same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\nx",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx",
    "an empty length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "identity": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
    "an informational answer with a body": b"HTTP/1.1 103 Hints\r\nContent-Length: 5\r\n\r\nhello" + OK,
    "a first chunk that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n",
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


async def test_bytes_that_come_too_late_for_that_fail_no_other_request(mesh: Mesh) -> None:
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(OK)
    await client.answer()
    await client.send(GET)
    await server.head()
    await server.send(b"surplus" + OK)
    second = await upstream.accept()
    await second.head()
    await second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n2.")
    assert (await client.answer())[1] == b"2."
