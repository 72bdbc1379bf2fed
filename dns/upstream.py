"""Asking one other server: a fresh socket with a random port and a random ID, its answer checked, TCP when cut.

Source: RFC 5452 9 (what an answer must match).
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from mesh.dns import sockets
from mesh.dns.cache import Answer, Key, read_answer
from mesh.dns.message import CD, HEADER, QR, RD, TC, Malformed, read_question
from mesh.dns.wire import UDP_SIZE
from mesh.dns.zone import NOERROR, NXDOMAIN

_LONGEST_REST = 30.0


class UpstreamError(Exception):
    """No usable answer."""


class Upstream:
    """One server and how well it has answered."""

    def __init__(self, host: str, port: int = 53) -> None:
        self.host = host
        self.port = port
        self._failures = 0
        self._rests_until = 0.0

    def __str__(self) -> str:
        return sockets.show_address(self.host, self.port)

    def is_down(self, now: float) -> bool:
        return now < self._rests_until

    def failed(self, now: float) -> None:
        """It is asked after the others for a while: 1 s, 2 s, … 30 s."""
        self._rests_until = now + min(2.0**self._failures, _LONGEST_REST)
        self._failures = min(self._failures + 1, 8)

    def answered(self) -> None:
        self._failures = 0
        self._rests_until = 0.0

    async def ask(self, key: Key, question: bytes, timeout: float) -> Answer:
        """Raises: UpstreamError, OSError, TimeoutError."""
        async with asyncio.timeout(timeout):
            packet = await self._ask_udp(key, question)
            if int.from_bytes(packet[2:4], "big") & TC:
                packet = await self._ask_tcp(key, question)
        try:
            answer = read_answer(packet)
        except Malformed as error:
            raise UpstreamError(f"{self}: {error}") from None
        if answer.rcode not in (NOERROR, NXDOMAIN):
            raise UpstreamError(f"{self}: rcode {answer.rcode}")
        return answer

    async def _ask_udp(self, key: Key, question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        query_id = _random_id()
        received: asyncio.Future[bytes] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Exchange(received, query_id, question), remote_addr=(self.host, self.port)
        )
        try:
            transport.sendto(_query(query_id, key, question))
            return await received
        finally:
            transport.close()

    async def _ask_tcp(self, key: Key, question: bytes) -> bytes:
        query_id = _random_id()
        packet = _query(query_id, key, question)
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(len(packet).to_bytes(2, "big") + packet)
            length = int.from_bytes(await reader.readexactly(2), "big")
            answer = await reader.readexactly(length)
        except asyncio.IncompleteReadError:
            raise UpstreamError(f"{self}: closed the connection") from None
        finally:
            writer.close()
        if not _matches(answer, query_id, question):
            raise UpstreamError(f"{self}: answered another question")
        return answer


class _Exchange(asyncio.DatagramProtocol):
    """Waits for the answer; what does not match is not it (a late or a forged one), and is passed over."""

    def __init__(self, received: asyncio.Future[bytes], query_id: int, question: bytes) -> None:
        self._received = received
        self._query_id = query_id
        self._question = question

    def datagram_received(self, data: bytes, address: object) -> None:
        if not self._received.done() and _matches(data, self._query_id, self._question):
            self._received.set_result(data)

    def error_received(self, error: Exception) -> None:
        if not self._received.done():
            self._received.set_exception(error)


def _random_id() -> int:
    return int.from_bytes(os.urandom(2), "big")


def _query(query_id: int, key: Key, question: bytes) -> bytes:
    dnssec, unchecked = key.flags
    opt = b"\0\0\x29" + UDP_SIZE.to_bytes(2, "big") + b"\0\0" + dnssec.to_bytes(2, "big") + b"\0\0"
    return HEADER.pack(query_id, RD | unchecked & CD, 1, 0, 0, 1) + question + opt


def _matches(data: bytes, query_id: int, question: bytes) -> bool:
    if len(data) < HEADER.size:
        return False
    found_id, flags, questions, *_ = HEADER.unpack_from(data)
    if found_id != query_id or not flags & QR or questions != 1:
        return False
    try:
        return read_question(data)[0].raw.lower() == question.lower()
    except Malformed:
        return False


class ResolvConf:
    """The `nameserver`s of a resolv.conf, read again when the file has changed."""

    def __init__(self, path: Path = Path("/etc/resolv.conf")) -> None:
        self._path = path
        self._read: tuple[int, int] | None = None
        self._upstreams: list[Upstream] = []

    def upstreams(self) -> list[Upstream]:
        try:
            found = self._path.stat()
            if self._read != (stamp := (found.st_mtime_ns, found.st_ino)):
                self._read = stamp
                self._upstreams = [Upstream(host) for host in _nameservers(self._path.read_text())]
        except (OSError, UnicodeDecodeError):
            pass  # being replaced: the last ones known serve
        return self._upstreams


def _nameservers(text: str) -> list[str]:
    words = (line.split() for line in text.splitlines())
    hosts = [line[1] for line in words if len(line) >= 2 and line[0] == "nameserver"]
    return [host for host in dict.fromkeys(hosts) if _is_address(host)]


def _is_address(host: str) -> bool:
    try:
        sockets.parse_address(f"[{host}]")
    except ValueError:
        return False
    return True


def is_this_host(host: str) -> bool:
    """Whether an address is one of this host's own."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, 0))
        except OSError:
            return False
    return True
