"""The store over HTTP: a real Consul, or the embedded store, which speaks the same.

Base is py-consul's client: it words the calls on one key and one session (`kv.get`, `kv.put`,
`kv.delete`, `session.info`, `session.renew`, `session.destroy`, `status.leader`, `agent.self`).
Its transport is ours (`consul_http.Transport`), and these calls go to it directly, past py-consul:

- listings and watches: py-consul drops the headers that tell how stale an answer is, and every listing
  would pass through dicts; they have their own connections too, so that no write waits behind watches;
- transactions: `txn.put` sends no ACL token, and a lost condition is an exception with JSON in its text;
- creating sessions: py-consul refuses a TTL below 10 s even where the servers allow it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Literal

import consul.base
import msgspec

from mesh.settings import StoreSettings
from mesh.store import (
    MAX_TXN_OPS,
    Change,
    Entry,
    Listing,
    Op,
    StoreRejected,
    TxnResult,
    key_fault,
)
from mesh.store.consul_http import WATCH_WAIT, Answer, Transport
from mesh.store.marks import Mark, MarkedPrefix
from mesh.store.watching import changes
from mesh.units import format_duration


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


class _NewSession(msgspec.Struct):
    id: str = msgspec.field(name="ID")


_decode_rows = msgspec.json.Decoder(list[_Row]).decode
_decode_marks = msgspec.json.Decoder(list[Mark]).decode
_decode_txn = msgspec.json.Decoder(_TxnAnswer).decode
_decode_session = msgspec.json.Decoder(_NewSession).decode


class _Client(consul.base.Consul):  # type: ignore[misc]
    """py-consul's calls over our transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        super().__init__(host="unused")

    def http_connect(self, *_: Any, **__: Any) -> Transport:
        return self._transport


class ConsulStore:
    """`mesh.store.Store` over HTTP. To be made inside a running loop."""

    def __init__(self, settings: StoreSettings) -> None:
        self._http = Transport(settings)
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
        _, row = await self._consul.kv.get(_checked(key), consistency="stale" if stale else "consistent")
        if row is None:
            return None
        return Entry(key, row["Value"] or b"", row["ModifyIndex"], row["CreateIndex"], row.get("Session") or None)

    async def list(self, prefix: str, *, stale: bool = False) -> Listing:
        params = [("recurse", ""), *_consistency(stale)]
        return await self._visible(prefix, await self._http.ask("GET", f"/v1/kv/{prefix}", params))

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
        outcome = self._http.read(_decode_txn, answer)
        if outcome.errors:
            if any("Permission denied" in error.what for error in outcome.errors):
                raise self._http.denied(outcome.errors[0].what)
            return TxnResult(
                False,
                failed=[error.op_index for error in outcome.errors],
                errors=[error.what for error in outcome.errors],
            )
        return TxnResult(True, _written(ops, [row.kv for row in outcome.results or []]))

    # ── watching ─────────────────────────────────────────────────────────────────────────────

    def watch(self, prefix: str, seen: int = 0, *, marked: bool = False) -> AsyncIterator[Change]:
        return changes(MarkedPrefix(self, prefix, seen) if marked else _Whole(self, prefix, seen), prefix)

    async def touched(self, prefix: str, beyond: int) -> int:
        """The index of the newest change of any key that begins so; waits (a while) until it is beyond that."""
        params = [("keys", ""), ("separator", "/"), ("stale", ""), *_waiting(beyond)]  # the answer has few names
        return self._index(await self._http.watch(f"/v1/kv/{prefix}", params))

    async def marks(self, prefix: str, *, stale: bool = False) -> tuple[int, Mapping[str, Mark]]:
        """The index of the prefix, and its keys without their values."""
        answer = await self._http.ask("GET", f"/v1/kv/{prefix}", [("recurse", ""), *_consistency(stale)])
        rows = self._http.read(_decode_marks, answer) if answer.status == 200 else []
        return self._index(answer), {row.key: row for row in rows}

    async def read(self, keys: Collection[str], *, stale: bool = False) -> Mapping[str, Entry]:
        """Those of these keys that there are, in one request where all of them are there."""
        if len(keys) > 1:
            body = json.dumps([{"KV": {"Verb": "get", "Key": _checked(key)}} for key in keys])
            answer = await self._http.ask("PUT", "/v1/txn", _consistency(stale), data=body)
            if rows := self._http.read(_decode_txn, answer).results:
                return {row.kv.key: row.kv.entry() for row in rows}
        found = await asyncio.gather(*(self._read_one(key, stale=stale) for key in keys))
        return {entry.key: entry for entry in found if entry}

    async def _read_one(self, key: str, *, stale: bool) -> Entry | None:
        answer = await self._http.ask("GET", f"/v1/kv/{_checked(key)}", _consistency(stale))
        return self._listed(answer).entries.get(key)

    async def newer(self, prefix: str, beyond: int, *, stale: bool) -> Listing:
        """What is under a prefix, or one key, when it is newer than that (or after a while)."""
        recurse = [("recurse", "")] if prefix.endswith("/") else []
        params = [*recurse, *_consistency(stale), *_waiting(beyond)]
        return await self._visible(prefix, await self._http.watch(f"/v1/kv/{prefix}", params))

    async def _visible(self, prefix: str, answer: Answer) -> Listing:
        """Consul leaves out of a listing what the token may not read, and denies it only where one key is asked for:
        so one is, before it is believed that there is nothing."""
        listing = self._listed(answer)
        if not listing.entries and prefix.endswith("/"):
            await self._read_one(f"{prefix}-", stale=True)
        return listing

    def _index(self, answer: Answer) -> int:
        if answer.index is None:
            raise self._http.no_consul("no X-Consul-Index header")
        return answer.index

    def _listed(self, answer: Answer) -> Listing:
        index = self._index(answer)
        rows = self._http.read(_decode_rows, answer) if answer.status == 200 else []
        return Listing(index, {row.key: row.entry() for row in rows})

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
        answer = await self._http.ask("PUT", "/v1/session/create", data=json.dumps(wanted))  # one too many ends itself
        return self._http.read(_decode_session, answer).id

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

    # ── about the store itself ───────────────────────────────────────────────────────────────

    async def leader(self) -> str | None:
        """The address of the server that leads."""
        return str(await self._consul.status.leader()) or None

    async def about(self) -> dict[str, Any]:
        """What the asked agent says of itself: `Config` and `DebugConfig`."""
        return dict(await self._consul.agent.self())


# ── requests and answers ─────────────────────────────────────────────────────────────────────


def _checked(key: str) -> str:
    if fault := key_fault(key):
        raise StoreRejected(fault)
    return key


class _Whole:
    """A prefix that is read as a whole at each change, or one key."""

    def __init__(self, store: ConsulStore, prefix: str, seen: int) -> None:
        self._store = store
        self._prefix = prefix
        self._seen = seen
        self._index = 0

    def forget(self) -> None:
        self._index = 0

    async def next(self) -> Listing:
        listing = await self._store.newer(self._prefix, self._index, stale=True)
        if listing.index < self._seen:  # a server that lags, or a restored snapshot: the leader knows
            listing = await self._store.newer(self._prefix, 0, stale=False)
        self._index = self._seen = listing.index
        return listing


def _consistency(stale: bool) -> list[tuple[str, Any]]:
    """Consul's default mode is neither: a leader that was just elected answers before it has applied its log."""
    return [("stale" if stale else "consistent", "")]


def _waiting(beyond: int) -> list[tuple[str, Any]]:
    return [("index", beyond), ("wait", format_duration(WATCH_WAIT))] if beyond else []


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
