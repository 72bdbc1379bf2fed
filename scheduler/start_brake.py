"""Replacements come back in waves: a node that starts many at once starts none of them soon.

The loss of a node, or of an engine's containers, asks for all their successors at one moment. Each image that is
pulled, process begun and probe tried slows the others, and what is slow to get ready looks as if it had failed. What
rollouts and scaling ask for is not held: they have bounds of their own, or are meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mesh.model import Want
from mesh.scheduler.look import Tenancy
from mesh.scheduler.placement import Placement, Refusal

STARTING = 30.0
"""Seconds for which a replacement that is not ready counts as starting: one that never gets ready holds no others."""


class StartBrake:
    """How many more replacements each node may be given now."""

    def __init__(self, most: int, tenancies: Mapping[str, Tenancy], now: float) -> None:
        self.most = most
        self._starting: Counter[str] = Counter()
        self._over: list[float] = [now + STARTING]
        for node, tenancy in tenancies.items():
            for replicas in tenancy.replicas.values():
                for one in replicas:
                    assignment = one.assignment
                    begun = assignment.replacement and assignment.want is Want.RUN and not one.ready
                    if begun and not one.state.ended and now - assignment.placed < STARTING:
                        self._starting[node] += 1
                        self._over.append(assignment.placed + STARTING)

    def held(self, answers: Iterable[Placement | Refusal]) -> set[int]:
        """Which of these replacements must wait for their turn, by position; the most important go first.

        Those that others must leave for first are not counted: preemption has a bound of its own.
        """
        placed = [(position, answer) for position, answer in enumerate(answers)
                  if isinstance(answer, Placement) and not answer.evicts]  # fmt: skip
        placed.sort(key=lambda pair: -pair[1].request.blueprint.spec.placement.priority)
        waiting: set[int] = set()
        for position, answer in placed:
            if self._starting[answer.node] >= self.most:
                waiting.add(position)
            else:
                self._starting[answer.node] += 1
        return waiting

    @property
    def look_at(self) -> float:
        """When some of what starts now counts no more, even if nothing is heard of it."""
        return min(self._over)
