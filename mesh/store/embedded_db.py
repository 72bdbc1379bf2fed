"""The embedded store's file: one SQLite database in a folder that one server holds at a time."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from mesh.store import StoreError
from mesh.store.embedded_state import Draft, Row, Session, State

FORMAT = 1
"""The version of the tables; a newer one is refused."""

_TABLES = """
CREATE TABLE IF NOT EXISTS kv (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, flags TEXT NOT NULL,
    create_index INTEGER NOT NULL, modify_index INTEGER NOT NULL, lock_index INTEGER NOT NULL, session TEXT);
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, ttl REAL NOT NULL, behavior TEXT NOT NULL, lock_delay REAL NOT NULL,
    create_index INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS store (one INTEGER PRIMARY KEY CHECK (one = 1), last_index INTEGER NOT NULL);
INSERT OR IGNORE INTO store VALUES (1, 1);
"""


class DatabaseError(StoreError):
    """The database could not be opened or written. The message says where and what to do."""


class Database:
    """Opened, locked and loaded on construction. `commit` may run in another thread, one call at a time."""

    def __init__(self, folder: Path, *, max_pages: int | None = None) -> None:
        """`max_pages` limits the file to so many pages of 4 KiB."""
        self._folder = folder
        self._lock = _hold(folder)
        try:
            self._connection = self._open(max_pages)
        except (sqlite3.Error, DatabaseError) as error:
            os.close(self._lock)
            if isinstance(error, DatabaseError):
                raise
            raise DatabaseError(
                f"cannot open the store's database in {folder}: {error}; "
                "free space or restore store.db from a copy, or begin anew with another folder"
            ) from error

    def _open(self, max_pages: int | None) -> sqlite3.Connection:
        connection = sqlite3.connect(self._folder / "store.db", isolation_level=None, check_same_thread=False)
        [found] = connection.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            connection.close()
            raise DatabaseError(
                f"{self._folder} was written by a newer mesh (format {found}, this one reads {FORMAT}): update mesh"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
        if max_pages is not None:
            connection.execute(f"PRAGMA max_page_count = {max_pages}")
        if found < FORMAT:
            connection.executescript(f"BEGIN;{_TABLES}PRAGMA user_version = {FORMAT};COMMIT;")
        return connection

    def load(self) -> State:
        rows = {
            key: Row(key, value, int(flags), create_index, modify_index, lock_index, session)
            for key, value, flags, create_index, modify_index, lock_index, session in self._connection.execute(
                "SELECT key, value, flags, create_index, modify_index, lock_index, session FROM kv"
            )
        }
        sessions = {
            id_: Session(id_, name, ttl, behavior, lock_delay, index)
            for id_, name, ttl, behavior, lock_delay, index in self._connection.execute(
                "SELECT id, name, ttl, behavior, lock_delay, create_index FROM sessions"
            )
        }
        [index] = self._connection.execute("SELECT last_index FROM store").fetchone()
        return State(rows, sessions, index)

    def commit(self, draft: Draft) -> None:
        """Writes a draft to the disk, all of it or (raising `DatabaseError`) none."""
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT OR REPLACE INTO kv (key, value, flags, create_index, modify_index, lock_index, session)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        row.key,
                        row.value,
                        str(row.flags),
                        row.create_index,
                        row.modify_index,
                        row.lock_index,
                        row.session,
                    )
                    for row in draft.rows.values()
                    if row is not None
                ],
            )
            connection.executemany(
                "DELETE FROM kv WHERE key = ?", [(key,) for key, row in draft.rows.items() if row is None]
            )
            connection.executemany(
                "INSERT OR REPLACE INTO sessions (id, name, ttl, behavior, lock_delay, create_index)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [(s.id, s.name, s.ttl, s.behavior, s.lock_delay, s.index) for s in draft.sessions.values() if s],
            )
            connection.executemany(
                "DELETE FROM sessions WHERE id = ?",
                [(id_,) for id_, session in draft.sessions.items() if session is None],
            )
            connection.execute("UPDATE store SET last_index = ?", (draft.index,))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise DatabaseError(
                f"the store could not write to {self._folder}: {error}; nothing was changed. "
                "Free space there: writes go on by themselves, reads go on meanwhile"
            ) from error

    def close(self) -> None:
        self._connection.close()
        os.close(self._lock)


def _hold(folder: Path) -> int:
    """Locks the folder for this process; the kernel frees it when the process ends, however it ends."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseError(f"cannot use {folder} for the store: {error.strerror}; choose another folder") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise DatabaseError(
            f"{folder} is in use by another store (process {holder}): stop that one, or choose another folder"
        ) from error
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError:  # a full disk: the lock holds, only its note is missing
        pass
    return lock
