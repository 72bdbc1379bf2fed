"""Answers kept as packets, so that the next query of a kind is a look-up and a copy.

They are kept under the bytes of the query after its ID, in lower case: that tells type, flags and EDNS apart
for free, and serves every spelling of a name from one entry, since the question is copied from the query.
A choice of addresses is kept as a ring: each answer has the next address in the lead.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.dns.counters import Cell
from mesh.dns.wire import Reply
from mesh.dns.zone import Subject

_OVERHEAD = 600  # bytes of an entry beside its packet, roughly


_few: dict[bytes, bytes] = {}


def _shared(data: bytes) -> bytes:
    """The same bytes once in memory: most answers begin and end like others."""
    if len(data) > 32 or len(_few) >= 1000:
        return _few.get(data, data)
    return _few.setdefault(data, data)


class _Kept:
    """The answer to one kind of query: head, question, a window on the ring, rest. Without a choice nothing turns."""

    __slots__ = ("at", "cell", "end", "head", "question_end", "rest", "ring", "step", "tail", "window")

    def __init__(self, tail: bytes, reply: Reply, cell: Cell) -> None:
        packet, ring = reply.packet, reply.ring
        self.tail = _shared(tail)
        self.cell = cell
        self.head = _shared(packet[2:12])
        self.question_end = reply.question_end
        self.at = 0
        self.step = ring.width if ring else 0
        self.window = ring.width * ring.shown if ring else 0
        self.end = len(ring.records) if ring else 1
        self.ring = ring.records + ring.records[: self.window] if ring else b""
        self.rest = _shared(packet[reply.question_end + self.window :])

    @property
    def size(self) -> int:
        """Bytes of memory, with those of its key."""
        return len(self.ring) + len(self.rest) + self.question_end + _OVERHEAD


class Packets:
    """The kept answers of one transport. When there are too many all are dropped: they come back by themselves."""

    def __init__(self, entries: int = 20_000, size: int = 12 << 20) -> None:
        self._most = entries
        self._size = size
        self._used = 0
        self._kept: dict[bytes, _Kept] = {}
        self._keys: dict[Subject, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def answer(self, query: bytes) -> tuple[bytes, Cell] | None:
        """The packet to send, and where to count it."""
        kept = self._kept.get(query[2:].lower())
        # the tail has what must not be taken for a letter: type 65 (HTTPS) is "A", type 97 is "a"
        if kept is None or not query.endswith(kept.tail):
            return None
        at = kept.at
        kept.at = (at + kept.step) % kept.end
        window = kept.ring[at : at + kept.window]
        return query[:2] + kept.head + query[12 : kept.question_end] + window + kept.rest, kept.cell

    def keep(self, query: bytes, reply: Reply, cell: Cell) -> None:
        """Keeps an answer for the queries to come, if it is for all of them."""
        key = query[2:].lower()
        if reply.subject is None or key in self._kept:
            return
        if len(self._kept) >= self._most or self._used >= self._size:
            self.drop(None)
        kept = self._kept[key] = _Kept(query[reply.question_end - 4 :], reply, cell)
        kept.at = kept.step  # the reply itself had the first in the lead
        self._keys.setdefault(reply.subject, []).append(key)
        self._used += kept.size

    def drop(self, subjects: Iterable[Subject] | None) -> None:
        """Forgets what was derived from these; None: everything."""
        if subjects is None:
            self._kept.clear()
            self._keys.clear()
            self._used = 0
            return
        for subject in subjects:
            for key in self._keys.pop(subject, ()):
                self._used -= self._kept.pop(key).size
