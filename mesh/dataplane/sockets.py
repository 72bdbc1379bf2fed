"""Listening sockets that outlive the worker which opened them, so that its successor goes on with the very same queue.

A worker opens what the Table wants and gives its supervisor a copy of each socket (SCM_RIGHTS, `unix(7)`); the
supervisor only keeps them, and the next process of that place is born with them. No connection is lost that waits in
the queue of a worker which is replaced, or which crashed. systemd's file descriptor store works like this.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

BATCH = 200
"""Descriptors in one message; the kernel allows 253."""
_MESSAGE = 64 * 1024
_SPARE = 512
"""Descriptors that a supervisor needs for other things."""


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """What a worker sends: the places whose sockets come along, in their order, and those that it closed."""

    worker: str
    pid: int
    kept: list[str]
    closed: list[str]


class Offers:
    """A worker's side: what its supervisor has copies of."""

    def __init__(self, path: Path, worker: str, inherited: Mapping[str, int]) -> None:
        """`inherited`: those that this process was born with."""
        self._path = path
        self._worker = worker
        self._given = dict(inherited)

    def forget(self) -> None:
        """The supervisor is a new one."""
        self._given = {}

    def give(self, sockets: Mapping[str, int]) -> None:
        """The sockets that are open now, by their places. Tried again at the next call where it fails."""
        if sockets == self._given:
            return
        new = [place for place in sockets if self._given.get(place) != sockets[place]]
        closed = [place for place in self._given if place not in sockets]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as way:
                way.connect(os.fspath(self._path))
                for first in range(0, max(len(new), 1), BATCH):
                    places = new[first : first + BATCH]
                    message = msgspec.msgpack.encode(Offer(self._worker, os.getpid(), places, [] if first else closed))
                    socket.send_fds(way, [message], [sockets[place] for place in places])
        except OSError as error:
            log.debug("cannot give sockets to the supervisor: %s", error)
        else:
            self._given = dict(sockets)


class Shelf:
    """A supervisor's side: the sockets of its workers, by worker and place."""

    def __init__(self, path: Path, accepts: Callable[[str, int], bool]) -> None:
        """`accepts`: whether a worker and its process id are ours. Nothing is kept for others: a socket that nobody
        accepts on would swallow connections."""
        self._path = path
        self._accepts = accepts
        self._kept: dict[str, dict[str, int]] = {}
        self._socket: socket.socket | None = None
        self._ways: set[socket.socket] = set()

    def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._socket.bind(os.fspath(self._path))
        os.chmod(self._path, 0o600)
        self._socket.listen(128)
        asyncio.get_running_loop().add_reader(self._socket, self.collect)

    def collect(self) -> None:
        """Takes what workers have sent; at once, for one whose worker is about to get a successor."""
        assert self._socket is not None
        try:
            while True:
                way, _ = self._socket.accept()
                way.setblocking(False)
                self._ways.add(way)
                asyncio.get_running_loop().add_reader(way, self._read, way)
        except OSError:  # none is waiting, or there are no descriptors for it: then it comes again
            pass
        for way in [*self._ways]:
            self._read(way)

    def _read(self, way: socket.socket) -> None:
        try:
            while True:
                message, descriptors, *_ = socket.recv_fds(way, _MESSAGE, BATCH)
                for descriptor in descriptors:  # a replica would keep it open and never accept
                    os.set_inheritable(descriptor, False)
                if not message:
                    break
                self._take(message, descriptors)
        except BlockingIOError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("a worker's sockets cannot be kept: %s", error)
        self._close(way)

    def _close(self, way: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(way)
        self._ways.discard(way)
        way.close()

    def _take(self, message: bytes, descriptors: Iterable[int]) -> None:
        offer = msgspec.msgpack.decode(message, type=Offer)
        if not self._accepts(offer.worker, offer.pid):
            for descriptor in descriptors:
                os.close(descriptor)
            return
        kept = self._kept.setdefault(offer.worker, {})
        for place in offer.closed:
            self._drop(kept, place)
        for place, descriptor in zip(offer.kept, descriptors, strict=False):
            self._drop(kept, place)
            kept[place] = descriptor
        self._allow_more()

    def _drop(self, kept: dict[str, int], place: str) -> None:
        if (descriptor := kept.pop(place, None)) is not None:
            os.close(descriptor)

    def _allow_more(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * sum(map(len, self._kept.values())) + _SPARE
        if wanted > soft != resource.RLIM_INFINITY:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

    def of(self, worker: str) -> Mapping[str, int]:
        """The sockets that `worker`'s next process is to be born with."""
        self.collect()
        return self._kept.get(worker, {})

    def close(self) -> None:
        """Lets go of all of them."""
        if self._socket is None:
            return
        for way in [*self._ways]:
            self._close(way)
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        self._path.unlink(missing_ok=True)
        for kept in self._kept.values():
            for place in [*kept]:
                self._drop(kept, place)
