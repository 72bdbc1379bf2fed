"""Where an HTTP/1 body ends: sans-I/O decoders, one per framing, and the encoding of chunks.

A decoder takes bytes as they come and gives back the payload and what lies behind the body's end. Bodies are
always framed anew for the other side, so what one side's parser might read differently never travels:
chunk extensions and trailers are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_CHUNK_LINE = 256
MAX_TRAILERS = 8192

LAST_CHUNK = b"0\r\n\r\n"

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class Malformed(Exception):
    """Bytes that are not the message they claim to be; the text says what is wrong."""


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


_State = Callable[[bytes, int, list[bytes]], int]


class LengthBody:
    """A body of a known length."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The payload in `data`, and the bytes after the body's end."""
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return data, b""
        self.done = True
        if left == 0:
            return data, b""
        return data[: self._left], data[self._left :]


class UntilCloseBody:
    """A body that ends when its connection does."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


class ChunkedBody:
    """`Transfer-Encoding: chunked`, read strictly: CRLF only, bounded lines, trailers checked and dropped."""

    __slots__ = ("_buffer", "_left", "_state", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._state: _State = self._size
        self._buffer = b""
        self._left = 0
        self._trailers = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The payload in `data`, and the bytes after the body's end.

        Raises:
            Malformed: if the chunks are not well formed.
        """
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        payload: list[bytes] = []
        position = 0
        while not self.done and (moved := self._state(data, position, payload)) >= 0:
            position = moved
        rest = data[position:]
        if not self.done:
            self._buffer, rest = rest, b""
        return payload[0] if len(payload) == 1 else b"".join(payload), rest

    # Each state reads from `position` and returns where it stopped, or -1 if it needs more bytes.

    def _size(self, data: bytes, position: int, _: list[bytes]) -> int:
        end = _line_end(data, position, MAX_CHUNK_LINE, "chunk size")
        if end < 0:
            return -1
        match = _SIZE_LINE.fullmatch(data, position, end)
        if match is None:
            raise Malformed("a chunk size that is not a hexadecimal number")
        self._left = int(match[1], 16)
        if self._left:
            self._state = self._data
        else:
            self._state = self._trailer
        return end + 2

    def _data(self, data: bytes, position: int, payload: list[bytes]) -> int:
        if position == len(data):
            return -1
        piece = data[position : position + self._left]
        payload.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._state = self._data_end
        return position + len(piece)

    def _data_end(self, data: bytes, position: int, _: list[bytes]) -> int:
        end = data[position : position + 2]
        if not b"\r\n".startswith(end):
            raise Malformed("a chunk longer or shorter than its size")
        if len(end) < 2:
            return -1
        self._state = self._size
        return position + 2

    def _trailer(self, data: bytes, position: int, _: list[bytes]) -> int:
        end = _line_end(data, position, MAX_TRAILERS - self._trailers, "trailers")
        if end < 0:
            return -1
        self._trailers += end - position
        if end == position:
            self.done = True
        elif _TRAILER_LINE.fullmatch(data, position, end) is None:
            raise Malformed("a trailer that is not a field")
        return end + 2


def _line_end(data: bytes, position: int, limit: int, what: str) -> int:
    """Where the line from `position` ends; -1 if its end has not come yet."""
    end = data.find(b"\r\n", position, position + limit + 2)
    if end >= 0:
        return end
    if len(data) - position > limit + 1:
        raise Malformed(f"{what} longer than {limit} bytes")
    if b"\n" in data[position:]:
        raise Malformed(f"a bare line feed in the {what}")
    return -1


Body = LengthBody | ChunkedBody | UntilCloseBody
