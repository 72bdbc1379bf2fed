"""Emptying nodes: strategy `binpack`.

A node is emptied wholly or not at all, those with the fewest replicas first. Each replica goes to the node in use on
which it leaves the least room; where none has room, one smaller replica of another node may make way first.
"""

from __future__ import annotations

import numpy as np

from mesh.scheduler.repack.terrain import Floats, Mask, Step, Terrain

MAX_ASKED = 100_000
"""Looks for a place in one plan: this bounds the time that it takes."""
MAX_HOSTS = 8
"""Nodes that are asked to make way for one replica."""


class _NoPlaceError(Exception):
    """There is none within the moves and looks that are left."""


def vacate(terrain: Terrain, budget: int) -> list[Step]:
    """At most `budget` moves, each possible when the ones before it have been made."""
    return _Vacation(terrain, budget).steps


class _Vacation:
    def __init__(self, terrain: Terrain, budget: int) -> None:
        self.steps: list[Step] = []
        self._terrain = terrain
        self._budget = budget
        self._asked = 0
        self._open: Mask = terrain.used()  # in use, and not about to be emptied
        self._moved: set[int] = set()
        total = terrain.capacity.sum(axis=0)
        self._worth: Floats = np.divide(1.0, total, out=np.zeros(len(total)), where=total > 0)
        for victim in sorted(map(int, np.flatnonzero(self._open & (terrain.stuck == 0))), key=self._cost):
            self._empty(victim)

    def _cost(self, node: int) -> tuple[int, float, int]:
        load = float((self._terrain.capacity[node] - self._terrain.free[node]) @ self._worth)
        return len(self._terrain.on[node]), load, node

    def _empty(self, victim: int) -> None:
        """All of its replicas to other nodes, or none."""
        leaving = self._terrain.on[victim]
        if len(self.steps) + len(leaving) > self._budget or any(replica in self._moved for replica in leaving):
            return
        begun = len(self.steps)
        self._open[victim] = False
        try:
            for replica in sorted(leaving, key=self._size, reverse=True):
                self._find_place(replica)
        except _NoPlaceError:
            self._open[victim] = True
            for replica, source, _ in reversed(self.steps[begun:]):
                self._terrain.move(replica, source)
                self._moved.discard(replica)
            del self.steps[begun:]

    def _find_place(self, replica: int) -> None:
        target = self._best(replica)
        self._move(replica, self._make_way(replica) if target is None else target)

    def _move(self, replica: int, target: int) -> None:
        if len(self.steps) >= self._budget:
            raise _NoPlaceError
        self.steps.append(self._terrain.move(replica, target))
        self._moved.add(replica)

    def _best(self, replica: int, but: int = -1) -> int | None:
        """The node in use that has the least room to spare for it; never `but`."""
        self._asked += 1
        if self._asked > MAX_ASKED:
            raise _NoPlaceError
        fit = np.flatnonzero(self._terrain.targets(replica) & self._open)
        fit = fit[fit != but]
        return int(fit[np.argmin(self._terrain.free[fit] @ self._worth)]) if fit.size else None

    def _make_way(self, replica: int) -> int:
        """A node that has room for it, now that the smallest replica that will do has gone from there."""
        terrain, needs = self._terrain, self._terrain.kinds[replica].needs
        hosts = np.flatnonzero(terrain.permits(replica) & self._open)
        lacks = np.maximum(needs - terrain.free[hosts], 0) @ self._worth
        for host in map(int, hosts[np.argsort(lacks, kind="stable")[:MAX_HOSTS]]):
            for other in sorted(terrain.on[host], key=self._size):
                kind = terrain.kinds[other]
                makes_room = (terrain.free[host] + kind.needs >= needs)[terrain.kinds[replica].wanted].all()
                if makes_room and other not in self._moved and (target := self._best(other, but=host)) is not None:
                    self._move(other, target)
                    return host
        raise _NoPlaceError

    def _size(self, replica: int) -> tuple[float, int]:
        return float(self._terrain.kinds[replica].needs @ self._worth), replica
