"""Marks: which keys under a prefix have changed, told without reading all of them.

A blocking query on a prefix answers with everything under it: where 300 nodes report 10,000 replicas that is 2 MB for
each change, to everybody who watches. So who writes `observed/nodes/n1` also writes, in the same transaction and with
the same lock, a digest to `observed/nodes.marks/n1`. Who watches `observed/nodes/` then waits on the names of both
alone, reads the marks, whose indexes and locks tell what has changed, and of the documents only those. What has
changed without a mark, by another hand or an older version, shows in the index of the prefix: then all is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Protocol

import msgspec

from mesh.store import Entry, Listing, Op

MANY = 32
"""Of so many changes at once it is cheaper to read all."""

REREAD = 55.0
"""Seconds after which everything is read again, whatever the marks say."""

PAUSE = 0.001
"""Seconds between two looks, for each mark: looks at more marks cost more, and are rarer."""


def mark_of(key: str) -> str:
    """`mesh/observed/nodes/n1` → `mesh/observed/nodes.marks/n1`."""
    folder, _, name = key.rpartition("/")
    return f"{folder}.marks/{name}"


def marked(op: Op) -> list[Op]:
    """The step, and the one that leaves its mark: with the same lock, so that a session's end shows in it as well."""
    verb = {"cas": "set", "delete-cas": "delete"}.get(op.verb, op.verb)
    digest = blake2b(op.value, digest_size=4).digest()  # Consul passes over a write that changes nothing
    return [op, replace(op, verb=verb, key=mark_of(op.key), value=digest, index=0)]  # type: ignore[arg-type]


class Mark(msgspec.Struct, frozen=True, gc=False, rename="pascal"):
    """All that a look at 300 of them has to tell, in a form that costs little."""

    key: str
    modify_index: int
    session: str | None = None


class Reads(Protocol):
    """What a store can be asked. `stale`: any of its servers may answer, also one that lags behind."""

    async def touched(self, prefix: str, beyond: int) -> int:
        """The index of the newest change of any key that begins so; waits (a while) until it is beyond that."""

    async def marks(self, prefix: str, *, stale: bool = False) -> tuple[int, Mapping[str, Mark]]:
        """The index of the prefix, and its keys."""

    async def list(self, prefix: str, *, stale: bool = False) -> Listing: ...

    async def read(self, keys: Collection[str], *, stale: bool = False) -> Mapping[str, Entry]:
        """Those of these keys that there are."""


class MarkedPrefix:
    """What is under a prefix, kept up to date by its marks. `prefix` ends with a slash."""

    def __init__(self, reads: Reads, prefix: str, seen: int = 0) -> None:
        """`seen`: no server that is behind this index is believed."""
        self._reads = reads
        self._prefix = prefix
        self._both = prefix.removesuffix("/")  # what documents and marks have in common
        self._seen = seen
        self._index = 0  # of the last answer; 0: the next one comes at once
        self._entries: dict[str, Entry] = {}
        self._marks: Mapping[str, Mark] = {}
        self._reread_at = 0.0

    def forget(self) -> None:
        """The store was away: the next look reads everything, at once."""
        self._index, self._reread_at = 0, 0.0

    async def next(self) -> Listing:
        """Everything, after a change (or a while)."""
        if self._index:
            await asyncio.sleep(PAUSE * len(self._marks))
        index = await self._reads.touched(self._both, self._index)
        changed = await self._changed(index)
        if changed is None or len(changed) > MANY:
            await self._read_all(max(index, self._seen))
        else:
            await self._read(changed)
        self._index = index
        self._seen = max(self._seen, index)
        return Listing(self._seen, self._entries)

    async def _changed(self, index: int) -> list[str] | None:
        """The keys whose marks have changed; None if the marks cannot tell."""
        if index < self._seen or time.monotonic() >= self._reread_at:
            return None
        newest, marks = await self._reads.marks(f"{self._both}.marks/", stale=True)
        if newest < index or not marks:
            return None
        before, self._marks = self._marks, marks
        names = [mark for mark in before.keys() | marks.keys() if before.get(mark) != marks.get(mark)]
        return [self._prefix + mark.rpartition("/")[2] for mark in names]

    async def _read(self, keys: list[str]) -> None:
        """Each as new as its mark, at least."""
        marks = {key: mark for key in keys if (mark := self._marks.get(mark_of(key)))}
        found = {
            key: entry
            for key, entry in (await self._reads.read(marks, stale=True)).items()
            if entry.modify_index >= marks[key].modify_index
        }
        found |= await self._reads.read(set(keys) - found.keys())
        gone = set(keys) - found.keys()
        self._entries = {key: entry for key, entry in (self._entries | found).items() if key not in gone}

    async def _read_all(self, index: int) -> None:
        for stale in (True, False):
            newest, self._marks = await self._reads.marks(f"{self._both}.marks/", stale=stale)
            documents = await self._reads.list(self._prefix, stale=stale)
            if documents.index >= max(index, newest):  # else they may lack what their marks say of them
                break
        self._entries = dict(documents.entries)
        self._reread_at = time.monotonic() + REREAD
