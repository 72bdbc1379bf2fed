"""The heads that we send: rebuilt from what was read, field by field, never patched."""

from __future__ import annotations

from random import getrandbits

from mesh.proxy.http1 import FORWARDED, Request, Response

_VIA = b"Via: 1.1 mesh\r\n"

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

REASONS = {
    400: "Bad Request", 405: "Method Not Allowed", 408: "Request Timeout", 417: "Expectation Failed",
    404: "Not Found", 431: "Request Header Fields Too Large", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip


def request_head(request: Request, client: bytes, service: bytes, *, trusted: bool) -> bytes:
    """The head for the upstream.

    Args:
        client: the peer's address.
        service: stands in for a Host that an HTTP/1.0 client did not send.
        trusted: the peer's own forwarding fields are kept and added to; else they are replaced.
    """
    host = request.host or service
    parts = [request.method, b" ", request.target, b" HTTP/1.1\r\nHost: ", host, b"\r\n"]
    for name, value in request.fields:
        parts += (name, b": ", value, b"\r\n")
    if trusted and request.forwarded:
        _append_forwarded(parts, request, client, host)
    else:
        parts += (b"X-Forwarded-For: ", client, b"\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: ", host, b"\r\n")
    parts += (b"X-Request-Id: ", request.request_id or b"%032x" % getrandbits(128), b"\r\n", _VIA)
    if request.chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    elif request.length or request.method in _WITH_BODY:
        parts.append(b"Content-Length: %d\r\n" % request.length)
    if request.expect:
        parts.append(b"Expect: 100-continue\r\n")
    if request.upgrade:
        parts += (b"Connection: Upgrade\r\nUpgrade: ", request.upgrade, b"\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})
"""Methods for which no body is announced as `Content-Length: 0` (RFC 9110, 8.6)."""


def _append_forwarded(parts: list[bytes], request: Request, client: bytes, host: bytes) -> None:
    sent = request.forwarded
    chain = b", ".join([*sent.get(b"x-forwarded-for", ()), client])
    proto = sent.get(b"x-forwarded-proto", [b"http"])[0]
    first_host = sent.get(b"x-forwarded-host", [host])[0]
    parts += (b"X-Forwarded-For: ", chain, b"\r\nX-Forwarded-Proto: ", proto)
    parts += (b"\r\nX-Forwarded-Host: ", first_host, b"\r\n")
    for name in (FORWARDED & sent.keys()) - {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}:
        for value in sent[name]:
            parts += (name, b": ", value, b"\r\n")


def response_head(response: Response, *, chunked: bool, keep_alive: bool, version: int) -> bytes:
    """The head for the client.

    Args:
        chunked: the body is sent in chunks (never to HTTP/1.0).
        keep_alive: the connection stays open after it.
        version: minor version of the client's HTTP.
    """
    parts = [b"HTTP/1.1 %d " % response.status, response.reason, b"\r\n"]
    for name, value in response.fields:
        parts += (name, b": ", value, b"\r\n")
    if chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    elif response.length is not None and response.status >= 200 and response.status != 204:
        parts.append(b"Content-Length: %d\r\n" % response.length)
    if response.status == 101:
        parts += (b"Connection: Upgrade\r\nUpgrade: ", response.upgrade, b"\r\n")
    elif not keep_alive:
        parts.append(b"Connection: close\r\n")
    elif version == 0:
        parts.append(b"Connection: keep-alive\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


def error_response(status: int, text: str, *, head_only: bool, keep_alive: bool) -> bytes:
    """A whole answer of our own: one line of plain text that says what happened and to which service."""
    body = text.encode("utf-8", "replace") + b"\n"
    connection = b"" if keep_alive else b"Connection: close\r\n"
    head = b"HTTP/1.1 %d %b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n%b\r\n" % (
        status, REASONS[status].encode(), len(body), connection,
    )  # fmt: skip
    return head if head_only else head + body
