"""Direct probes between agents and schedulers, over UDP: who is there, whatever the store thinks.

    scheduler ──ping, "do you hear h3?"──► agent ──pong, "0.2 s ago"──►

Every agent answers on the UDP port that has its admin port's number, on its node's address. Anybody may ask: an answer
is shorter than its question and tells only how long ago a node was heard. Names that are asked about are probed too,
if this agent knows them; so in a cluster of any size a doubt is everybody's within a moment, without the store.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable, Mapping

import msgspec

from mesh.aio import Signal, Tasks
from mesh.hearing import PACES, Ear, Pace, Sight

TICK = 0.05
MAX_DATAGRAM = 1200
MAX_ASKED = 8
"""Names in one question."""
FROM = "<"
"""Before a name: not whether it is heard, but whether its own probes arrive."""
MAX_CALLERS = 512
"""Names of callers that are remembered."""
ALL = 16
"""An agent of a cluster of so many nodes probes all others; of a larger one only the next few in a ring."""
IN_RING = 8
ASKED_FOR = 15.0
"""Seconds for which a node is probed after it was asked about."""
KNOCK_TIMEOUT = 0.5
LONGEST = 99
"""Tenths of a second: older news are as good as none."""


class Ping(msgspec.Struct, frozen=True, omit_defaults=True, rename={"sender": "from"}):
    """`sender`: a node's name, or `@host:pid` of a scheduler."""

    ping: int
    sender: str
    ask: list[str] = []


class Pong(msgspec.Struct, frozen=True):
    """`heard`: tenths of a second since the last answer of each that was asked about; -1: not lately."""

    pong: int
    heard: list[int] = []


_decode_ping = msgspec.json.Decoder(Ping).decode
_decode_pong = msgspec.json.Decoder(Pong).decode


def split(address: str) -> tuple[str, int]:
    """`10.77.0.11:7070`, `[::1]:7070`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Echo(asyncio.DatagramProtocol):
    """Answers probes, and remembers who sent them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._transport: asyncio.DatagramTransport | None = None
        self._callers: dict[str, float] = {}
        self.asked: Callable[[str], float | None] = lambda _: None
        """When a node was last heard; told that it is asked for."""
        self.address = ""

    async def start(self, host: str, port: int) -> None:
        """Raises `OSError` if it cannot listen."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))
        self._transport = transport
        bound = transport.get_extra_info("sockname")[1]
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def called(self, name: str) -> float | None:
        """When a probe of this sender last arrived."""
        return self._callers.get(name)

    def datagram_received(self, data: bytes, address: tuple[object, ...]) -> None:
        if len(data) > MAX_DATAGRAM or self._transport is None:
            return
        try:
            ping = _decode_ping(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if len(self._callers) < MAX_CALLERS or ping.sender in self._callers:
            self._callers[ping.sender] = self._clock()
        heard = [self._age(name) for name in ping.ask[:MAX_ASKED]]
        self._transport.sendto(msgspec.json.encode(Pong(ping.ping, heard)), address)

    def _age(self, name: str) -> int:
        if name.startswith(FROM):
            at = self.called(name.removeprefix(FROM))
        else:
            at = self.called(name) if name.startswith("@") else self.asked(name)
        age = LONGEST if at is None else round((self._clock() - at) * 10)
        return age if age < LONGEST else -1


class Prober:
    """Probes nodes as long as it runs; `sights` tells what it thinks of them, `news` that this has changed."""

    def __init__(self, name: str, echo: Echo | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`echo`: of the same process, for a one-way fault is told by the probes that still arrive."""
        self._name = name
        self._echo = echo
        self._clock = clock
        self._pace = PACES["normal"]
        self._known: dict[str, str] = {}
        self._ears: dict[str, Ear] = {}
        self._sockets: dict[str, socket.socket] = {}
        self._asked: dict[str, float] = {}  # node → until when it is probed because it was asked about
        self._leader = ""
        self._leader_heard: dict[str, float] = {}  # by node
        self._sights: dict[str, Sight] = {}
        self._tasks = Tasks()
        self.news = Signal()
        if echo:
            echo.asked = self._asked_about

    @property
    def sights(self) -> Mapping[str, Sight]:
        """What is thought of each node that was ever heard."""
        return self._sights

    def follow(self, nodes: Mapping[str, str], failure_detection: str = "normal", leader: str = "") -> None:
        """The nodes that there are, with the addresses that answer probes; `leader`: a caller to ask them about."""
        self._pace = PACES.get(failure_detection, PACES["normal"])
        self._known = {name: address for name, address in nodes.items() if address and name != self._name}
        if leader != self._leader:
            self._leader = leader
            self._leader_heard.clear()
        for name in [name for name in self._ears if self._known.get(name) is None]:
            self._forget(name)

    @property
    def leader_silence(self) -> float | None:
        """Seconds since any node was called by the leader; None: unknown, or too few nodes are heard to tell."""
        now = self._clock()
        hearing = sum(_is_fresh(ear.heard, now, self._pace) for ear in self._ears.values())
        if not self._leader_heard or 2 * hearing <= len(self._known):
            return None
        return now - max(self._leader_heard.values())

    @property
    def pace(self) -> Pace:
        return self._pace

    async def run(self) -> None:
        while True:
            self._tick()
            await asyncio.sleep(TICK)

    async def close(self) -> None:
        await self._tasks.close()
        for name in list(self._ears):
            self._forget(name)

    def _tick(self) -> None:
        now = self._clock()
        doubted = [name for name, ear in self._ears.items() if ear.is_doubted(now, self._pace)]
        questions = [self._leader] * bool(self._leader)
        if self._name.startswith("@"):
            questions += [question for name in doubted for question in (name, FROM + name)]
        for name in self._chosen(now):
            ear = self._ears.setdefault(name, Ear())
            if self._echo:
                ear.incoming = self._echo.called(name)
            if now >= ear.probe_at:
                self._probe(name, ear, questions[:MAX_ASKED], now)
            if ear.wants_knock(now, self._pace):
                self._tasks.spawn(self._knock(name, ear), f"knock {name}")
        sights = {name: sight for name, ear in self._ears.items() if (sight := ear.sight(now, self._pace))}
        if _signs(sights) != _signs(self._sights):
            self.news.set()
        self._sights = sights

    def _chosen(self, now: float) -> list[str]:
        """Whom to probe: all, or in a large cluster an agent's neighbours and whom others ask about."""
        if self._name.startswith("@") or len(self._known) <= ALL:
            return list(self._known)
        ring = sorted(self._known)
        start = sum(name < self._name for name in ring)
        chosen = {ring[(start + step) % len(ring)] for step in range(IN_RING)}
        self._asked = {name: until for name, until in self._asked.items() if until > now}
        for name in self._ears.keys() - chosen - self._asked.keys():
            self._forget(name)
        return [*chosen, *(self._asked.keys() & self._known.keys() - chosen)]

    def _asked_about(self, name: str) -> float | None:
        if name not in self._known:
            return None
        now = self._clock()
        self._asked[name] = now + ASKED_FOR
        ear = self._ears.setdefault(name, Ear())
        if ear.last is None:
            ear.judged_from = now
        return ear.heard

    def _probe(self, name: str, ear: Ear, questions: list[str], now: float) -> None:
        number = random.getrandbits(32)
        ask = [one for one in questions if one.removeprefix(FROM) != name]
        ear.sent(number, ask, now, self._pace)
        try:
            self._socket(name).send(msgspec.json.encode(Ping(number, self._name, ask)))
        except OSError as error:
            self._take_error(name, ear, error, now)

    def _take_error(self, name: str, ear: Ear, error: OSError, now: float) -> None:
        """A refusal is a sign; no route is silence. libuv hears a socket no more after an error: the next is new."""
        if isinstance(error, ConnectionRefusedError):
            ear.refused = now
        self._close_socket(name)

    def _socket(self, name: str) -> socket.socket:
        """Connected, so that the kernel tells us of a refusal."""
        host, port = split(self._known[name])
        known = self._sockets.get(name)
        if known is not None and known.getpeername()[:2] == (host, port):
            return known
        if known is not None:
            self._close_socket(name)
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        try:
            made.connect((host, port))
        except OSError:
            made.close()
            raise
        self._sockets[name] = made
        asyncio.get_running_loop().add_reader(made, self._hear, name, made)
        return made

    def _hear(self, name: str, where: socket.socket) -> None:
        ear, now = self._ears[name], self._clock()
        try:
            pong = _decode_pong(where.recv(MAX_DATAGRAM))
        except BlockingIOError:
            return
        except OSError as error:
            self._take_error(name, ear, error, now)
            return
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        asked = ear.answered(pong.pong, now, self._pace)
        for about, tenths in zip(asked or (), pong.heard, strict=False):
            if tenths < 0:
                continue
            if about == self._leader:
                self._leader_heard[name] = now - tenths / 10
            elif about.startswith(FROM) and (doubted := self._ears.get(about.removeprefix(FROM))):
                doubted.incoming = max(doubted.incoming or 0.0, now - tenths / 10)
            elif about in self._ears:
                self._ears[about].vouch(now - tenths / 10)

    async def _knock(self, name: str, ear: Ear) -> None:
        host, port = split(self._known[name])
        try:
            async with asyncio.timeout(KNOCK_TIMEOUT):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
            ear.accepted = self._clock()
        except ConnectionRefusedError:
            ear.refused = self._clock()
        except (OSError, TimeoutError):
            pass

    def _forget(self, name: str) -> None:
        self._ears.pop(name, None)
        self._close_socket(name)

    def _close_socket(self, name: str) -> None:
        if made := self._sockets.pop(name, None):
            asyncio.get_running_loop().remove_reader(made)
            made.close()


def _is_fresh(at: float | None, now: float, pace: Pace) -> bool:
    return at is not None and now - at <= pace.suspect


def _signs(sights: Mapping[str, Sight]) -> dict[str, tuple[object, bool]]:
    return {name: (sight.sign, sight.lossy) for name, sight in sights.items()}
