"""How far a gate is opened, step by step, for a line that waited for a service to start: pure.

A server that has just started is easily overrun: Python's `http.server`, in whose queue are 5 connections, lost two
thirds of 200 that came at once. So few are let in at first, and one more as each is done; twice as many as long as that
makes the line move faster, or while it does not move at all. A server that works on one after another is given what it
takes, and one whose answers are slow gets all within a few steps.
"""

from __future__ import annotations

from mesh.proxy.limit import Gate

STEP = 0.05
"""Seconds from one step to the next."""
FIRST = 2
"""Of those that wait, how many each endpoint gets at once; two proxies may do so."""
FASTER = 1.5
"""So much faster than ever must the line move."""


class Opening:
    """Of one gate, which has a line before it."""

    def __init__(self, gate: Gate, endpoints: int) -> None:
        self.width = FIRST * max(endpoints, 1)
        """How many may be inside."""
        self._gate = gate
        self._moved = gate.moved
        self._most_moved = 0

    def step(self) -> None:
        """To be called every `STEP` seconds."""
        moved, self._moved = self._gate.moved - self._moved, self._gate.moved
        if not moved or moved > FASTER * self._most_moved:
            self.width *= 2
        self._most_moved = max(self._most_moved, moved)
