"""The rebalance planner: from what lies where to a short list of moves, in the order in which they can be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.model import Slot
from mesh.scheduler.blueprint import Blueprint
from mesh.scheduler.placement.model import Node
from mesh.scheduler.repack.level import level
from mesh.scheduler.repack.terrain import Terrain
from mesh.scheduler.repack.vacate import vacate

SHARE = 0.05
"""Of the replicas that one plan may move."""


@dataclass(frozen=True, slots=True)
class Move:
    """One replica to another node: its successor starts on `target` and is healthy before it stops on `source`."""

    service: str
    slot: Slot
    id: str
    source: str
    target: str


def repack(
    nodes: Sequence[Node], blueprints: Mapping[str, Blueprint], *, share: float = SHARE, strategy: str = "spread"
) -> list[Move]:
    """The moves that bring the cluster nearer to what its strategy wants; pure, and the same for the same input.

    `binpack` leaves as few nodes in use as the moves allow, and never puts one more into use. `spread` takes load
    from the fullest nodes to the emptiest, while that narrows the difference noticeably. Made one after the other,
    no move needs more room than there is while its source still holds, none breaks a rule of its service
    (constraints, ports, `max_per_*`, volumes) or makes its spread or its affinity worse, and no replica moves twice.

    Args:
        nodes: everything that lies on them is in their holdings.
        blueprints: of the replicas that may move, by id; all others stay. So do replicas with a volume, singletons,
            those of services with another strategy of their own, and those that some service wants near or far.
        share: at most this share of all replicas moves, 0..1.
        strategy: the cluster's.
    """
    terrain = Terrain(nodes, blueprints, strategy)
    budget = int(share * terrain.count + 1e-9)
    moves = []
    for replica, source, target in (vacate if strategy == "binpack" else level)(terrain, budget):
        held = terrain.holdings[replica]
        slot = held.slot if held.slot is not None else 0
        moves.append(Move(held.service, slot, held.id, terrain.names[source], terrain.names[target]))
    return moves
