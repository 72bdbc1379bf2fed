"""CPU and memory of this node's replicas over the last seconds, for the autoscaler.

Taken only when somebody asks, and then at most about twice a second: an engine pays for every look.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Collection

from mesh.dataplane.load import WINDOW, ReplicaUsage
from mesh.runtime import MeteredRuntime, RuntimeFault
from mesh.runtime.usage import Usage

log = logging.getLogger(__name__)

FRESH = 0.5
"""Seconds for which a look is good enough for the next who asks."""

PATIENCE = 1.0
"""Seconds that a look may take: who asks wants the load as well, and that is there at once."""


class UsageWindow:
    """The last looks at one replica."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Usage]] = deque()

    def add(self, usage: Usage, now: float) -> None:
        """`now`: monotonic seconds."""
        while len(self._looks) > 1 and now - self._looks[1][0] >= WINDOW:
            self._looks.popleft()
        self._looks.append((now, usage))

    def report(self) -> ReplicaUsage:
        """Without a CPU figure until there are two looks."""
        (first, before), (last, now) = self._looks[0], self._looks[-1]
        seconds = last - first
        cpu = 1000 * max(0.0, now.cpu - before.cpu) / seconds if seconds else None
        return ReplicaUsage(cpu=cpu, memory=now.memory, window=round(seconds, 3))


class Meter:
    """Looks at replicas through the runtime."""

    def __init__(self, runtime: MeteredRuntime) -> None:
        self._runtime = runtime
        self._windows: dict[str, UsageWindow] = {}
        self._last: tuple[float, frozenset[str]] = (0.0, frozenset())
        self._looking = asyncio.Lock()
        self._fault = ""

    async def read(self, ids: Collection[str]) -> dict[str, ReplicaUsage]:
        """What these replicas use; those that do not run, or of which the runtime cannot tell, are left out."""
        wanted = frozenset(ids)
        async with self._looking:
            when, known = self._last
            if not wanted <= known or time.monotonic() - when >= FRESH:
                await self._look(wanted)
        return {id: self._windows[id].report() for id in sorted(wanted & self._windows.keys())}

    async def _look(self, ids: frozenset[str]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                used = await self._runtime.usage(ids)
        except (RuntimeFault, TimeoutError) as error:
            used = {}
            self._say(str(error) or f"no answer within {PATIENCE:g} s")
        else:
            self._say("")
        now = time.monotonic()
        self._last = (now, ids)
        self._windows = {id: self._windows.get(id) or UsageWindow() for id in used}
        for id, usage in used.items():
            self._windows[id].add(usage, now)

    def _say(self, fault: str) -> None:
        if fault and not self._fault:
            log.warning("cannot tell what replicas use: %s", fault)
        self._fault = fault
