"""Pipes for splice(2): bytes go from socket to socket inside the kernel.

A pipe is needed only while bytes are in it, so a few serve any number of connections, and idle ones hold none.
"""

from __future__ import annotations

import fcntl
import os

PIPE_BYTES = 512 * 1024
"""What a pipe holds, and so what is under way to a receiver that does not keep up."""
MAX_PIPES = 128
"""Per worker: with more receivers that do not keep up, the further ones are served by copying."""
KEPT_PIPES = 16
"""Empty pipes kept for the next turn."""

SPLICE = hasattr(os, "splice")
"""Linux has it, and Python from 3.10 on."""


class Pipe:
    """Bytes on their way from one socket to another."""

    __slots__ = ("_inlet", "_outlet", "filled")

    def __init__(self) -> None:
        self._outlet, self._inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.filled = 0
        try:
            fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # over the user's limit (fs.pipe-user-pages-soft): it is as large as the kernel lets it be

    def fill(self, source: int) -> int:
        """Takes what a socket has: the number of bytes, 0 at its end.

        Raises:
            OSError: BlockingIOError where there is nothing yet; with errno EINVAL where this cannot be spliced.
        """
        count = os.splice(source, self._inlet, PIPE_BYTES, flags=_FLAGS)
        self.filled += count
        return count

    def empty(self, sink: int) -> None:
        """Gives all to a socket. Raises OSError, BlockingIOError while it takes no more."""
        while self.filled:
            self.filled -= os.splice(self._outlet, sink, self.filled, flags=_FLAGS)

    def close(self) -> None:
        os.close(self._inlet)
        os.close(self._outlet)


_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK if SPLICE else 0


class Pipes:
    """The pipes of one worker."""

    def __init__(self, most: int = MAX_PIPES if SPLICE else 0) -> None:
        self._most = most
        self._used = 0
        self._kept: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe; None if there is none to be had."""
        if self._used >= self._most:
            return None
        try:
            pipe = self._kept.pop() if self._kept else Pipe()
        except OSError:  # no descriptor is left
            return None
        self._used += 1
        return pipe

    def forbid(self) -> None:
        """No more pipes: splice(2) does not work here."""
        self._most = 0

    def give(self, pipe: Pipe) -> None:
        """Takes a pipe back."""
        self._used -= 1
        if pipe.filled or len(self._kept) >= KEPT_PIPES:
            pipe.close()
        else:
            self._kept.append(pipe)

    def close(self) -> None:
        for pipe in self._kept:
            pipe.close()
        self._kept = []
