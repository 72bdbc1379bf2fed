"""Evening out load: strategy `spread`.

The fullest node gives a replica to the emptiest one that may take it, as long as that narrows the difference
noticeably and brings the replicas of a service no closer together. A node's load is that of its fullest dimension, cpu
or memory, as in placement.
"""

from __future__ import annotations

import numpy as np

from mesh.scheduler.repack.terrain import Floats, Step, Terrain

NOTICEABLE = 0.05
"""By how much, of a node, the target must remain below what the source had: less is not worth a move."""
MAX_ASKED = 100_000
"""Looks for a place in one plan: this bounds the time that it takes."""


def level(terrain: Terrain, budget: int) -> list[Step]:
    """At most `budget` moves, each possible when the ones before it have been made."""
    steps: list[Step] = []
    moved: set[int] = set()
    passed: set[int] = set()  # nodes that can give nothing as things are
    capacity = np.maximum(terrain.capacity[:, :2], 1)
    used: Floats = (terrain.capacity[:, :2] - terrain.free[:, :2]) / capacity
    asked = 0
    while len(steps) < budget and asked < MAX_ASKED:
        load = used.max(axis=1, initial=0.0)
        givers = [node for node in range(len(load)) if node not in passed and terrain.on[node]]
        if not givers:
            break
        source = max(givers, key=lambda node: (load[node], -node))
        if load[source] - NOTICEABLE < load.min():
            break
        best: tuple[float, int, int] | None = None
        for replica in {id(terrain.kinds[one]): one for one in terrain.on[source] if one not in moved}.values():
            asked += 1
            own = terrain.own(terrain.kinds[replica].service)
            fit = np.flatnonzero(terrain.targets(replica) & (own < own[source]))
            if not fit.size:
                continue
            share = terrain.kinds[replica].needs[:2] / capacity
            after = (used[fit] + share[fit]).max(axis=1)
            target = int(np.argmin(after))
            higher = max(float(after[target]), float((used[source] - share[source]).max()))
            if after[target] + NOTICEABLE <= load[source] and (best is None or higher < best[0]):
                best = (higher, replica, int(fit[target]))
        if best is None:
            passed.add(source)
            continue
        _, replica, target = best
        share = terrain.kinds[replica].needs[:2] / capacity
        used[source] -= share[source]
        used[target] += share[target]
        steps.append(terrain.move(replica, target))
        moved.add(replica)
        passed.clear()
    return steps
