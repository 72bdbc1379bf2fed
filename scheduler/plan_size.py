"""A node's plan is one value of the store, and so is bounded: what would not fit is not placed there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mesh.scheduler.blueprint import Blueprint
from mesh.scheduler.placement import Placement, Refusal

MAX_NODE_PLAN = 340 * 1024
"""Bytes. Consul takes 512 KiB per transaction, in which values travel as base64."""

ASSIGNMENT_BYTES = 320
"""More than one assignment takes: its id, service, slot, release, cause and time."""


class PlanSizes:
    """How large each node's plan would be; replicas of one release share one copy of its spec."""

    def __init__(self, lodgers: Callable[[str], Iterable[Blueprint | None]]) -> None:
        """`lodgers`: what lies on a node so far."""
        self._lodgers = lodgers
        self._bytes: dict[str, int] = {}
        self._specs: dict[str, set[int]] = {}

    def _look(self, node: str) -> None:
        if node not in self._bytes:
            self._bytes[node], self._specs[node] = 0, set()
            for blueprint in self._lodgers(node):
                self._add(node, blueprint)

    def _cost(self, node: str, blueprint: Blueprint | None) -> int:
        new = blueprint is not None and id(blueprint) not in self._specs[node]
        return ASSIGNMENT_BYTES + (blueprint.size if blueprint and new else 0)

    def _add(self, node: str, blueprint: Blueprint | None) -> None:
        self._bytes[node] += self._cost(node, blueprint)
        self._specs[node].add(id(blueprint))

    def checked(self, answer: Placement | Refusal) -> Placement | Refusal:
        """The answer, or a refusal where it would make the node's plan too large."""
        if isinstance(answer, Refusal):
            return answer
        blueprint, node = answer.request.blueprint, answer.node
        self._look(node)
        if self._bytes[node] + self._cost(node, blueprint) > MAX_NODE_PLAN:
            limit = f"its plan would exceed {MAX_NODE_PLAN // 1024} KiB; use smaller specs or more nodes"
            return Refusal(answer.request, reasons={node: limit})
        self._add(node, blueprint)
        return answer
