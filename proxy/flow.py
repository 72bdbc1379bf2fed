"""One direction of a TCP session: bytes as they come, and the end when it comes.

Small pieces go through a buffer; as soon as they come by the bufferful, through a pipe, unseen. Only what the sink
does not take at once is held, and then the source is not read: at most a buffer or a pipe per direction.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Protocol

from mesh.proxy.splice import Pipe, Pipes

BULK = 16 * 1024
"""Bytes in one read from which splicing is worth its calls."""

READS = 16
"""In a row, before others get their turn."""

_BUFFER = bytearray(64 * 1024)
_VIEW = memoryview(_BUFFER)  # shared by all flows: what a sink does not take is copied
_NOTHING, _BROKEN = -1, -2  # beside numbers of bytes; 0 is the end


class Session(Protocol):
    """Whose flow it is. A flow does nothing more once it was `ended`, `broken` or `unwanted`."""

    def moved(self, flow: Flow, count: int) -> None:
        """Bytes have come."""

    def ended(self, flow: Flow) -> None:
        """The source has ended, and all that it sent went on."""

    def broken(self, flow: Flow) -> None:
        """The source was reset."""

    def unwanted(self, flow: Flow) -> None:
        """The sink takes no more, for ever."""


class Flow:
    """From `source` to `sink`, which must both be non-blocking and stay open until `stop`."""

    __slots__ = ("_bulk", "_held", "_loop", "_pipe", "_pipes", "_session", "_source", "_waiting", "done", "sink")

    def __init__(self, session: Session, source: socket.socket, sink: socket.socket, pipes: Pipes) -> None:
        self.done = False
        self._session = session
        self._source = source
        self.sink = sink
        self._pipes = pipes
        self._loop = asyncio.get_running_loop()
        self._pipe: Pipe | None = None  # with bytes for the sink
        self._held: memoryview | bytes = b""  # likewise
        self._bulk = False
        self._waiting = False  # for the sink

    def start(self, first: bytes = b"") -> None:
        """Sends `first`, then what comes."""
        self._loop.add_reader(self._source, self._read)
        if first:
            self._held = first
            self._write()

    def stop(self) -> None:
        """Neither reads nor writes any more."""
        if self.done:
            return
        self.done = True
        if self._waiting:
            self._loop.remove_writer(self.sink)
        else:
            self._loop.remove_reader(self._source)
        self._give_pipe_back()

    def _read(self) -> None:
        """The source has something, or has ended.

        All of it is read: where a reset waits behind the last bytes, uvloop tells of both at once, and never again.
        """
        for _ in range(READS):
            if not self._move():
                return
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not (self.done or self._waiting):
            self._read()

    def _move(self) -> bool:
        """One read, and what the sink takes of it; True if there may be more to read now."""
        pipe = self._pipes.take() if self._bulk else None
        if pipe is None:
            count = self._receive()
            self._held = _VIEW[:count] if count > 0 else b""
        else:
            count = self._fill(pipe)
            self._pipe = pipe
        if count > 0:
            self._bulk = count >= BULK
            self._session.moved(self, count)
            self._write()
            return not (self.done or self._waiting)
        if count == _NOTHING:
            self._give_pipe_back()
        elif count == _BROKEN:
            self.stop()
            self._session.broken(self)
        else:
            self.stop()
            self._session.ended(self)
        return False

    def _receive(self) -> int:
        try:
            return self._source.recv_into(_BUFFER)
        except BlockingIOError:
            return _NOTHING
        except OSError:
            return _BROKEN

    def _fill(self, pipe: Pipe) -> int:
        try:
            return pipe.fill(self._source.fileno())
        except BlockingIOError:
            return _NOTHING
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                return _BROKEN
            self._pipes.forbid()  # by the sandbox that we run in
            return _NOTHING

    def _write(self) -> None:
        """To the sink, what it takes of what is held."""
        try:
            if self._pipe is not None:
                self._pipe.empty(self.sink.fileno())
                self._give_pipe_back()
            else:
                sent = self.sink.send(self._held)
                self._held = bytes(self._held[sent:]) if sent < len(self._held) else b""
        except BlockingIOError:
            self._held = bytes(self._held)
        except OSError:
            self.stop()
            self._session.unwanted(self)
            return
        self._wait(bool(self._held or self._pipe))

    def _wait(self, waiting: bool) -> None:
        """Waits for the sink, or reads the source; never both."""
        if waiting == self._waiting:
            return
        self._waiting = waiting
        if waiting:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self.sink, self._write)
        else:
            self._loop.remove_writer(self.sink)
            self._loop.add_reader(self._source, self._read)

    def _give_pipe_back(self) -> None:
        if self._pipe is not None:
            self._pipes.give(self._pipe)
            self._pipe = None
