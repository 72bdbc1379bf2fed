"""Who waits on this node for services at zero: told by the proxy's workers at once, asked for by who wakes services."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Hashable, Mapping

import msgspec


class WaitingReport(msgspec.Struct, frozen=True):
    """What `/v1/waiting` answers: held requests and connections, for each service that sleeps."""

    version: int
    services: dict[str, int]


class WaitingBoard:
    """The newest of each worker, added up. Its version tells one picture from another, also over supervisors."""

    def __init__(self) -> None:
        self._version = time.time_ns() // 1_000_000
        self._by_worker: dict[Hashable, Mapping[str, int]] = {}
        self._services: Counter[str] = Counter()
        self._changed = asyncio.Event()

    def told(self, worker: Hashable, services: Mapping[str, int]) -> None:
        """So many wait in `worker` now."""
        self._by_worker[worker] = services
        self._add_up()

    def left(self, worker: Hashable) -> None:
        if self._by_worker.pop(worker, None):
            self._add_up()

    def _add_up(self) -> None:
        services: Counter[str] = Counter()
        for each in self._by_worker.values():
            services.update(each)
        if services == self._services:
            return
        self._services = services
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def report(self, since: int | None, wait: float) -> WaitingReport:
        """As soon as it is another than version `since` (None: as soon as anybody waits), at the latest after `wait`
        seconds."""
        try:
            async with asyncio.timeout(wait):
                while self._version == since if since is not None else not self._services:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return WaitingReport(self._version, dict(self._services))
