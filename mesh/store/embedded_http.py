"""The embedded store's HTTP: Consul's paths, parameters, headers and words (checked against Consul 1.8.7)."""

from __future__ import annotations

import ipaddress
import socket
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from aiohttp import web

from mesh import __version__
from mesh.store import MAX_TXN_OPS, MAX_VALUE, StoreError, key_fault
from mesh.store.embedded_state import Draft, Refused, Row, Session, UnknownSession
from mesh.store.embedded_txn import KvRow, TxnFailed, decode_txn, run_txn
from mesh.units import format_duration, parse_duration

if TYPE_CHECKING:
    from mesh.store.embedded import EmbeddedStore

MAX_WAIT = 600.0
"""Seconds a blocking query may last."""
DEFAULT_WAIT = 300.0
MAX_TTL = 86400.0
MAX_LOCK_DELAY = 60.0
DEFAULT_LOCK_DELAY = 15.0


class _SessionRequest(msgspec.Struct, rename="pascal"):
    name: str = ""
    ttl: str = msgspec.field(default="", name="TTL")
    behavior: str = ""
    lock_delay: str | float | None = None


class Busy(StoreError):
    """More is waiting than the store keeps: try again."""


_decode_session = msgspec.json.Decoder(_SessionRequest).decode
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ConsulApi:
    """The routes, over one store."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._node = socket.gethostname()

    def application(self, *, loopback: bool) -> web.Application:
        """`loopback`: only this machine can ask."""
        # One byte more than a value may have: larger bodies are refused below in Consul's words.
        application = web.Application(client_max_size=MAX_VALUE + 1)
        application.middlewares.append(_word_failures)
        if loopback:
            application.middlewares.append(_refuse_names)
        application.add_routes(
            [
                web.get("/v1/kv/{key:.*}", self._get),
                web.put("/v1/kv/{key:.*}", self._put),
                web.delete("/v1/kv/{key:.*}", self._delete),
                web.put("/v1/txn", self._txn),
                web.put("/v1/session/create", self._create_session),
                web.put("/v1/session/renew/{id}", self._renew_session),
                web.put("/v1/session/destroy/{id}", self._destroy_session),
                web.get("/v1/session/info/{id}", self._session_info),
                web.get("/v1/session/list", self._sessions),
                web.get("/v1/session/node/{node}", self._sessions),
                web.get("/v1/status/leader", self._leader),
                web.get("/v1/status/peers", self._peers),
                web.get("/v1/agent/self", self._self),
            ]
        )
        return application

    # ── keys ─────────────────────────────────────────────────────────────────────────────────

    async def _get(self, request: web.Request) -> web.Response:
        query = request.query
        recurse = "recurse" in query or "keys" in query
        key = _key(request, prefix=recurse)
        if "stale" in query and "consistent" in query:
            raise _bad("Cannot specify ?stale with ?consistent, conflicting semantics.")
        if index := _number(query.get("index"), "index"):
            await self._store.wait_for(key, recurse, index, _wait(query.get("wait")))
        state = self._store.state
        rows = state.scan(key) if recurse else [row for row in [state.get(key)] if row]
        headers = _headers(state.prefix_index(key) if recurse else state.key_index(key))
        if not rows:
            return web.Response(status=404, headers=headers)
        if "keys" in query:
            return _json(_names(rows, key, query.get("separator", "")), headers)
        if "raw" in query and not recurse:
            headers["X-Content-Type-Options"] = "nosniff"
            return web.Response(body=rows[0].value, content_type="text/plain", headers=headers)
        return _json([KvRow.of(row) for row in rows], headers)

    async def _put(self, request: web.Request) -> web.Response:
        query = request.query
        key = _key(request)
        conditions = [name for name in ("acquire", "cas", "release") if name in query]
        if len(conditions) > 1:
            raise _bad("Conflicting flags: " + "&".join(f"{name}={query[name]}" for name in conditions))
        value = await _body(request)
        flags = _number(query.get("flags"), "flags")
        if "cas" in query:
            index = _number(query["cas"], "cas")
            return await self._apply(lambda draft: draft.put_if(key, value, flags, index))
        if "acquire" in query:
            return await self._apply(lambda draft: draft.lock(key, value, flags, query["acquire"]))
        if "release" in query:
            return await self._apply(lambda draft: draft.unlock(key, value, flags, query["release"]))
        return await self._apply(lambda draft: draft.put(key, value, flags))

    async def _delete(self, request: web.Request) -> web.Response:
        query = request.query
        key = _key(request, prefix="recurse" in query)
        if "recurse" in query:
            return await self._apply(lambda draft: draft.delete_prefix(key))
        if "cas" in query:
            index = _number(query["cas"], "cas")
            return await self._apply(lambda draft: draft.delete_if(key, index))
        return await self._apply(lambda draft: draft.delete(key))

    async def _apply(self, change: Callable[[Draft], object]) -> web.Response:
        """True, or false where the condition does not hold."""
        try:
            await self._store.write(change)
        except UnknownSession as error:
            raise web.HTTPInternalServerError(text=str(error)) from error
        except Refused:
            return _json(False)
        return _json(True)

    # ── transactions ─────────────────────────────────────────────────────────────────────────

    async def _txn(self, request: web.Request) -> web.Response:
        try:
            ops = decode_txn(await _body(request))
        except msgspec.MsgspecError as error:
            raise _bad(f"Failed to parse body: {error}") from error
        if len(ops) > MAX_TXN_OPS:
            raise web.HTTPRequestEntityTooLarge(
                MAX_TXN_OPS, len(ops), text=f"Transaction contains too many operations ({len(ops)} > {MAX_TXN_OPS})"
            )
        try:
            results = await self._store.write(lambda draft: run_txn(draft, [op.kv for op in ops if op.kv]))
        except TxnFailed as failed:
            return _json({"Results": None, "Errors": failed.errors}, status=409)
        return _json({"Results": [{"KV": row} for row in results], "Errors": None})

    # ── sessions ─────────────────────────────────────────────────────────────────────────────

    async def _create_session(self, request: web.Request) -> web.Response:
        try:
            wanted = _decode_session(await _body(request) or b"{}")
            session = _session(wanted)
        except (msgspec.MsgspecError, ValueError) as error:
            raise _bad(f"Request decode failed: {error}") from error
        await self._store.write(lambda draft: draft.create_session(session))
        return _json({"ID": session.id})

    async def _renew_session(self, request: web.Request) -> web.Response:
        id_ = request.match_info["id"]
        session = self._store.state.session(id_)
        if session is None:
            raise web.HTTPNotFound(text=f"Session id '{id_}' not found")
        self._store.touch(id_)
        return _json([self._printed(session)])

    async def _destroy_session(self, request: web.Request) -> web.Response:
        id_ = request.match_info["id"]
        await self._store.write(lambda draft: draft.destroy_session(id_))
        return _json(True)

    async def _session_info(self, request: web.Request) -> web.Response:
        session = self._store.state.session(request.match_info["id"])
        return _json([self._printed(session)] if session else [], _headers(self._store.state.index))

    async def _sessions(self, request: web.Request) -> web.Response:
        here = request.match_info.get("node", self._node) == self._node
        sessions = self._store.state.sessions.values() if here else ()
        return _json([self._printed(session) for session in sessions], _headers(self._store.state.index))

    def _printed(self, session: Session) -> dict[str, Any]:
        return {
            "ID": session.id,
            "Name": session.name,
            "Node": self._node,
            "LockDelay": round(session.lock_delay * 1e9),
            "Behavior": session.behavior,
            "TTL": format_duration(session.ttl) if session.ttl else "",
            "NodeChecks": [],
            "ServiceChecks": None,
            "CreateIndex": session.index,
            "ModifyIndex": session.index,
        }

    # ── about itself ─────────────────────────────────────────────────────────────────────────

    async def _leader(self, _: web.Request) -> web.Response:
        return _json(self._store.address.removeprefix("http://"))

    async def _peers(self, _: web.Request) -> web.Response:
        return _json([self._store.address.removeprefix("http://")])

    async def _self(self, _: web.Request) -> web.Response:
        config = {"Datacenter": "dc1", "NodeName": self._node, "Server": True, "Version": f"mesh-{__version__}"}
        return _json({"Config": config, "DebugConfig": {"SessionTTLMin": "0s", "KVMaxValueSize": MAX_VALUE}})


# ── reading requests ─────────────────────────────────────────────────────────────────────────


def split_listen(listen: str) -> tuple[str, int]:
    """`127.0.0.1:8500` or `[::1]:8500` → host and port."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise StoreError(f"the store cannot listen on {listen!r}: must be an address such as 127.0.0.1:8500")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _key(request: web.Request, prefix: bool = False) -> str:
    raw = request.raw_path.partition("?")[0].removeprefix("/v1/kv/")
    try:
        key = unquote(raw, errors="strict")
    except UnicodeDecodeError as error:
        raise _bad(f"the key {raw!r} is not UTF-8") from error
    if fault := None if prefix and not key else key_fault(key):
        raise _bad(fault if key else "Missing key name")
    return key


def _number(text: str | None, name: str) -> int:
    if not text:
        return 0
    if not text.isdecimal() or int(text) >= 2**64:
        raise _bad(f"Invalid {name}")
    return int(text)


def _wait(text: str | None) -> float:
    try:
        return min(parse_duration(text) or DEFAULT_WAIT, MAX_WAIT) if text else DEFAULT_WAIT
    except ValueError as error:
        raise _bad("Invalid wait time") from error


async def _body(request: web.Request) -> bytes:
    length = request.content_length or 0
    if length <= MAX_VALUE:
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            length = MAX_VALUE + 1
    raise web.HTTPRequestEntityTooLarge(
        MAX_VALUE, length, text=f"Request body({length} bytes) too large, max size: {MAX_VALUE} bytes."
    )


def _session(wanted: _SessionRequest) -> Session:
    ttl = parse_duration(wanted.ttl) if wanted.ttl else 0.0
    if ttl > MAX_TTL:
        raise ValueError(f"Invalid Session TTL '{wanted.ttl}', must be at most 24h")
    behavior: Literal["release", "delete"]
    match wanted.behavior:
        case "" | "release":
            behavior = "release"
        case "delete":
            behavior = "delete"
        case other:
            raise ValueError(f"Invalid Behavior setting '{other}'")
    return Session(str(uuid.uuid4()), wanted.name, ttl, behavior, _lock_delay(wanted))


def _lock_delay(wanted: _SessionRequest) -> float:
    match wanted.lock_delay:
        case None:
            return DEFAULT_LOCK_DELAY
        case str(text):
            delay = parse_duration(text)
        case number:  # small ones are seconds, others nanoseconds: so Consul reads them
            delay = number if number < 1000 else number / 1e9
    return min(max(delay, 0.0), MAX_LOCK_DELAY)


# ── writing answers ──────────────────────────────────────────────────────────────────────────


def _names(rows: Sequence[Row], prefix: str, separator: str) -> list[str]:
    """Keys up to the first separator after the prefix, each once."""
    names: dict[str, None] = {}
    for row in rows:
        end = row.key.find(separator, len(prefix)) if separator else -1
        names[row.key if end < 0 else row.key[: end + len(separator)]] = None
    return list(names)


def _headers(index: int) -> dict[str, str]:
    return {"X-Consul-Index": str(index), "X-Consul-KnownLeader": "true", "X-Consul-LastContact": "0"}


def _json(data: object, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(data), status=status, headers=headers, content_type="application/json"
    )  # fmt: skip


def _bad(text: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=text)


@web.middleware
async def _word_failures(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Busy as error:
        raise web.HTTPTooManyRequests(text=str(error)) from error
    except StoreError as error:
        raise web.HTTPInsufficientStorage(text=str(error)) from error


@web.middleware
async def _refuse_names(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Keeps out web pages that rebind their own name to this machine."""
    if not _is_address(request.host):
        raise web.HTTPForbidden(text=f"ask this store by its address or as localhost, not as {request.host!r}")
    return await handler(request)


def _is_address(host: str) -> bool:
    """Whether a Host header (`name`, `name:port`, `[::1]:port`) is an IP address or localhost."""
    name = urlsplit(f"//{host}").hostname or ""
    return name == "localhost" or _address(name) is not None


def is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
