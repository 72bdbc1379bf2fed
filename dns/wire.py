"""From the bytes of a query to the bytes of its answer: the rules that do not depend on what is asked.

    QR set, or no whole header    silence
    not one readable question     FORMERR
    opcode other than QUERY       NOTIMP
    EDNS above version 0          BADVERS
    class other than IN, AXFR     REFUSED
    no Table yet                  SERVFAIL
    a name of ours                what the zone says
    anything else                 Forward

Sources: RFC 1035, RFC 2181 9 (truncation), RFC 6891 (EDNS), RFC 8906 (what a server must not be silent about).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby

from dnslib import QTYPE

from mesh.dns.message import (
    AA,
    COOKIE,
    COOKIE_HALF,
    DNSSEC_OK,
    HEADER,
    OPCODE,
    QR,
    RA,
    RCODE,
    RD,
    TC,
    Malformed,
    Query,
    Writer,
    read_query,
    read_question,
)
from mesh.dns.zone import BADVERS, FORMERR, NOERROR, NOTIMP, REFUSED, SERVFAIL, Answer, Record, Subject, Zone

UDP_SIZE = 1232
"""The largest UDP answer we send or invite: it fits unfragmented everywhere (DNS Flag Day 2020)."""
_PLAIN_UDP_SIZE = 512
_TCP_SIZE = 65535
_FEW = 8
"""As many addresses of a choice as an answer without EDNS holds."""
_OPT_RECORD = struct.Struct("!BHHBBHH")
_OPTION = struct.Struct("!HH")


class Transport(Enum):
    UDP = "udp"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class Ring:
    """A choice of addresses: records of equal width, any of which may lead; the packet has the first `shown`."""

    records: bytes
    width: int
    shown: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The packet to send. One that may be kept says from what it was derived."""

    packet: bytes
    rcode: int
    qtype: int = 0
    subject: Subject | None = None
    question_end: int = 0
    ring: Ring | None = None

    @property
    def cut(self) -> bool:
        return bool(self.packet[2] & TC >> 8)


@dataclass(frozen=True, slots=True)
class Forward:
    """Not ours: to be asked elsewhere, if this client may."""

    query: Query


def respond(
    data: bytes,
    transport: Transport,
    zone: Zone | None,
    *,
    recursion: bool = False,
    give_cookie: Callable[[bytes], bytes] | None = None,
) -> Reply | Forward | None:
    """What to do about a datagram or a message of a stream; None: nothing.

    `recursion` is what RA says. `give_cookie` makes the cookie to answer with from the client's half of it.
    """
    if not is_query(data):
        return None
    try:
        query = read_query(data)
    except Malformed:
        return bare_reply(data, NOTIMP if data[2] & OPCODE >> 8 else FORMERR)
    if give_cookie and query.edns and query.edns.cookie:
        query = replace(query, cookie=give_cookie(query.edns.cookie[:COOKIE_HALF]))
    if rcode := _objection(query, zone):
        return refuse(query, rcode, recursion=recursion)
    answer = zone.answer(query.question.labels, query.question.type) if zone else None
    if answer is None:
        return Forward(query)
    return _pack(query, answer, _limit(query, transport), recursion)


def is_query(data: bytes) -> bool:
    """False for what must be met with silence: answering answers makes loops."""
    return len(data) >= HEADER.size and not data[2] & 0x80


def _objection(query: Query, zone: Zone | None) -> int:
    """The rcode that says why a well-formed query is not looked into; 0: it is."""
    question = query.question
    if query.flags & OPCODE:
        return NOTIMP
    if query.edns and query.edns.version:
        return BADVERS
    if question.type in (QTYPE.OPT, QTYPE.TSIG):  # not to be asked for
        return FORMERR
    if question.qclass != 1 or question.type in (QTYPE.AXFR, QTYPE.IXFR):
        return REFUSED
    return SERVFAIL if zone is None else NOERROR


def bare_reply(data: bytes, rcode: int) -> Reply:
    """To what could not be read as a whole; with the question if that can be: clients match answers by it."""
    query_id, flags, questions, *_ = HEADER.unpack_from(data)
    try:
        question = read_question(data)[0].raw if questions == 1 else b""
    except Malformed:
        question = b""
    header = HEADER.pack(query_id, QR | flags & (OPCODE | RD) | rcode, 1 if question else 0, 0, 0, 0)
    return Reply(header + question, rcode)


def refuse(query: Query, rcode: int, *, recursion: bool = False) -> Reply:
    """An answer that only says why there is none."""
    flags = QR | query.flags & (OPCODE | RD) | (RA if recursion else 0) | rcode & RCODE
    header = HEADER.pack(query.id, flags, 1, 0, 0, 1 if query.edns else 0)
    opt = _opt(query, rcode) if query.edns else b""
    return Reply(header + query.question.raw + opt, rcode, query.question.type)


def ask_by_tcp(data: bytes) -> bytes | None:
    """An empty answer that is marked as cut; None: not to a query."""
    if not is_query(data):
        return None
    try:
        question, _ = read_question(data)
    except Malformed:
        return None
    flags = int.from_bytes(data[2:4], "big")
    return HEADER.pack(int.from_bytes(data[:2], "big"), QR | TC | flags & RD, 1, 0, 0, 0) + question.raw


def adapt(query: Query, transport: Transport, body: bytes, counts: tuple[int, int, int], rcode: int) -> Reply:
    """An answer of another server, as records that follow its question, in the words of this query."""
    limit = _limit(query, transport)
    flags = QR | RA | query.flags & RD | rcode & RCODE
    packet = b"".join((HEADER.pack(query.id, flags, 1, *counts), query.question.raw, body))
    if len(packet) + query.opt_length > limit:
        counts = (0, 0, 0)
        packet = HEADER.pack(query.id, flags | TC, 1, 0, 0, 0) + query.question.raw
    if query.edns:
        packet = b"".join((packet[:10], (counts[2] + 1).to_bytes(2, "big"), packet[12:], _opt(query, rcode)))
    return Reply(packet, rcode, query.question.type)


def _limit(query: Query, transport: Transport) -> int:
    if transport is Transport.TCP:
        return _TCP_SIZE
    return max(_PLAIN_UDP_SIZE, min(query.edns.size, UDP_SIZE)) if query.edns else _PLAIN_UDP_SIZE


def _opt(query: Query, rcode: int) -> bytes:
    """Ours: the rcode's upper bits, version 0, the DO bit as it came (RFC 3225), and a cookie for a cookie."""
    flags = query.edns.flags & DNSSEC_OK if query.edns else 0
    options = _OPTION.pack(COOKIE, len(query.cookie)) + query.cookie if query.cookie else b""
    return _OPT_RECORD.pack(0, QTYPE.OPT, UDP_SIZE, rcode >> 4, 0, flags, len(options)) + options


def _pack(query: Query, answer: Answer, limit: int, recursion: bool) -> Reply:
    room = limit - query.opt_length
    writer = Writer(query.question.raw)
    question_end = len(writer)
    flags = QR | AA | query.flags & RD | (RA if recursion else 0) | answer.rcode
    ring = None
    if answer.choice and len(answer.answer) > 1:
        few = _FEW if limit == _PLAIN_UDP_SIZE and not query.edns else len(answer.answer)
        ring = _write_ring(writer, answer.answer, room, few)
        written = ring.shown
    else:
        written = _write_what_fits(writer, answer.answer, room)
        if written < len(answer.answer) and limit != _TCP_SIZE:
            writer.cut(question_end)  # an RRset is whole or absent
            written = 0
            flags |= TC
    authority = _write_whole_sets(writer, answer.authority, room)
    additional = 0 if flags & TC else _write_whole_sets(writer, answer.additional, room)
    if query.edns:
        writer.append(_opt(query, answer.rcode))
        additional += 1
    writer.data[:12] = HEADER.pack(query.id, flags, 1, written, authority, additional)
    subject = None if query.cookie else answer.subject  # with a cookie it is this client's alone
    return Reply(bytes(writer.data), answer.rcode, query.question.type, subject, question_end, ring)


def _write_ring(writer: Writer, records: Sequence[Record], room: int, few: int) -> Ring:
    """Writes at most `few` of the records, in random order; as addresses of the question's own name they are alike."""
    start = len(writer)
    for record in random.sample(records, len(records)):
        writer.record(*record)
    ring = bytes(writer.data[start:])
    width = len(ring) // len(records)
    shown = min(few, (room - start) // width, len(records))
    writer.cut(start + shown * width)
    return Ring(ring, width, shown)


def _write_what_fits(writer: Writer, records: Iterable[Record], room: int) -> int:
    """Writes records until the room is used up; returns how many."""
    written = 0
    for record in records:
        before = len(writer)
        writer.record(*record)
        if len(writer) > room:
            writer.cut(before)
            break
        written += 1
    return written


def _write_whole_sets(writer: Writer, records: Iterable[Record], room: int) -> int:
    """Writes the RRsets that fit in whole; returns how many records that are."""
    written = 0
    for _, group in groupby(records, key=lambda record: (record.owner, record.type)):
        before, rrset = len(writer), list(group)
        if _write_what_fits(writer, rrset, room) < len(rrset):
            writer.cut(before)
            break
        written += len(rrset)
    return written
