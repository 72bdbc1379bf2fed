"""Replacements come back in waves: a node that starts many at once starts none of them soon.

The loss of a node, or of an engine's containers, asks for all their successors at one moment. Each image that is
pulled, process begun and probe tried slows the others, and what is slow to get ready looks as if it had failed. What
rollouts and scaling ask for is not held: they have bounds of their own, or are meant.
"""

from __future__ import annotations

import itertools
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
        self._tenancies = tenancies
        self._now = now
        self._starting: dict[str, int] = {}  # of nodes that have been looked at
        self._over: list[float] = [now + STARTING]

    def held(self, answers: Iterable[Placement | Refusal]) -> set[int]:
        """Which of these replacements must wait for their turn, by position; the most important go first.

        Those that others must leave for first are not counted: preemption has a bound of its own.
        """
        placed = [(position, answer) for position, answer in enumerate(answers)
                  if isinstance(answer, Placement) and not answer.evicts]  # fmt: skip
        placed.sort(key=lambda pair: -pair[1].request.blueprint.spec.placement.priority)
        waiting: set[int] = set()
        for position, answer in placed:
            if (starting := self._starting_on(answer.node)) >= self.most:
                waiting.add(position)
            else:
                self._starting[answer.node] = starting + 1
        return waiting

    def _starting_on(self, node: str) -> int:
        """How many replacements start on a node now."""
        if node not in self._starting:
            tenancy = self._tenancies.get(node)
            running = itertools.chain.from_iterable(tenancy.replicas.values()) if tenancy else ()
            begun = [
                one.assignment.placed + STARTING
                for one in running
                if one.assignment.replacement and one.assignment.want is Want.RUN
                and not one.ready and not one.state.ended and self._now - one.assignment.placed < STARTING
            ]  # fmt: skip
            self._starting[node] = len(begun)
            self._over += begun
        return self._starting[node]

    @property
    def look_at(self) -> float:
        """When some of what starts now counts no more, even if nothing is heard of it."""
        return min(self._over)
