"""What happened, as plain facts with their times: all that the oracle and the story know.

The simulation records them as they happen; the laboratory from a watch of the store, the events of its engines, the
answers of its data planes and the requests that are made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """A revision of one key of the store; `value` None: it was deleted."""

    at: float
    key: str
    value: bytes | None
    index: int
    session: str | None  # that holds the key's lock now
    writer: str = ""  # the client that asked for it, where that is known
    as_leader: bool | None = None  # the writer held the leader's lock; None: unknown


@dataclass(frozen=True, slots=True)
class Started:
    """An engine began to run an instance."""

    at: float
    node: str
    id: str
    service: str
    slot: int | str
    host_ports: frozenset[int] = frozenset()
    has_volumes: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """An instance runs no more. `asked`: because its agent said so."""

    at: float
    node: str
    id: str
    asked: bool
    how: str = ""


@dataclass(frozen=True, slots=True)
class ToldToStop:
    """An engine was asked to signal an instance."""

    at: float
    node: str
    id: str
    signal: str


@dataclass(frozen=True, slots=True)
class Offered:
    """What a node's data plane answers with from now on: replica → state, as in its Table."""

    at: float
    node: str
    endpoints: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Failed:
    """A request through a node's data plane came to nothing."""

    at: float
    node: str
    began: float
    how: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault begins or ends. `who`: a node, a scheduler, `store`, or a service (whose own programs misbehave)."""

    at: float
    who: str
    what: str
    begins: bool


@dataclass(frozen=True, slots=True)
class Said:
    """A line of a log, or a deed of the operator."""

    at: float
    who: str
    text: str
    is_error: bool = False


Fact = Written | Started | Ended | ToldToStop | Offered | Failed | Trouble | Said
