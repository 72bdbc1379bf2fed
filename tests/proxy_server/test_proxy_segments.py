"""However the network cuts a message, the other side gets the same one; and no bytes at all break us."""

from __future__ import annotations

import re
from itertools import pairwise

import httptools
from hypothesis import given
from hypothesis import strategies as st

from mesh.proxy.body import ChunkedBody, Malformed
from mesh.proxy.headers import REASONS
from mesh.proxy.http1 import Refused, parse_request, parse_response
from tests.proxy_server.memory import MemoryProxy, Reader

TOKEN = st.text("abcdefgXYZ-_0123456789", min_size=1, max_size=12).map(str.encode)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=20).map(
    lambda text: text.encode("latin-1").strip()
)
FIELDS = st.lists(st.tuples(TOKEN.map(lambda name: b"X-" + name), VALUE), max_size=6)
PAYLOADS = st.lists(st.binary(min_size=1, max_size=40), max_size=5)
SEGMENTS = st.lists(st.integers(0, 400), max_size=12)

KNOWN_IDS = [(b"X-Request-Id", b"1")]  # so that none is made
SPAN = re.compile(rb"traceparent: [0-9a-f-]+\r\n")


def _lines(fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields)


def _message(start: bytes, fields: list[tuple[bytes, bytes]], framing: str, payloads: list[bytes]) -> bytes:
    if framing == "none":
        return start + _lines(fields) + b"\r\n"
    if framing == "length":
        body = b"".join(payloads)
        return start + _lines([*fields, (b"Content-Length", b"%d" % len(body))]) + b"\r\n" + body
    chunks = b"".join(b"%X;x=y\r\n%b\r\n" % (len(each), each) for each in payloads)
    return start + _lines([*fields, (b"Transfer-Encoding", b"chunked")]) + b"\r\n" + chunks + b"0\r\nX-T: 1\r\n\r\n"


def _cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted({min(place, len(data)) for place in at}), len(data)]
    return [data[start:end] for start, end in pairwise(places) if end > start]


STARTS = st.sampled_from([b"POST /p HTTP/1.1\r\n", b"\r\nPUT http://other/x?y HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n"])
REQUESTS = st.builds(
    lambda start, fields, framing, payloads: _message(
        start, [(b"Host", b"web"), *KNOWN_IDS, *fields], framing, payloads
    ),
    STARTS, FIELDS, st.sampled_from(["none", "length", "chunked"]), PAYLOADS,
)  # fmt: skip
HINTS = st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
ANSWERS = st.builds(
    lambda hints, fields, framing, payloads: _message(hints + b"HTTP/1.1 200 Fine\r\n", fields, framing, payloads),
    HINTS, FIELDS, st.sampled_from(["length", "chunked"]), PAYLOADS,
)  # fmt: skip


@given(requests=st.lists(REQUESTS, min_size=1, max_size=3), answer=ANSWERS, cuts=SEGMENTS, answer_cuts=SEGMENTS)
async def test_any_split_gives_the_same_messages(
    requests: list[bytes], answer: bytes, cuts: list[int], answer_cuts: list[int]
) -> None:
    """Pipelined requests and their answers, cut anywhere, arrive as if they had come in one piece each."""
    whole, cut = MemoryProxy(), MemoryProxy()
    stream = b"".join(requests)
    for segment in _cut(stream, [place * len(stream) // 400 for place in cuts]):
        cut.client.data_received(segment)
    whole.client.data_received(stream)
    for _ in requests:
        whole.context.connections[-1].data_received(answer)
        for segment in _cut(answer, answer_cuts):
            cut.context.connections[-1].data_received(segment)
    got = Reader(httptools.HttpRequestParser).feed(SPAN.sub(b"", cut.forwarded)).essence()
    assert got == Reader(httptools.HttpRequestParser).feed(SPAN.sub(b"", whole.forwarded)).essence()
    assert got[3] == len(requests)
    back = Reader(httptools.HttpResponseParser).feed(cut.answer).essence()
    assert back == Reader(httptools.HttpResponseParser).feed(whole.answer).essence()
    assert back[3] == len(requests)
    assert len(cut.context.connections) == 1, "the upstream connection is reused"
    original = Reader(httptools.HttpRequestParser).feed(stream)
    assert got[2] == original.body
    for proxy in (whole, cut):
        proxy.context.wheel.close()


@given(fields=FIELDS, payloads=PAYLOADS, cuts=SEGMENTS)
async def test_any_split_of_an_answer_that_its_end_ends_gives_the_same_one(
    fields: list[tuple[bytes, bytes]], payloads: list[bytes], cuts: list[int]
) -> None:
    proxy = MemoryProxy()
    proxy.client.data_received(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
    (connection,) = proxy.context.connections
    for segment in _cut(b"HTTP/1.1 200 Fine\r\n" + _lines(fields) + b"\r\n" + b"".join(payloads), cuts):
        connection.data_received(segment)
    connection.eof_received()
    answer = Reader(httptools.HttpResponseParser).feed(proxy.answer)
    sent = [(name.lower(), value) for name, value in fields]
    assert answer.essence() == (b"Fine", [*sent, (b"transfer-encoding", b"chunked")], b"".join(payloads), 1)
    proxy.context.wheel.close()


PIECES = st.sampled_from([
    b"GET / HTTP/1.1\r\n", b"POST http://a/b HTTP/1.1\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 101 X\r\n", b"HTTP/1.1 100 X\r\n\r\n", b"HTTP/1.0 204 X\r\n", b"Host: web\r\n", b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"abc", b"\r\n", b"\n", b"\r", b" ", b"\x00", b":",
])  # fmt: skip
NOISE = st.lists(PIECES | st.binary(max_size=8), max_size=15)


@given(request=NOISE, answer=NOISE)
async def test_noise_on_either_side_breaks_nothing(request: list[bytes], answer: list[bytes]) -> None:
    """And whatever reaches the endpoint is HTTP as llhttp reads it."""
    proxy = MemoryProxy()
    for segment in request:
        if not proxy.client.transport.is_closing():
            proxy.client.data_received(segment)
    for connection in proxy.context.connections:
        try:
            Reader(httptools.HttpRequestParser).feed(connection.transport.written)  # type: ignore[attr-defined]
        except httptools.HttpParserUpgrade:
            pass
        for segment in answer:
            if not connection.closed:
                connection.data_received(segment)
        if not connection.closed:
            connection.connection_lost(None)
    if not proxy.client.transport.is_closing():
        proxy.client.connection_lost(None)
    proxy.context.wheel.close()


@given(NOISE.map(b"".join), st.sampled_from([b"GET", b"HEAD"]))
def test_heads_are_read_or_refused(head: bytes, method: bytes) -> None:
    try:
        parse_request(head + b"\r\n\r\n")
    except Refused as refused:
        status = refused.status
    else:
        status = 400
    assert status in REASONS
    try:
        parse_response(head + b"\r\n\r\n", method)
    except Malformed:
        pass


CHUNK_PIECES = st.sampled_from(
    [b"3\r\nabc\r\n", b"0\r\n", b"\r\n", b"1", b"a", b";x", b"X: 1\r\n", b"\n", b"\r", b" ", b"0"]
)


@given(st.lists(CHUNK_PIECES, max_size=12).map(b"".join), SEGMENTS)
def test_what_we_take_for_chunks_llhttp_takes_for_the_same(data: bytes, cuts: list[int]) -> None:
    """Two readers, one reading; ours may only be the stricter one."""
    body, payload, rest = ChunkedBody(), b"", b""
    try:
        for segment in _cut(data, cuts):
            if body.done:
                rest += segment
            else:
                piece, rest = body.feed(segment)
                payload += piece
    except Malformed:
        return
    if not body.done:
        return
    reader = Reader(httptools.HttpRequestParser).feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    consumed = len(data) - len(rest)
    for index in range(consumed):
        assert reader.complete == 0
        reader.feed(data[index : index + 1])
    assert reader.complete == 1
    assert reader.body == payload
