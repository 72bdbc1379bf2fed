"""Many datagrams per system call: recvmmsg(2) and sendmmsg(2), which Python's socket module does not have.

A burst is received into memory that is laid out once, and answered from such memory, each reply to the sender
of its query and, on a socket of all addresses, by the address that was asked.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence
from typing import NamedTuple

from mesh.dns.wire import UDP_SIZE

_BURST = 64
"""Datagrams at once, so that TCP and timers have their turn too."""
_LARGEST_QUERY = 4096
"""A longer one is no query of ours and is cut, which makes it malformed."""
_NAME = 28  # bytes of the longest address that occurs, a sockaddr_in6
_CONTROL = 64  # bytes that hold one control message
_CONTROL_HEADER = ctypes.sizeof(ctypes.c_size_t) + 2 * ctypes.sizeof(ctypes.c_int)  # struct cmsghdr
_MOST_CLIENTS = 10_000


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Message(ctypes.Structure):
    """struct msghdr"""

    _fields_ = [("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32),
                ("iovec", ctypes.c_void_p), ("iovec_length", ctypes.c_size_t),
                ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int)]  # fmt: skip


class _Header(ctypes.Structure):
    """struct mmsghdr"""

    _fields_ = [("message", _Message), ("length", ctypes.c_uint32)]


_WORD = ctypes.sizeof(ctypes.c_size_t)  # an unsigned long, on Linux
_LENGTH = _Header.length.offset // 4, ctypes.sizeof(_Header) // 4  # of what came: the first, and the next; in uint32
_CONTROL_LENGTH = _Message.control_length.offset // _WORD, ctypes.sizeof(_Header) // _WORD  # in words

_library = ctypes.CDLL(None)
_receive_many, _send_many = _library.recvmmsg, _library.sendmmsg


class Sender(NamedTuple):
    """Where a reply goes, and by which of our addresses, as the kernel wrote it."""

    name: bytes
    control: bytes


class _Slots:
    """Headers with memory for their data, for one direction. `found`: how much came, slot by slot; `lengths`: how
    much is to be sent."""

    def __init__(self, size: int, names: memoryview, controls: memoryview | None) -> None:
        self._memory = (ctypes.c_char * (_BURST * size))()
        self._iovecs = (_Iovec * _BURST)()
        self.headers = (_Header * _BURST)()
        for slot in range(_BURST):
            iovec, message = self._iovecs[slot], self.headers[slot].message
            iovec.base, iovec.length = ctypes.addressof(self._memory) + slot * size, size
            message.iovec, message.iovec_length = ctypes.addressof(iovec), 1
            message.name, message.name_length = _address(names) + slot * _NAME, _NAME
            if controls:
                message.control, message.control_length = _address(controls) + slot * _CONTROL, _CONTROL
        self.data = memoryview(self._memory).cast("B")
        self.lengths = memoryview(self._iovecs).cast("B").cast("L")[1::2]
        self.found = memoryview(self.headers).cast("B").cast("I")[_LENGTH[0] :: _LENGTH[1]]
        self.control_lengths = memoryview(self.headers).cast("B").cast("L")[_CONTROL_LENGTH[0] :: _CONTROL_LENGTH[1]]


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Datagrams:
    """The bursts of one socket. `wildcard`: it is bound to all addresses, and asked to tell which was meant."""

    def __init__(self, sock: socket.socket, *, wildcard: bool) -> None:
        self._socket = sock
        self._ipv6 = sock.family == socket.AF_INET6
        self._names = memoryview(bytearray(_BURST * _NAME))
        self._controls = memoryview(bytearray(_BURST * _CONTROL)) if wildcard else None
        self._in = _Slots(_LARGEST_QUERY, self._names, self._controls)
        self._out = _Slots(UDP_SIZE, self._names, self._controls)
        self._clients: dict[bytes, str] = {}

    def receive(self) -> list[tuple[bytes, str]]:
        """What has come, at most a burst: each datagram with its sender's address."""
        slots, names, clients = self._in, self._names, self._clients
        data, found = slots.data, slots.found
        if self._controls:
            for slot in range(_BURST):
                slots.control_lengths[slot] = _CONTROL
        count = _receive_many(self._socket.fileno(), slots.headers, _BURST, 0, None)
        if self._controls:
            self._turn_controls(count)
        start, end = (8, 24) if self._ipv6 else (4, 8)  # where the address is in its sockaddr
        burst, at = [], 0
        for slot in range(count):
            host = names[start + slot * _NAME : end + slot * _NAME].tobytes()
            client = clients.get(host) or self._remember(host)
            burst.append((data[at : at + found[slot]].tobytes(), client))
            at += _LARGEST_QUERY
        return burst

    def reply(self, packets: Sequence[object]) -> tuple[list[int], int]:
        """Sends each packet to the sender of the datagram in its place.

        Returns the places that hold no bytes to be sent, and how many replies were lost: the queue is full, or
        there is no way back, and the client asks again.
        """
        data, lengths = self._out.data, self._out.lengths
        without: list[int] = []
        first = lost = at = 0
        for slot, packet in enumerate(packets):
            if isinstance(packet, bytes):
                lengths[slot] = length = len(packet)
                data[at : at + length] = packet
            else:
                without.append(slot)
                lost += self._send(first, slot)
                first = slot + 1
            at += UDP_SIZE
        return without, lost + self._send(first, len(packets))

    def sender(self, slot: int) -> Sender:
        """Whose datagram was in a place of the burst, for a reply that is not ready yet."""
        name = self._names[slot * _NAME :][:_NAME].tobytes()
        if not self._controls:
            return Sender(name, b"")
        return Sender(name, self._controls[slot * _CONTROL :][: self._out.control_lengths[slot]].tobytes())

    def reply_later(self, packet: bytes, sender: Sender) -> int:
        """Sends one packet, between bursts. Returns how many were lost."""
        self._names[:_NAME] = sender.name
        if self._controls:
            self._controls[: len(sender.control)] = sender.control
            self._out.control_lengths[0] = len(sender.control)
        return self.reply([packet])[1]

    def _send(self, first: int, end: int) -> int:
        lost = 0
        while first < end:
            headers = ctypes.byref(self._out.headers, first * ctypes.sizeof(_Header))
            sent = _send_many(self._socket.fileno(), headers, end - first, 0)
            if sent < 1:
                lost, sent = lost + 1, 1
            first += sent
        return lost

    def _turn_controls(self, count: int) -> None:
        """Makes of "it came to this address" "let it leave by this address"; the route chooses the interface."""
        assert self._controls
        for slot in range(count):
            self._out.control_lengths[slot] = self._in.control_lengths[slot]
            if not self._ipv6:
                interface = slot * _CONTROL + _CONTROL_HEADER  # in_pktinfo's first field
                self._controls[interface : interface + 4] = b"\0\0\0\0"

    def _remember(self, host: bytes) -> str:
        if len(self._clients) >= _MOST_CLIENTS:
            self._clients.clear()
        client = self._clients[host] = socket.inet_ntop(self._socket.family, host)
        return client
