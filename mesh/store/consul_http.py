"""One HTTP client for the store: two pools of connections, TLS, and every failure in words.

Its seat is that of py-consul's transport, because py-consul's own shares 100 connections among all calls,
has no timeout per kind of call, and leaves client certificates out. The token goes with every request;
`CONSUL_HTTP_TOKEN` was read with the other settings and overrides nothing here.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import consul.base
import msgspec
from yarl import URL

from mesh.settings import StoreSettings
from mesh.store import StoreDenied, StoreRejected, StoreUnavailable

ANSWER_TIMEOUT = 10.0
"""Seconds for one call. Consul itself holds a call for up to 7 s while it elects a leader."""
FIRST_PATIENCE = 3.0
"""Seconds until a call is made once more, in the same time. Consul may have passed it to a server that has just died:
it sends new questions elsewhere after 3 to 5 s, and leaves the old one where it is."""
WATCH_WAIT = 55.0
"""Seconds a blocking query waits; then it answers in full, which is the watch's full re-read."""
WATCH_TIMEOUT = WATCH_WAIT * 17 / 16 + 5.0
"""Consul adds up to a sixteenth to the wait."""
CONNECT_TIMEOUT = 3.0


_T = TypeVar("_T")


class _NoAnswer(StoreUnavailable):
    """Silence: whether it was done, nobody knows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status 200, 404 (no such key) or 409 (a transaction's condition failed)."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def index(self) -> int | None:
        """`X-Consul-Index`, at least 1, since a query with index 0 would not block."""
        text = self.headers.get("X-Consul-Index", "")
        return max(int(text), 1) if text.isdecimal() else None


class Transport(consul.base.HTTPClient):  # type: ignore[misc]
    """Sends one request and turns every failure into a `StoreError` that names the address and a remedy."""

    def __init__(self, settings: StoreSettings) -> None:
        self.base_uri = base_url(settings.address)
        self.contact = time.monotonic()
        """When the store (its leader, where a follower answered) was last heard of."""
        self._headers = {"X-Consul-Token": settings.token} if settings.token else {}
        tls = _tls(settings) if self.base_uri.startswith("https:") else True
        self._asking = _session(tls, connections=64)
        self._watching = _session(tls, connections=0)

    async def ask(
        self,
        method: str,
        path: str,
        params: Sequence[tuple[str, Any]] = (),
        data: bytes | str | None = None,
    ) -> Answer:
        """Made twice it does no harm: a condition that the first has made untrue is one that failed."""
        url = self.uri(path, list(params))
        with suppress(_NoAnswer):
            return await self._send(self._asking, FIRST_PATIENCE, method, url, data)
        return await self._send(self._asking, ANSWER_TIMEOUT - FIRST_PATIENCE, method, url, data)

    async def watch(self, path: str, params: Sequence[tuple[str, Any]]) -> Answer:
        return await self._send(self._watching, WATCH_TIMEOUT, "GET", self.uri(path, list(params)), None)

    def read(self, decode: Callable[[bytes], _T], answer: Answer) -> _T:
        """The answer's body, decoded."""
        try:
            return decode(answer.body)
        except msgspec.MsgspecError as error:
            raise self.no_consul(error) from error

    def no_consul(self, error: object) -> StoreUnavailable:
        return StoreUnavailable(
            f"what answers at {self.base_uri} is no Consul: {error}; is --store or CONSUL_HTTP_ADDR right?"
        )

    async def close(self) -> None:
        await self._asking.close()
        await self._watching.close()

    async def _send(
        self, session: aiohttp.ClientSession, timeout: float, method: str, url: str, data: bytes | str | None
    ) -> Answer:
        try:
            async with session.request(
                method,
                URL(url, encoded=True),
                data=data,
                headers=self._headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT),
            ) as response:
                answer = Answer(response.status, response.headers, await response.read())
        except aiohttp.ClientSSLError as error:
            raise StoreUnavailable(
                f"no trust between this client and the store at {self.base_uri}: {error}; "
                "check CONSUL_CACERT, CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY"
            ) from error
        except TimeoutError as error:
            raise _NoAnswer(f"the store at {self.base_uri} did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise StoreUnavailable(
                f"cannot reach the store at {self.base_uri}: {error}; "
                "is it running, and is --store or CONSUL_HTTP_ADDR right?"
            ) from error
        self._check(answer)
        return answer

    def denied(self, words: str) -> StoreDenied:
        return StoreDenied(f"the store at {self.base_uri} denies this: {words}; check CONSUL_HTTP_TOKEN and its policy")

    def _check(self, answer: Answer) -> None:
        status = answer.status
        words = answer.body[:500].decode(errors="replace").strip()
        if status == 403 or (status >= 500 and "Permission denied" in words):
            raise self.denied(words)
        if status == 429 or (status >= 500 and not _is_our_fault(words)):
            raise StoreUnavailable(f"the store at {self.base_uri} cannot answer now ({status}): {words}")
        if status not in (200, 404, 409):
            raise StoreRejected(f"the store at {self.base_uri} refuses the request ({status}): {words}")
        lag = answer.headers.get("X-Consul-LastContact", "")
        behind = int(lag) / 1000 if lag.isdecimal() else 0.0
        self.contact = max(self.contact, time.monotonic() - behind)

    # ── what py-consul calls ─────────────────────────────────────────────────────────────────

    async def _request(self, callback: Callable[[Any], Any], method: str, path: str, params: Any, data: Any) -> Any:
        answer = await self.ask(method, path, params or (), data)
        try:
            return callback(consul.base.Response(answer.status, answer.headers, answer.body.decode()))
        except consul.NotFound:
            raise
        except (consul.ConsulException, UnicodeDecodeError) as error:
            raise self.no_consul(error) from error

    def get(self, callback: Any, path: str, params: Any = None, headers: Any = None, raw: bool = False) -> Any:
        return self._request(callback, "GET", path, params, None)

    def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return self._request(callback, "PUT", path, params, data)

    def delete(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return self._request(callback, "DELETE", path, params, None)

    def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return self._request(callback, "POST", path, params, data)


def base_url(address: str) -> str:
    """`host:port` or a URL → `scheme://host:port`."""
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StoreRejected(f"CONSUL_HTTP_ADDR must be host:port, http://… or https://…, got {address!r}")
    return f"{parts.scheme}://{parts.netloc}"


def _tls(settings: StoreSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise StoreRejected(
            f"cannot load the certificates for {settings.address}: {error}; "
            "check CONSUL_CACERT, CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY"
        ) from error
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _session(tls: ssl.SSLContext | bool, *, connections: int) -> aiohttp.ClientSession:
    """`connections`: at most so many at once; 0 for any number."""
    connector = aiohttp.TCPConnector(limit=connections, ssl=tls, keepalive_timeout=60, socket_factory=_keepalive_socket)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def _keepalive_socket(address: Any) -> socket.socket:
    """The kernel finds out within 15 s that the other end is gone, also where a cable was cut."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 2)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


def _is_our_fault(words: str) -> bool:
    """Consul answers 500 also to wrong requests; these will not get better."""
    return any(sign in words for sign in ("invalid session", "session lookup", "Invalid Session", "Invalid Behavior"))
