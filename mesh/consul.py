"""The store over HTTP: a real Consul, or the embedded store, which speaks the same.

Base is py-consul's client: it words the calls on one key and one session (`kv.get`, `kv.put`,
`kv.delete`, `session.info`, `session.renew`, `session.destroy`, `status.leader`, `agent.self`).
Its transport is ours (`_Transport`), and these calls go to aiohttp directly:

- listings and watches: py-consul drops the headers that tell how stale an answer is, and every listing
  would pass through dicts; they have their own connections too, so that no write waits behind watches;
- transactions: `txn.put` sends no ACL token, and a lost condition is an exception with JSON in its text;
- creating sessions: py-consul refuses a TTL below 10 s even where the servers allow it.

Our transport, because py-consul's own lets `CONSUL_HTTP_TOKEN` override the given token, shares 100
connections among all calls, has no timeout per kind of call, and leaves client certificates out.
"""

from __future__ import annotations

import base64
import json
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import consul.base
import msgspec
from yarl import URL

from mesh.aio import Backoff
from mesh.settings import StoreSettings
from mesh.store import (
    MAX_TXN_OPS,
    Change,
    Entry,
    Listing,
    Op,
    StoreDenied,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    TxnResult,
    key_fault,
)
from mesh.units import format_duration

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 10.0
"""Seconds for one call. Consul itself holds a call for up to 7 s while it elects a leader."""
WATCH_WAIT = 55.0
"""Seconds a blocking query waits; then it answers in full, which is the watch's full re-read."""
WATCH_TIMEOUT = WATCH_WAIT * 17 / 16 + 5.0
"""Consul adds up to a sixteenth to the wait."""
CONNECT_TIMEOUT = 3.0
FIRST_RETRY, LONGEST_RETRY = 0.05, 5.0


class _Row(msgspec.Struct, rename="pascal"):
    """A key as Consul prints it; msgspec reads base64 into bytes."""

    key: str
    value: bytes | None
    modify_index: int
    create_index: int
    session: str | None = None

    def entry(self) -> Entry:
        return Entry(self.key, self.value or b"", self.modify_index, self.create_index, self.session or None)


class _TxnRow(msgspec.Struct):
    kv: _Row = msgspec.field(name="KV")


class _TxnError(msgspec.Struct, rename="pascal"):
    op_index: int
    what: str


class _TxnAnswer(msgspec.Struct, rename="pascal"):
    results: list[_TxnRow] | None = None
    errors: list[_TxnError] | None = None


_decode_rows = msgspec.json.Decoder(list[_Row]).decode
_decode_txn = msgspec.json.Decoder(_TxnAnswer).decode


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def index(self) -> int:
        """`X-Consul-Index`; 1 where it is missing or zero, since a query with index 0 would not block."""
        text = self.headers.get("X-Consul-Index", "")
        return max(int(text), 1) if text.isdecimal() else 1


class _Transport(consul.base.HTTPClient):  # type: ignore[misc]
    """Sends one request and turns every failure into a `StoreError` that names the address and a remedy."""

    def __init__(self, settings: StoreSettings) -> None:
        self.base_uri = base_url(settings.address)
        self.contact = time.monotonic()
        self._headers = {"X-Consul-Token": settings.token} if settings.token else {}
        tls = _tls(settings) if self.base_uri.startswith("https:") else True
        self._asking = _session(tls, connections=64)
        self._watching = _session(tls, connections=0)

    async def ask(
        self, method: str, path: str, params: Sequence[tuple[str, Any]] = (), data: bytes | str | None = None
    ) -> _Answer:
        return await self._send(self._asking, ANSWER_TIMEOUT, method, self.uri(path, list(params)), data)

    async def watch(self, path: str, params: Sequence[tuple[str, Any]]) -> _Answer:
        return await self._send(self._watching, WATCH_TIMEOUT, "GET", self.uri(path, list(params)), None)

    async def close(self) -> None:
        await self._asking.close()
        await self._watching.close()

    async def _send(
        self, session: aiohttp.ClientSession, timeout: float, method: str, url: str, data: bytes | str | None
    ) -> _Answer:
        try:
            async with session.request(
                method,
                URL(url, encoded=True),
                data=data,
                headers=self._headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT),
            ) as response:
                answer = _Answer(response.status, response.headers, await response.read())
        except aiohttp.ClientSSLError as error:
            raise StoreUnavailable(
                f"no trust between this client and the store at {self.base_uri}: {error}; "
                "check CONSUL_CACERT, CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY"
            ) from error
        except TimeoutError as error:
            raise StoreUnavailable(f"the store at {self.base_uri} did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise StoreUnavailable(
                f"cannot reach the store at {self.base_uri}: {error}; is it running, and is CONSUL_HTTP_ADDR right?"
            ) from error
        self._check(answer)
        return answer

    def _check(self, answer: _Answer) -> None:
        status = answer.status
        words = answer.body[:500].decode(errors="replace").strip()
        if status == 403 or (status >= 500 and "Permission denied" in words):
            raise StoreDenied(
                f"the store at {self.base_uri} denies this: {words}; check CONSUL_HTTP_TOKEN and its policy"
            )
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
            raise StoreUnavailable(f"what answers at {self.base_uri} is no Consul: {error}") from error

    def get(self, callback: Any, path: str, params: Any = None, headers: Any = None, raw: bool = False) -> Any:
        return self._request(callback, "GET", path, params, None)

    def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return self._request(callback, "PUT", path, params, data)

    def delete(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return self._request(callback, "DELETE", path, params, None)

    def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return self._request(callback, "POST", path, params, data)


class _Client(consul.base.Consul):  # type: ignore[misc]
    """py-consul's calls over our transport."""

    def __init__(self, transport: _Transport) -> None:
        self._transport = transport
        super().__init__(host="unused")

    def http_connect(self, *_: Any, **__: Any) -> _Transport:
        return self._transport


class ConsulStore:
    """`mesh.store.Store` over HTTP. To be made inside a running loop."""

    def __init__(self, settings: StoreSettings) -> None:
        self._http = _Transport(settings)
        self._consul = _Client(self._http)

    @property
    def address(self) -> str:
        return self._http.base_uri

    @property
    def contact_age(self) -> float:
        return time.monotonic() - self._http.contact

    async def close(self) -> None:
        await self._http.close()

    # ── keys ─────────────────────────────────────────────────────────────────────────────────

    async def get(self, key: str, *, stale: bool = False) -> Entry | None:
        _, row = await self._consul.kv.get(_checked(key), consistency="stale" if stale else None)
        if row is None:
            return None
        return Entry(key, row["Value"] or b"", row["ModifyIndex"], row["CreateIndex"], row.get("Session") or None)

    async def list(self, prefix: str, *, stale: bool = False) -> Listing:
        answer = await self._http.ask("GET", f"/v1/kv/{prefix}", _listing(stale))
        return Listing(answer.index, _entries(answer))

    async def put(self, key: str, value: bytes, *, cas: int | None = None) -> bool:
        return bool(await self._consul.kv.put(_checked(key), value, cas=cas))

    async def delete(self, key: str, *, cas: int | None = None) -> bool:
        return bool(await self._consul.kv.delete(_checked(key), cas=cas))

    async def delete_prefix(self, prefix: str) -> None:
        await self._consul.kv.delete(_checked(prefix), recurse=True)

    async def txn(self, ops: Sequence[Op]) -> TxnResult:
        if len(ops) > MAX_TXN_OPS:
            raise StoreRejected(f"a transaction may have {MAX_TXN_OPS} steps, got {len(ops)}")
        body = json.dumps([{"KV": _kv_op(op)} for op in ops])
        answer = await self._http.ask("PUT", "/v1/txn", data=body)
        outcome = _decode_txn(answer.body)
        if outcome.errors:
            if any("Permission denied" in error.what for error in outcome.errors):
                raise StoreDenied(
                    f"the store at {self.address} denies this: {outcome.errors[0].what}; "
                    "check CONSUL_HTTP_TOKEN and its policy"
                )
            return TxnResult(
                False,
                failed=[error.op_index for error in outcome.errors],
                errors=[error.what for error in outcome.errors],
            )
        return TxnResult(True, _written(ops, [row.kv for row in outcome.results or []]))

    # ── watching ─────────────────────────────────────────────────────────────────────────────

    async def watch(self, prefix: str) -> AsyncIterator[Change]:
        known: Mapping[str, Entry] | None = None
        async for answer in self._answers(f"/v1/kv/{prefix}"):
            entries = _entries(answer)
            if known is None:
                changed = frozenset(entries)
            elif not (changed := _differing(known, entries)):
                continue
            known = entries
            yield Change(answer.index, entries, changed)

    async def _answers(self, path: str) -> AsyncIterator[_Answer]:
        """What blocking queries return, one after the other, whatever happens to the store."""
        backoff = Backoff(FIRST_RETRY, LONGEST_RETRY)
        away = False
        seen = 0  # the newest index
        wait_beyond = 0  # 0: answer at once
        while True:
            params = _listing(stale=True)
            if wait_beyond:
                params += [("index", wait_beyond), ("wait", format_duration(WATCH_WAIT))]
            try:
                answer = await self._http.watch(path, params)
                if answer.index < seen:  # a server that lags, or a restored snapshot: the leader knows
                    answer = await self._http.watch(path, _listing(stale=False))
            except StoreError as error:
                if not away:
                    log.warning("watch interrupted path=%s: %s", path, error)
                away = True
                wait_beyond = 0
                await backoff.sleep()
                continue
            if away:
                log.info("watch goes on path=%s index=%d", path, answer.index)
            away = False
            backoff.reset()
            wait_beyond = seen = answer.index
            yield answer

    # ── sessions and locks ───────────────────────────────────────────────────────────────────

    async def create_session(
        self,
        name: str,
        ttl: float,
        *,
        behavior: Literal["release", "delete"] = "release",
        lock_delay: float = 0.0,
    ) -> str:
        wanted = {
            "Name": name,
            "TTL": format_duration(ttl),
            "Behavior": behavior,
            "LockDelay": format_duration(lock_delay),
            # No node checks: the TTL alone ends it, so that it outlives a restart of the local Consul agent.
            "Checks": [],
        }
        answer = await self._http.ask("PUT", "/v1/session/create", data=json.dumps(wanted))
        return str(json.loads(answer.body)["ID"])

    async def renew_session(self, session: str) -> bool:
        try:
            await self._consul.session.renew(session)
        except consul.NotFound:
            return False
        return True

    async def destroy_session(self, session: str) -> None:
        await self._consul.session.destroy(session)

    async def session_name(self, session: str) -> str | None:
        _, found = await self._consul.session.info(session)
        return str(found["Name"]) if found else None

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        return bool(await self._consul.kv.put(_checked(key), value, acquire=session))

    async def release(self, key: str, session: str) -> bool:
        entry = await self.get(key)
        if entry is None or entry.session != session:
            return False
        # A release writes a value too: the present one.
        return bool(await self._consul.kv.put(key, entry.value, release=session))


# ── requests and answers ─────────────────────────────────────────────────────────────────────


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


def _checked(key: str) -> str:
    if fault := key_fault(key):
        raise StoreRejected(fault)
    return key


def _is_our_fault(words: str) -> bool:
    """Consul answers 500 also to wrong requests; these will not get better."""
    return any(sign in words for sign in ("invalid session", "session lookup", "Invalid Session", "Invalid Behavior"))


def _listing(stale: bool) -> list[tuple[str, Any]]:
    return [("recurse", ""), ("stale", "")] if stale else [("recurse", "")]


def _entries(answer: _Answer) -> dict[str, Entry]:
    rows = _decode_rows(answer.body) if answer.status == 200 else []
    return {row.key: row.entry() for row in rows}


def _differing(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> frozenset[str]:
    """The keys that were written, removed, locked or unlocked: not by index alone, which a restore may repeat."""
    return frozenset(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _kv_op(op: Op) -> dict[str, Any]:
    wanted: dict[str, Any] = {"Verb": op.verb, "Key": _checked(op.key)}
    if op.verb in _WRITES:
        wanted["Value"] = base64.b64encode(op.value).decode()
    if op.verb in ("cas", "delete-cas", "check-index"):
        wanted["Index"] = op.index
    if op.session is not None:
        wanted["Session"] = op.session
    return wanted


_WRITES = frozenset({"set", "cas", "lock", "unlock"})
_DELETES = frozenset({"delete", "delete-cas"})


def _written(ops: Sequence[Op], rows: Sequence[_Row]) -> list[Entry]:
    """The entries that the steps wrote, with their values. Consul answers one row per step that is no deletion."""
    answered = zip((op for op in ops if op.verb not in _DELETES), rows, strict=True)
    return [
        Entry(row.key, op.value, row.modify_index, row.create_index, row.session or None)
        for op, row in answered
        if op.verb in _WRITES
    ]
