"""A bounded memory of other servers' answers, true to their TTLs.

Sources: RFC 2181 8 (TTL), RFC 2308 5 (negative answers), RFC 8767 (serving what has expired while nobody answers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dnslib import QTYPE

from mesh.dns.message import HEADER, RCODE, read_question, read_record
from mesh.dns.names import Labels
from mesh.dns.zone import NOERROR, NXDOMAIN

_LONGEST = 86_400  # seconds that an answer is kept, whatever its TTL says
_LONGEST_NEGATIVE = 3_600
_STALE = 3_600  # seconds that an expired answer may stand in for one that cannot be had
_STALE_TTL = 30  # as RFC 8767 4 recommends


class Key(NamedTuple):
    """What makes two queries the same."""

    labels: Labels
    type: int
    flags: tuple[int, int]  # DNSSEC OK and checking disabled, as asked


@dataclass(frozen=True, slots=True)
class Answer:
    """Another server's answer: the records after the question, without its OPT."""

    rcode: int
    counts: tuple[int, int, int]
    body: bytes
    ttls_at: tuple[int, ...]  # where TTLs stand in `body`
    ttl: int  # seconds until it expires; 0: not to be kept

    def aged(self, seconds: float) -> Answer:
        """The answer `seconds` after it came, its TTLs less by that; a stale one has what RFC 8767 gives it."""
        body, age = bytearray(self.body), int(seconds)
        for at in self.ttls_at:
            left = int.from_bytes(body[at : at + 4], "big") - age if seconds < self.ttl else _STALE_TTL
            body[at : at + 4] = max(left, 0).to_bytes(4, "big")
        return Answer(self.rcode, self.counts, bytes(body), self.ttls_at, self.ttl)


def read_answer(packet: bytes) -> Answer:
    """The records of a response with one question. Raises: Malformed."""
    _, start = read_question(packet)
    flags, _, *counts = HEADER.unpack_from(packet)[1:]
    at, kept = start, [0, 0, 0]
    end, ttls_at, ttls = start, [], [_LONGEST]
    negative = flags & RCODE == NXDOMAIN or not counts[0]
    has_soa = False
    for section, count in enumerate(counts):
        for _ in range(count):
            record = read_record(packet, at)
            at = record.end
            if record.type == QTYPE.OPT:
                continue
            if end != record.start:
                continue  # after the OPT: left out, since taking that away would move what pointers point to
            end = at
            kept[section] += 1
            ttls_at.append(record.ttl_at - start)
            ttl = record.ttl if record.ttl < 1 << 31 else 0
            if section == 0:
                ttls.append(ttl)
            elif section == 1 and record.type == QTYPE.SOA:
                has_soa = True
                ttls += [ttl, int.from_bytes(packet[record.end - 4 : record.end], "big"), _LONGEST_NEGATIVE]
    rcode = flags & RCODE
    keep = rcode in (NOERROR, NXDOMAIN) and (has_soa or not negative)
    return Answer(rcode, (kept[0], kept[1], kept[2]), packet[start:end], tuple(ttls_at), min(ttls) if keep else 0)


class Cache:
    """Answers by key; the oldest leave when there are more than `entries`, or more than `size` bytes."""

    def __init__(self, entries: int = 10_000, size: int = 8 << 20) -> None:
        self._most = entries
        self._size = size
        self._used = 0
        self._kept: dict[Key, tuple[float, Answer]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: Key, answer: Answer, now: float) -> None:
        if not answer.ttl:
            return
        self._drop(key)
        self._kept[key] = now, answer
        self._used += len(answer.body)
        while len(self._kept) > self._most or self._used > self._size:
            self._drop(next(iter(self._kept)))

    def get(self, key: Key, now: float, *, stale: bool = False) -> Answer | None:
        """The answer with its TTLs as of now; `stale`: also one that expired within the last hour."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        age = now - kept[0]
        if age >= kept[1].ttl + _STALE:
            self._drop(key)
            return None
        return kept[1].aged(age) if stale or age < kept[1].ttl else None

    def _drop(self, key: Key) -> None:
        if dropped := self._kept.pop(key, None):
            self._used -= len(dropped[1].body)
