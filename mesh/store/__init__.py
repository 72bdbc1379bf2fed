"""What the mesh needs of a store, whichever speaks it: Consul, or the embedded store.

The words are Consul's: keys, indexes, compare-and-set, transactions, blocking queries, sessions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


class StoreError(Exception):
    """The store could not be asked, or refused. The message says what, where, and what to do."""


class StoreUnavailable(StoreError):
    """Nobody answered, or no leader: worth trying again."""


class StoreDenied(StoreError):
    """The token may not do this: trying again will not help."""


class StoreRejected(StoreError):
    """The request itself is at fault (too large, a bad key): trying again will not help."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as read."""

    key: str
    value: bytes
    modify_index: int
    create_index: int = 0
    session: str | None = None  # the session that holds the key's lock


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything under a prefix, at one index of the store."""

    index: int
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch yields: the whole listing, and which keys differ from the one before."""

    index: int
    entries: Mapping[str, Entry]
    changed: frozenset[str]  # written, removed, locked or unlocked; all keys on the first yield


@dataclass(frozen=True, slots=True)
class Op:
    """One step of a transaction; all of them happen, or none.

    `set` writes; `cas` writes if `modify_index` still is `index` (0: must not exist);
    `delete` removes; `delete-cas` removes if unchanged; `lock`/`unlock` write and take or free the lock;
    `check-session` fails unless `session` holds the key; `check-index` fails unless it is unchanged.
    """

    verb: Literal["set", "cas", "delete", "delete-cas", "lock", "unlock", "check-session", "check-index"]
    key: str
    value: bytes = b""
    index: int = 0
    session: str | None = None


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`ok`, and the entries written; or why not: the positions of the steps that failed, and the store's words."""

    ok: bool
    entries: Sequence[Entry] = ()
    failed: Sequence[int] = ()
    errors: Sequence[str] = field(default=())


MAX_TXN_OPS = 64
"""Consul's limit for one transaction."""

MAX_VALUE = 512 * 1024
"""Consul's limit for one value, in bytes; also for the body of one transaction, where values take 4/3 (base64)."""

MAX_KEY = 1024
"""Characters."""


def key_fault(key: str) -> str | None:
    """What is wrong with a key, if anything. Consul's HTTP would clean such a path and write another key."""
    if not 0 < len(key) <= MAX_KEY:
        return f"a key must have 1..{MAX_KEY} characters, got {len(key)}"
    if "\0" in key:
        return f"a key must have no NUL, got {key!r}"
    # A slash at the end is fine: `a/` is another key than `a`.
    if any(part in ("", ".", "..") for part in key.removesuffix("/").split("/")):
        return f"a key's parts must not be empty, '.' or '..', got {key!r}"
    return None


class Store(Protocol):
    """One client. Every method raises `StoreError`; `put` and friends return False where a condition failed."""

    @property
    def address(self) -> str:
        """Where it is, for messages."""

    @property
    def contact_age(self) -> float:
        """Seconds since the store last answered."""

    async def get(self, key: str, *, stale: bool = False) -> Entry | None: ...

    async def list(self, prefix: str, *, stale: bool = False) -> Listing: ...

    async def put(self, key: str, value: bytes, *, cas: int | None = None) -> bool:
        """Writes; with `cas`, only if the key's modify index still is that (0: only if it does not exist)."""

    async def delete(self, key: str, *, cas: int | None = None) -> bool: ...

    async def delete_prefix(self, prefix: str) -> None: ...

    async def txn(self, ops: Sequence[Op]) -> TxnResult:
        """All or nothing; at most `MAX_TXN_OPS` steps."""

    def watch(self, prefix: str, seen: int = 0, *, marked: bool = False) -> AsyncIterator[Change]:
        """Yields once at the start and then after each change, by stale blocking queries; never ends by itself.

        A prefix ends with a slash; anything else is one key.
        `seen`: an index that the caller has seen already; a server that is behind it is not believed.
        While the store is away it yields nothing, retries with jittered back-off and reads everything again.
        A query that returns unchanged yields nothing.
        `marked`: whoever writes there leaves marks (`mesh.store.marks`), so that a change costs what it is worth.
        """

    async def create_session(
        self,
        name: str,
        ttl: float,
        *,
        behavior: Literal["release", "delete"] = "release",
        lock_delay: float = 0.0,
    ) -> str: ...

    async def renew_session(self, session: str) -> bool:
        """False if the session is no more."""

    async def destroy_session(self, session: str) -> None: ...

    async def session_name(self, session: str) -> str | None:
        """The name it was created with; None if it is no more."""

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        """Writes and locks the key; False if another session holds it (or lock-delay still runs)."""

    async def release(self, key: str, session: str) -> bool: ...

    async def close(self) -> None: ...
