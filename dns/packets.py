"""Answers kept as packets, so that the next query of a kind is a look-up and a copy.

They are kept under the bytes of the query after its ID, in lower case: that tells type, flags and EDNS apart
for free, and serves every spelling of a name from one entry, since the question is copied from the query.
A choice of addresses is kept once per address that leads, and they take turns.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from mesh.dns.counters import Cell
from mesh.dns.wire import Reply
from mesh.dns.zone import Subject

_MOST_VARIANTS = 256
"""A choice among more is made anew for each query."""
_OVERHEAD = 400  # bytes of an entry beside its packets, roughly


class _Kept:
    """The answers to one kind of query, each in two parts: between ID and question, and after the question."""

    __slots__ = ("answers", "cell", "first", "question_end", "tail", "turn", "variants")

    def __init__(self, first: int, question_end: int, tail: bytes, variants: int, cell: Cell) -> None:
        self.first = first
        self.question_end = question_end
        self.tail = tail
        self.variants = variants
        self.cell = cell
        self.answers: list[tuple[bytes, bytes]] = []
        self.turn = 0


class Packets:
    """The kept answers of one transport. When there are too many all are dropped: they come back by themselves."""

    def __init__(self, entries: int = 20_000, size: int = 16 << 20) -> None:
        self._most = entries
        self._size = size
        self._used = 0
        self._kept: dict[bytes, _Kept] = {}
        self._kinds: dict[Subject, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def answer(self, query: bytes) -> tuple[bytes, Cell] | None:
        """The packet to send, and where to count it."""
        kept = self._kept.get(query[2:].lower())
        # the tail has what must not be taken for a letter: type 65 (HTTPS) is "A", type 97 is "a"
        if kept is None or not query.endswith(kept.tail):
            return None
        answers = kept.answers
        turn = kept.turn
        if turn >= len(answers):
            if turn < kept.variants:
                return None  # this one has not been made yet
            turn = 0
        kept.turn = turn + 1
        head, rest = answers[turn]
        return query[:2] + head + query[12 : kept.question_end] + rest, kept.cell

    def next_first(self, query: bytes) -> int:
        """Which address is to lead in the next answer to be kept."""
        kept = self._kept.get(query[2:].lower())
        return kept.first + len(kept.answers) if kept else random.getrandbits(16)

    def keep(self, query: bytes, reply: Reply, first: int, cell: Cell) -> None:
        """Keeps an answer made with `first` for the queries to come, if that is worth it."""
        if reply.subject is None or reply.variants > _MOST_VARIANTS:
            return
        if len(self._kept) >= self._most or self._used >= self._size:
            self.drop(None)
        key = query[2:].lower()
        kept = self._kept.get(key)
        if kept is None:
            tail = query[reply.question_end - 4 :]
            kept = self._kept[key] = _Kept(first, reply.question_end, tail, reply.variants, cell)
            self._kinds.setdefault(reply.subject, []).append(key)
            self._used += len(key) + _OVERHEAD
        elif not query.endswith(kept.tail) or len(kept.answers) >= kept.variants:
            return
        kept.answers.append((reply.packet[2:12], reply.packet[reply.question_end :]))
        kept.turn = len(kept.answers)
        self._used += len(reply.packet)

    def drop(self, subjects: Iterable[Subject] | None) -> None:
        """Forgets what was derived from these; None: everything."""
        if subjects is None:
            self._kept.clear()
            self._kinds.clear()
            self._used = 0
            return
        for subject in subjects:
            for key in self._kinds.pop(subject, ()):
                kept = self._kept.pop(key)
                self._used -= len(key) + _OVERHEAD + sum(len(rest) + kept.question_end for _, rest in kept.answers)
