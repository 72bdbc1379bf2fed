"""What the scheduler decided: the documents that change, and when to look again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from mesh.model import ClusterPlan, Event, NodePlan, ScaleState, ServicePlan
from mesh.scheduler.hosts import Memory
from mesh.scheduler.sentences import listed

MAX_EVENTS = 50
MAX_PENDING = 50
MAX_TEXT = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """Documents to write and to remove; nothing that is already so is among them."""

    services: Mapping[str, ServicePlan] = field(default_factory=dict)
    nodes: Mapping[str, NodePlan] = field(default_factory=dict)
    removed_services: frozenset[str] = frozenset()
    removed_nodes: frozenset[str] = frozenset()
    wake_at: float | None = None
    memory: Memory = field(default_factory=Memory)
    scaled: Mapping[str, ScaleState] = field(default_factory=dict)  # what the autoscaler decided; these two are its
    removed_scaled: frozenset[str] = frozenset()
    cluster: ClusterPlan | None = None  # what is thought of the nodes, if that has changed
    frozen: str = ""  # why nothing is replaced, if so
    pending: int = 0  # slots without a replica
    faults: tuple[str, ...] = ()  # our own mistakes: services that were left as they are

    @property
    def changes(self) -> int:
        return len(self.services) + len(self.nodes) + len(self.removed_services) + len(self.removed_nodes)


class Story:
    """The events of one service in one reconcile; equal verbs and causes become one sentence."""

    def __init__(self, now: float) -> None:
        self._now = now
        self._sentences: dict[tuple[str, str], list[str]] = {}

    def tell(self, verb: str, what: str, cause: str = "") -> None:
        """`tell("placed", "web-1-6f3a on n1", "spec@41")`."""
        self._sentences.setdefault((verb, cause), []).append(what)

    def added_to(self, plan: ServicePlan) -> ServicePlan:
        if not self._sentences:
            return plan
        new = [Event(time=self._now, text=f"{verb} {listed(things)}".strip()[:MAX_TEXT], cause=cause)
               for (verb, cause), things in self._sentences.items()]  # fmt: skip
        return msgspec.structs.replace(plan, events=[*plan.events, *new][-MAX_EVENTS:])
