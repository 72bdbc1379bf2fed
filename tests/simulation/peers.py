"""The network between the hosts: datagrams of the probes, and connections that somebody takes or refuses.

The kernel of a host answers where no process does: a port without a process refuses, a frozen one accepts.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from mesh.probing import Echo
from tests.simulation.clock import PROCESS, Process, VirtualLoop

PORT = 7070


class Cable:
    """A machine's way to the network."""

    def __init__(self) -> None:
        self.deaf = False  # nothing arrives
        self.mute = False  # nothing leaves
        self.loss = 0.0  # share of what arrives that is lost

    def heal(self) -> None:
        self.deaf = self.mute = False
        self.loss = 0.0


class Machine:
    """What the network sees of a host: is it on, and does an agent listen?"""

    def __init__(self) -> None:
        self.is_on = False
        self.process: Process | None = None
        self.echo: SimulatedEcho | None = None


class Peers:
    """All machines and their cables."""

    def __init__(self, loop: VirtualLoop, choose: random.Random) -> None:
        self.loop = loop
        self.machines: dict[str, Machine] = {}
        self.cables: dict[str, Cable] = {}
        self._choose = choose
        loop.connect = self._connect

    def trip(self) -> float:
        return self._choose.uniform(0.0001, 0.002)

    def is_lost(self, sender: str, receiver: str) -> bool:
        out, into = self.cables.get(sender), self.cables.get(receiver)
        if (out and out.mute) or (into and into.deaf):
            return True
        return bool(into and into.loss and self._choose.random() < into.loss)

    def send(self, sender: Datagrams, data: bytes) -> None:
        self.loop.later(self.trip(), self._arrive, sender, data)

    def _arrive(self, sender: Datagrams, data: bytes) -> None:
        machine = self.machines.get(sender.peer[0])
        if machine is None or not machine.is_on or self.is_lost(sender.name, sender.peer[0]):
            return
        if machine.process is None or machine.process.dead or machine.echo is None:
            self._return(sender, ConnectionRefusedError())
        else:
            machine.echo.take(data, sender, machine.process)

    def _return(self, to: Datagrams, data: bytes | Exception) -> None:
        if not self.is_lost(to.peer[0], to.name):
            self.loop.later(self.trip(), to.arrive, data)

    def answer(self, to: Datagrams, data: bytes) -> None:
        self._return(to, data)

    async def _connect(self, host: str) -> None:
        sender = PROCESS.get()
        name = sender.name if sender else ""
        await asyncio.sleep(2 * self.trip())
        machine = self.machines.get(host)
        if machine is None or not machine.is_on or self.is_lost(name, host) or self.is_lost(host, name):
            await asyncio.sleep(60.0)
            raise TimeoutError
        if machine.process is None or machine.process.dead:
            raise ConnectionRefusedError


class SimulatedEcho(Echo):
    """An agent's answer to probes."""

    def __init__(self, peers: Peers, node: str) -> None:
        super().__init__(peers.loop.time)
        self.address = f"{node}:{PORT}"
        self._peers = peers
        self._transport = cast(asyncio.DatagramTransport, SimpleNamespace(sendto=self._send, close=lambda: None))

    def take(self, data: bytes, sender: Datagrams, process: Process) -> None:
        self._peers.loop.call_soon(self.datagram_received, data, (sender,), context=process.context())

    def _send(self, data: bytes, address: tuple[Datagrams]) -> None:
        self._peers.answer(address[0], data)


class Datagrams:
    """A connected datagram socket of the process that makes it: what a prober uses of one."""

    def __init__(self, peers: Peers) -> None:
        process = PROCESS.get()
        assert process is not None, "only processes probe"
        self.name = process.name
        self.peer = ("", 0)
        self._peers = peers
        self._inbox: deque[bytes | Exception] = deque()
        self.notify: Callable[[], object] = lambda: None

    def setblocking(self, _: bool) -> None:
        """It never blocks."""

    def connect(self, peer: tuple[str, int]) -> None:
        self.peer = peer

    def getpeername(self) -> tuple[str, int]:
        return self.peer

    def send(self, data: bytes) -> None:
        self._peers.send(self, data)

    def arrive(self, data: bytes | Exception) -> None:
        self._inbox.append(data)
        self.notify()

    def recv(self, _: int) -> bytes:
        if not self._inbox:
            raise BlockingIOError
        data = self._inbox.popleft()
        if isinstance(data, Exception):
            raise data
        return data

    def close(self) -> None:
        self.notify = lambda: None


def socket_module(peers: Peers) -> Any:
    """What `mesh.probing` sees as `socket`."""
    return SimpleNamespace(
        socket=lambda family, kind: Datagrams(peers),
        AF_INET=socket.AF_INET,
        AF_INET6=socket.AF_INET6,
        SOCK_DGRAM=socket.SOCK_DGRAM,
    )
