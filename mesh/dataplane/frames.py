"""What a supervisor and its workers say to each other: length-prefixed msgpack over a unix socket."""

from __future__ import annotations

import asyncio
import struct

import msgspec

from mesh.dataplane.load import PortLoad
from mesh.metrics import Family
from mesh.table import RawTable, Table, TableDelta

MAX_FRAME = 64 * 2**20

_LENGTH = struct.Struct(">I")


class Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of what goes over the socket."""


# ── to the supervisor ────────────────────────────────────────────────────────────────────────


class Hello(Frame, frozen=True):
    """Who a worker is; `version` and `arguments` tell a new supervisor whether it may keep an old worker."""

    kind: str
    number: int
    pid: int
    version: str
    arguments: str


class Applied(Frame, frozen=True):
    """The worker's answers agree with the Table of this sequence number."""

    sequence: int


class Problems(Frame, frozen=True):
    texts: list[str]


class Metrics(Frame, frozen=True):
    request: int  # 0: unasked, the last before its end
    families: list[Family]


class Loads(Frame, frozen=True):
    """What it proxied since it last told, within one second of the machine's monotonic clock."""

    request: int  # 0: unasked
    second: int
    loads: list[PortLoad]


class Waiting(Frame, frozen=True):
    """How many requests and connections it holds, for each service that sleeps: said as soon as it changes."""

    services: dict[str, int]


class Leaving(Frame, frozen=True):
    """Somebody told it to end: it serves on until a successor does, and `Quit` comes."""


# ── to a worker ──────────────────────────────────────────────────────────────────────────────


class NoTable(Frame, frozen=True):
    """There is none yet: the worker opens its listeners, and answers that it does not know."""


class Snapshot(Frame, frozen=True):
    sequence: int
    table: Table


class RawSnapshot(Frame, frozen=True, tag="Snapshot"):
    """The same, as a worker reads it that keeps services packed."""

    sequence: int
    table: RawTable


class Delta(Frame, frozen=True):
    sequence: int
    delta: TableDelta


class Secrets(Frame, frozen=True):
    """The values of the secrets that the Table's routes name: for proxies, and never shown."""

    values: dict[str, str]

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self.values)})"


class AskMetrics(Frame, frozen=True):
    request: int


class AskLoads(Frame, frozen=True):
    request: int


class Quit(Frame, frozen=True):
    """End gracefully; after `linger` seconds, for a supervisor that comes back to say otherwise."""

    linger: float = 0.0
    drain: float = 0.0  # seconds for open work
    successor: bool = False  # another worker has the listening sockets, and takes what waits there


ToSupervisor = Hello | Applied | Problems | Metrics | Loads | Waiting | Leaving
ToWorker = NoTable | Snapshot | Delta | Secrets | AskMetrics | AskLoads | Quit

_encoder = msgspec.msgpack.Encoder()
_to_supervisor: msgspec.msgpack.Decoder[ToSupervisor] = msgspec.msgpack.Decoder(ToSupervisor)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_packing_worker = msgspec.msgpack.Decoder(NoTable | RawSnapshot | Delta | AskMetrics | AskLoads | Quit)


def pack(frame: Frame) -> bytes:
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


async def read_to_supervisor(reader: asyncio.StreamReader) -> ToSupervisor:
    """Raises EOFError at the end, msgspec.DecodeError where the other side does not speak our language."""
    return _to_supervisor.decode(await _read(reader))


async def read_to_worker(reader: asyncio.StreamReader, *, packed: bool) -> ToWorker:
    """`packed`: the services of a snapshot stay bytes. Raises as `read_to_supervisor`."""
    body = await _read(reader)
    if not packed:
        return _to_worker.decode(body)
    frame = _to_packing_worker.decode(body)
    return Snapshot(frame.sequence, frame.table.packed()) if isinstance(frame, RawSnapshot) else frame


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise EOFError(f"a frame of {length} bytes")
        return await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError) as error:
        raise EOFError(str(error)) from None
