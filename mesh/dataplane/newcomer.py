"""A worker's process before it has a place: it has imported what serving needs, and waits to hear which place is its.

Importing is nearly all of what a start takes: 0.1 s of a core, and several times that on a busy host. So where workers
of one kind share the work, one more stands by, and takes the place of one that crashed within milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence

import msgspec

from mesh.dataplane.sockets import BATCH

log = logging.getLogger(__name__)

STAND_BY_AFTER = 1.0
"""Seconds from filling a place to the start of the next that stands by: first come those that serve."""

_SMALL = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""mallopt(3): memory for a snapshot of the Table goes back to the system when it has been read."""

_SECRETS = ("CONSUL_HTTP_TOKEN", "MESH_ADMIN_TOKEN")


class Place(msgspec.Struct, frozen=True):
    """Which worker a process is, and the listening sockets it is born with, by their places."""

    number: int
    sockets: dict[str, int]


class Newcomer:
    """The supervisor's side of one."""

    def __init__(self, command: Callable[[int], Sequence[str]], inherit: Sequence[int]) -> None:
        """`command`: for the descriptor on which it hears of its place; `inherit`: descriptors it keeps open."""
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        environment |= _SMALL | {"MESH_LOG_LEVEL": logging.getLevelName(log.getEffectiveLevel())}
        self._way, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._way.setblocking(False)
        with theirs:
            self.child = subprocess.Popen(
                command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is the supervisor's business
                env=environment,
                pass_fds=(*inherit, theirs.fileno()),
            )

    def give_place(self, number: int, sockets: Mapping[str, int]) -> None:
        """Raises OSError if it is not there any more."""
        told = os.memfd_create("place")
        try:
            os.write(told, msgspec.json.encode(Place(number, dict(sockets))))
            os.lseek(told, 0, os.SEEK_SET)
            descriptors = [told, *sockets.values()]
            for first in range(0, len(descriptors), BATCH):
                socket.send_fds(self._way, [b"."], descriptors[first : first + BATCH])
        finally:
            os.close(told)
            self._way.close()

    def dismiss(self) -> None:
        self._way.close()
        self.child.kill()
        self.child.wait()


def hear_of_place(descriptor: int) -> Place | None:
    """The newcomer's side: waits for its place; None if there will be none."""
    found: list[int] = []
    with socket.socket(fileno=descriptor) as way:
        while True:
            message, descriptors, *_ = socket.recv_fds(way, 1, BATCH)
            if not message:
                break
            found += descriptors
    if not found:
        return None
    with open(found[0], "rb") as file:
        told = msgspec.json.decode(file.read(), type=Place)
    return Place(told.number, dict(zip(told.sockets, found[1:], strict=True)))


class Newcomers:
    """Starts the processes of workers that are alike."""

    def __init__(self, command: Callable[[int], Sequence[str]], inherit: Sequence[int], *, stand_by: bool) -> None:
        """`command` and `inherit`: as of a Newcomer; `stand_by`: one is to be kept ready."""
        self._command = command
        self._inherit = inherit
        self._wanted = stand_by
        self._standing_by: Newcomer | None = None
        self._timer: asyncio.TimerHandle | None = None

    def fill(self, number: int, sockets: Mapping[str, int], *, at_once: bool) -> subprocess.Popen[bytes]:
        """A process for this place; `at_once`: the one that stands by, if there is one."""
        if at_once and self._standing_by is not None:
            newcomer, self._standing_by = self._standing_by, None
            try:
                newcomer.give_place(number, sockets)
            except OSError:  # somebody ended it
                newcomer.dismiss()
            else:
                self.stand_by_soon()
                return newcomer.child
        newcomer = Newcomer(self._command, self._inherit)
        with contextlib.suppress(OSError):  # it has ended already, which is found out as for all others
            newcomer.give_place(number, sockets)
        self.stand_by_soon()
        return newcomer.child

    def stand_by_soon(self) -> None:
        if self._wanted and self._standing_by is None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STAND_BY_AFTER, self._stand_by)

    def _stand_by(self) -> None:
        self._timer = None
        self._standing_by = Newcomer(self._command, self._inherit)

    def dismiss(self) -> None:
        """Ends the one that stands by; the next is started with the next place that is filled."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._standing_by is not None:
            self._standing_by.dismiss()
            self._standing_by = None
