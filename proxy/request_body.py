"""A request's body on its way to an endpoint."""

from __future__ import annotations

from mesh.proxy.body import LAST_CHUNK, Body, chunk

MAX_REPLAY = 64 * 1024
"""Bytes of a body that are kept for another try (Linkerd's)."""


class RequestBody:
    """Framed anew, and kept as long as it is short enough to be sent again."""

    __slots__ = ("_body", "_chunked", "_kept", "_size", "open")

    def __init__(self, body: Body, *, chunked: bool) -> None:
        self._body = body
        self._chunked = chunked
        self._kept: list[bytes] = []
        self._size = 0
        self.open = True  # it has not come whole yet

    @property
    def replayable(self) -> bool:
        """All that was taken from the client can be sent again."""
        return self._size <= MAX_REPLAY

    @property
    def so_far(self) -> bytes:
        """What has been taken from the client, to be sent (again)."""
        return b"".join(self._kept)

    def feed(self, data: bytes) -> tuple[bytes, bytes, int]:
        """What of `data` is to be sent, what lies behind the body's end, and how many bytes were payload.

        Raises:
            Malformed: if the body is not well framed.
        """
        payload, rest = self._body.feed(data)
        size = len(payload)
        self.open = not self._body.done
        if self._chunked:
            payload = chunk(payload) if payload else b""
            if not self.open:
                payload += LAST_CHUNK
        self._size += len(payload)
        if self.replayable:
            self._kept.append(payload)
        else:
            self._kept.clear()
        return payload, rest, size
