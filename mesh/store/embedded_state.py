"""What the embedded store knows, without a file or a socket: keys, locks and sessions, by Consul's rules.

`State` is what is committed. A write is computed on a `Draft` above it, which is made durable first and
absorbed afterwards, so that nobody reads what a crash could take back. Drafts stack: one per request
above one per commit. Where a rule looks odd (a plain write resets the lock index, an equal write changes
nothing), it is Consul 1.8's, and the contract suite holds both to it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

MAX_TOMBSTONES = 1024
"""Deleted keys that are remembered for blocking queries; beyond it, all watchers read once more."""


class Refused(Exception):
    """A condition of the write does not hold; the words are Consul's."""


class UnknownSession(Refused):
    """The write names a session that is no more."""


@dataclass(frozen=True, slots=True)
class Row:
    """One key."""

    key: str
    value: bytes
    flags: int = 0
    create_index: int = 0
    modify_index: int = 0
    lock_index: int = 0  # how often the lock was taken
    session: str | None = None  # that holds the lock


@dataclass(frozen=True, slots=True)
class Session:
    """A holder of locks."""

    id: str
    name: str
    ttl: float  # seconds; 0: it never lapses
    behavior: Literal["release", "delete"]  # what becomes of its keys when it ends
    lock_delay: float  # seconds for which its keys stay unlocked when it is invalidated
    index: int = 0


class Layer(Protocol):
    """What a draft stands on."""

    index: int

    def get(self, key: str) -> Row | None: ...
    def scan(self, prefix: str) -> list[Row]: ...
    def session(self, session: str) -> Session | None: ...
    def lock_free_at(self, key: str) -> float: ...


class State:
    """All that is committed."""

    def __init__(self, rows: Mapping[str, Row], sessions: Mapping[str, Session], index: int) -> None:
        self.index = max(index, 1)
        self.sessions = dict(sessions)
        self._rows = dict(rows)
        self._keys = sorted(self._rows)
        self._deleted: dict[str, int] = {}
        self._floor = self.index  # deletions up to here are forgotten
        self._lock_free_at: dict[str, float] = {}

    def get(self, key: str) -> Row | None:
        return self._rows.get(key)

    def scan(self, prefix: str) -> list[Row]:
        """All rows under a prefix, by key."""
        return [self._rows[key] for key in self._under(prefix)]

    def _under(self, prefix: str) -> Iterator[str]:
        for position in range(bisect_left(self._keys, prefix), len(self._keys)):
            key = self._keys[position]
            if not key.startswith(prefix):
                return
            yield key

    def session(self, session: str) -> Session | None:
        return self.sessions.get(session)

    def lock_free_at(self, key: str) -> float:
        return self._lock_free_at.get(key, 0.0)

    def key_index(self, key: str) -> int:
        """The index of the last change of one key, also of its deletion."""
        row = self._rows.get(key)
        return row.modify_index if row else self._deleted.get(key, self._floor)

    def prefix_index(self, prefix: str) -> int:
        """The index of the last change under a prefix, also of deletions; never below those forgotten."""
        newest = max((self._rows[key].modify_index for key in self._under(prefix)), default=0)
        deleted = max((index for key, index in self._deleted.items() if key.startswith(prefix)), default=0)
        return max(newest, deleted, self._floor)

    def absorb(self, draft: Draft, now: float) -> None:
        """Makes a draft, which is durable by now, the truth."""
        self.index = draft.index
        for key, row in draft.rows.items():
            if row is None:
                self._remove(key)
            else:
                if key not in self._rows:
                    insort(self._keys, key)
                self._rows[key] = row
                self._deleted.pop(key, None)
        for name, session in draft.sessions.items():
            if session is None:
                self.sessions.pop(name, None)
            else:
                self.sessions[name] = session
        self._lock_free_at.update(draft.lock_delays)
        self._lock_free_at = {key: at for key, at in self._lock_free_at.items() if at > now}

    def _remove(self, key: str) -> None:
        if self._rows.pop(key, None) is None:
            return
        del self._keys[bisect_left(self._keys, key)]
        self._deleted[key] = self.index
        if len(self._deleted) > MAX_TOMBSTONES:
            self._deleted.clear()
            self._floor = self.index


class Draft:
    """Writes that are not committed yet, all at one index, above another layer."""

    def __init__(self, below: Layer, now: float) -> None:
        self.rows: dict[str, Row | None] = {}
        self.sessions: dict[str, Session | None] = {}
        self.lock_delays: dict[str, float] = {}
        self.index = below.index
        self._below = below
        self._now = now
        self._next = below.index + 1

    @property
    def changed(self) -> bool:
        return bool(self.rows or self.sessions)

    def child(self) -> Draft:
        """A draft of one request, to absorb if it succeeds."""
        return Draft(self, self._now)

    def absorb(self, child: Draft) -> None:
        self.rows.update(child.rows)
        self.sessions.update(child.sessions)
        self.lock_delays.update(child.lock_delays)
        self.index = child.index

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def get(self, key: str) -> Row | None:
        return self.rows[key] if key in self.rows else self._below.get(key)

    def scan(self, prefix: str) -> list[Row]:
        rows: dict[str, Row | None] = {row.key: row for row in self._below.scan(prefix)}
        rows.update((key, row) for key, row in self.rows.items() if key.startswith(prefix))
        return [row for _, row in sorted(rows.items()) if row is not None]

    def session(self, session: str) -> Session | None:
        return self.sessions[session] if session in self.sessions else self._below.session(session)

    def lock_free_at(self, key: str) -> float:
        return self.lock_delays.get(key) or self._below.lock_free_at(key)

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    def put(self, key: str, value: bytes, flags: int = 0) -> Row:
        old = self.get(key)
        return self._write(Row(key, value, flags, session=old.session if old else None))

    def put_if(self, key: str, value: bytes, flags: int, index: int) -> Row:
        """Writes if the key's modify index is `index` (0: if the key does not exist)."""
        if self._modify_index(key) != index:
            raise Refused(f'failed to set key "{key}", index is stale')
        return self.put(key, value, flags)

    def lock(self, key: str, value: bytes, flags: int, session: str) -> Row:
        """Writes and takes the lock; its holder may write so again."""
        if not session:
            raise UnknownSession("missing session")
        if self.session(session) is None:
            raise UnknownSession(f'invalid session "{session}"')
        if self.lock_free_at(key) > self._now:
            raise Refused(f'failed to lock key "{key}" due to lock delay')
        old = self.get(key)
        if old and old.session not in (None, session):
            raise Refused(f'failed to lock key "{key}", lock is already held')
        taken = old.lock_index + (old.session is None) if old else 1
        return self._write(Row(key, value, flags, lock_index=taken, session=session))

    def unlock(self, key: str, value: bytes, flags: int, session: str) -> Row:
        """Writes and gives the lock back."""
        if not session:
            raise UnknownSession("missing session")
        old = self.get(key)
        if old is None or old.session != session:
            raise Refused(f'failed to unlock key "{key}", lock isn\'t held, or is held by another session')
        return self._write(Row(key, value, flags, lock_index=old.lock_index))

    def delete(self, key: str) -> None:
        if self.get(key) is not None:
            self.rows[key] = None
            self.index = self._next

    def delete_if(self, key: str, index: int) -> None:
        """Deletes if the key's modify index is `index`; a key that is not there is fine."""
        if self.get(key) is not None and self._modify_index(key) != index:
            raise Refused(f'failed to delete key "{key}", index is stale')
        self.delete(key)

    def delete_prefix(self, prefix: str) -> None:
        for row in self.scan(prefix):
            self.delete(row.key)

    def create_session(self, session: Session) -> None:
        self.sessions[session.id] = replace(session, index=self._next)
        self.index = self._next

    def destroy_session(self, session: str) -> None:
        """Invalidates it: its locks are freed or its keys deleted, and its lock-delay begins."""
        gone = self.session(session)
        if gone is None:
            return
        self.sessions[session] = None
        self.index = self._next
        for row in self.scan(""):
            if row.session != session:
                continue
            if gone.behavior == "delete":
                self.delete(row.key)
            else:
                self._write(replace(row, session=None))
            if gone.lock_delay:
                self.lock_delays[row.key] = self._now + gone.lock_delay

    # ── checking ─────────────────────────────────────────────────────────────────────────────

    def check_index(self, key: str, index: int) -> Row:
        row = self.get(key)
        if row is None:
            raise Refused(f'failed to check index, key "{key}" doesn\'t exist')
        if row.modify_index != index:
            raise Refused(
                f'failed index check for key "{key}", current modify index {row.modify_index} != {index}'
            )  # fmt: skip
        return row

    def check_session(self, key: str, session: str) -> Row:
        row = self.get(key)
        if row is None:
            raise Refused(f'failed to check session, key "{key}" doesn\'t exist')
        if (row.session or "") != session:
            raise Refused(
                f'failed session check for key "{key}", current session "{row.session or ""}" != "{session}"'
            )  # fmt: skip
        return row

    def check_not_exists(self, key: str) -> None:
        if self.get(key) is not None:
            raise Refused(f'key "{key}" exists')

    def _modify_index(self, key: str) -> int:
        row = self.get(key)
        return row.modify_index if row else 0

    def _write(self, row: Row) -> Row:
        old = self.get(row.key)
        if old and row == replace(old, create_index=0, modify_index=0):
            return old
        row = replace(row, create_index=old.create_index if old else self._next, modify_index=self._next)
        self.rows[row.key] = row
        self.index = self._next
        return row
