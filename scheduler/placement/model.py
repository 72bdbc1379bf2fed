"""What the placement engine is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.model import Capacity, Slot
from mesh.scheduler.blueprint import Blueprint, Demand
from mesh.scheduler.sentences import listed

MAX_NAMED = 3
"""Nodes named in one sentence; more are counted."""
MAX_SENTENCES = 10


@dataclass(frozen=True, slots=True)
class Holding:
    """What already lies on a node.

    `stays`: it is not about to be replaced or stopped, so it counts for spread, affinity and `max_per_*`.
    `evictable`: it may be told to go for a request of clearly higher `priority`.
    """

    service: str
    demand: Demand
    stays: bool = True
    id: str = ""
    slot: Slot | None = None
    priority: int = 50
    evictable: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What the holdings of a node come to: what they take by dimension, and how many of each service stay."""

    taken: Mapping[str, int]
    staying: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Node:
    """A candidate as it is before the batch.

    `capacity` is what is there for replicas: the node's reserved overhead is already taken off.
    `barred` says why it gets nothing new, if so.
    """

    name: str
    capacity: Capacity
    attributes: Mapping[str, str] = field(default_factory=dict)
    holdings: Sequence[Holding] = ()
    barred: str = ""
    added_up: list[Load] = field(default_factory=list, init=False, compare=False, repr=False)
    """Its load, once somebody has added it up: most nodes are the same from one batch to the next."""


@dataclass(frozen=True, slots=True)
class Request:
    """One replica that needs a place; `only`: the one node that will do; `avoid`: nodes that failed this release."""

    service: str
    slot: Slot
    blueprint: Blueprint
    only: str | None = None
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where it goes; `evicts`: ids of the holdings that must go first, to make room."""

    request: Request
    node: str
    evicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """No node will do: `reasons` has a sentence for each node; `why` says it where no node is at fault."""

    request: Request
    why: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """The reasons, grouped and counted: `3 nodes (n1, n2, n4): needs 2Gi memory, 1.2Gi free`."""
        if self.why:
            return [self.why]
        groups: dict[str, list[str]] = {}
        for node, reason in self.reasons.items():
            groups.setdefault(reason, []).append(node)
        sentences = [f"{_counted(names)}: {reason}" for reason, names in groups.items()]
        if len(sentences) > MAX_SENTENCES:
            sentences[MAX_SENTENCES:] = [f"and {len(sentences) - MAX_SENTENCES} more reasons"]
        return sentences


def _counted(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} nodes ({listed(names, MAX_NAMED)})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one node is for one request: why it will not do, or the parts of its score, in the order they count.

    Each part is a wish and how far the node is from it: less is better, and a later part counts among equals only.
    """

    node: str
    why_not: str = ""
    score: tuple[tuple[str, float], ...] = ()


class Reasons(Mapping[str, str]):
    """A sentence for each node, made when somebody reads them: most refusals are only counted."""

    def __init__(self, make: Callable[[], Mapping[str, str]]) -> None:
        self._make = make
        self._made: Mapping[str, str] | None = None

    def _read(self) -> Mapping[str, str]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getitem__(self, node: str) -> str:
        return self._read()[node]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return f"Reasons({dict(self)})"
