"""Reading DNS messages that may hold anything, and writing ours.

dnslib writes the record data. Reading is done here, since its parser builds every record before one may say
no, refuses labels that are no UTF-8, and follows pointers by recursion.

Sources: RFC 1035 4 (messages), RFC 6891 (EDNS), RFC 9619 (one question).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

from dnslib import QTYPE, DNSLabel

from mesh.dns.names import Labels

HEADER = struct.Struct("!HHHHHH")
_TYPE_CLASS = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_OPTION = struct.Struct("!HH")

QR, AA, TC, RD, RA, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
OPCODE, RCODE = 0x7800, 0x000F
DNSSEC_OK = 0x8000  # among the flags of EDNS
COOKIE = 10  # EDNS option, RFC 7873
COOKIE_HALF = 8  # bytes that the client chose

_LONGEST_NAME = 255  # bytes in a message, RFC 1035 2.3.4
_POINTER = 0xC000


class Malformed(ValueError):
    """The bytes are no DNS message."""


class Edns(NamedTuple):
    """What the sender says in its OPT record."""

    size: int
    version: int
    flags: int
    cookie: bytes | None


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `raw` has its bytes, and so the letter case, as they were sent."""

    raw: bytes
    labels: Labels
    type: int
    qclass: int


@dataclass(frozen=True, slots=True)
class Query:
    """`cookie` is the one to answer with."""

    id: int
    flags: int
    question: Question
    edns: Edns | None
    cookie: bytes = b""

    @property
    def opt_length(self) -> int:
        """Bytes that our OPT record takes in the answer."""
        if self.edns is None:
            return 0
        return 11 + (4 + len(self.cookie) if self.cookie else 0)

    @property
    def recursion_desired(self) -> bool:
        return bool(self.flags & RD)


def read_question(data: bytes) -> tuple[Question, int]:
    """The first question and where it ends. Raises: Malformed."""
    labels, end = _question_name(data)
    if end + 4 > len(data):
        raise Malformed("cut within the question")
    qtype, qclass = _TYPE_CLASS.unpack_from(data, end)
    return Question(data[12 : end + 4], labels, qtype, qclass), end + 4


def _question_name(data: bytes) -> tuple[Labels, int]:
    """The labels in lower case; a compressed name is malformed, since nothing stands before it."""
    labels, at = [], 12
    while at < len(data) and (length := data[at]):
        if length > 63:
            raise Malformed("a pointer in the question" if length >= 0xC0 else "an unknown kind of label")
        labels.append(data[at + 1 : at + 1 + length].lower().decode("latin-1"))
        at += 1 + length
    if at >= len(data):
        raise Malformed("cut within a name")
    if at + 1 - 12 > _LONGEST_NAME:
        raise Malformed("a name of more than 255 bytes")
    return tuple(labels), at + 1


def read_query(data: bytes) -> Query:
    """A query with one question. Raises: Malformed."""
    if len(data) < HEADER.size:
        raise Malformed("cut within the header")
    query_id, flags, questions, answers, authorities, additionals = HEADER.unpack_from(data)
    if questions != 1:
        raise Malformed(f"{questions} questions")
    question, at = read_question(data)
    if answers or (authorities and question.type != QTYPE.IXFR) or authorities > 1 or additionals > 2:
        raise Malformed("records that no query has")
    edns = None
    for _ in range(authorities + additionals):
        record = read_record(data, at)
        at = record.end
        if record.type == QTYPE.OPT:
            if edns is not None or not record.at_root:
                raise Malformed("a second OPT record, or one that is not the root's")
            cookie = _read_cookie(data[record.data : record.end])
            edns = Edns(record.qclass, record.ttl >> 16 & 0xFF, record.ttl & 0xFFFF, cookie)
    if at != len(data):
        raise Malformed("bytes after the message")
    return Query(query_id, flags, question, edns)


def _read_cookie(options: bytes) -> bytes | None:
    """The cookie among EDNS options, if there is one; we know no others."""
    cookie, at = None, 0
    while at < len(options):
        if at + 4 > len(options):
            raise Malformed("cut within an EDNS option")
        code, length = _OPTION.unpack_from(options, at)
        at += 4 + length
        if code == COOKIE and cookie is None:
            if length != COOKIE_HALF and not 16 <= length <= 40:
                raise Malformed("a cookie of a length that none has")
            cookie = options[at - length : at]
    if at != len(options):
        raise Malformed("cut within an EDNS option")
    return cookie


class RawRecord(NamedTuple):
    """Where a record lies in its message."""

    start: int
    at_root: bool
    type: int
    qclass: int
    ttl: int
    ttl_at: int
    data: int
    end: int


def read_record(data: bytes, at: int) -> RawRecord:
    """The record at `at`. Raises: Malformed."""
    start, at = at, skip_name(data, at)
    if at + 10 > len(data):
        raise Malformed("cut within a record")
    rtype, rclass, ttl, length = _RECORD.unpack_from(data, at)
    end = at + 10 + length
    if end > len(data):
        raise Malformed("cut within a record's data")
    return RawRecord(start, at - start == 1, rtype, rclass, ttl, at + 4, at + 10, end)


def skip_name(data: bytes, at: int) -> int:
    """Where the name at `at` ends; pointers are not followed. Raises: Malformed."""
    while at < len(data):
        length = data[at]
        if length >= 0xC0:
            if at + 1 >= len(data):
                break
            return at + 2
        if length > 63:
            raise Malformed("an unknown kind of label")
        at += 1 + length
        if length == 0:
            return at
    raise Malformed("cut within a name")


class Writer:
    """A message being written; takes the part of dnslib's buffer when a record's data writes itself.

    Names are compressed against what was written before without regard to case (RFC 1035 4.1.4), so the
    asker's spelling of a name serves for all that end in it.
    """

    def __init__(self, question: bytes) -> None:
        self.data = bytearray(12) + question
        self._names: dict[Labels, int] = {}
        if question:
            labels, _ = _question_name(bytes(self.data))
            self._remember(labels, 12)

    def __len__(self) -> int:
        return len(self.data)

    def record(self, owner: DNSLabel, rtype: int, ttl: int, data: Any, rclass: int = 1) -> None:
        self.encode_name(owner)
        self.data += _RECORD.pack(rtype, rclass, ttl, 0)
        start = len(self.data)
        data.pack(self)
        self.data[start - 2 : start] = (len(self.data) - start).to_bytes(2, "big")

    def cut(self, length: int) -> None:
        """Forgets what was written after the first `length` bytes."""
        del self.data[length:]
        self._names = {name: at for name, at in self._names.items() if at < length}

    def pack(self, form: str, *values: int) -> None:
        self.data += struct.pack(form, *values)

    def append(self, data: bytes) -> None:
        self.data += data

    def encode_name(self, name: DNSLabel) -> None:
        labels = tuple(label.lower().decode("latin-1") for label in name.label)
        for index in range(len(labels)):
            if (known := self._names.get(labels[index:])) is not None:
                self._write(name.label[:index], labels)
                self.data += (_POINTER | known).to_bytes(2, "big")
                return
        self.encode_name_nocompress(name)

    def encode_name_nocompress(self, name: DNSLabel) -> None:
        self._write(name.label, tuple(label.lower().decode("latin-1") for label in name.label))
        self.data += b"\0"

    def _write(self, raw: tuple[bytes, ...], labels: Labels) -> None:
        if sum(map(len, labels)) + len(labels) >= _LONGEST_NAME or any(len(label) > 63 for label in labels):
            raise ValueError(f"too long for a name: {'.'.join(labels)}")
        self._remember(labels[: len(raw)], len(self.data), labels[len(raw) :])
        for label in raw:
            self.data += bytes((len(label),)) + label

    def _remember(self, labels: Labels, at: int, rest: Labels = ()) -> None:
        for index, label in enumerate(labels):
            if at >= 0x4000:  # beyond the reach of a pointer
                return
            self._names.setdefault(labels[index:] + rest, at)
            at += 1 + len(label)
