"""Our server while its Table changes: are the answers right at every moment, and how soon are they new?"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

from bench.dns.servers import Client, Server
from bench.dns.world import History, addresses_of, change_one, fresh_addresses
from mesh.dataplane.workers import Workers
from mesh.table import Table

CHANGES = 100
"""A second."""
_PATIENCE = 5.0


class Churn:
    """`async with`: endpoints move 100 times a second, and a client of its own checks answers all the time."""

    def __init__(self, server: Server, workers: Workers, table: Table, addresses: Iterator[str]) -> None:
        self._server = server
        self._workers = workers
        self._addresses = addresses
        self._history = History(table)
        self._latest = list(table.services)[:1]
        self._tasks: list[asyncio.Task[None]] = []
        self.table = table
        self.changes = 0
        self.checked = 0
        self.wrong = 0

    async def __aenter__(self) -> Churn:
        self._tasks = [asyncio.create_task(self._change()), asyncio.create_task(self._check())]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            try:
                await task
            except asyncio.CancelledError:
                pass

    async def _change(self) -> None:
        names = list(self.table.services)
        start = time.monotonic()
        while True:
            name = random.choice(names)
            table = change_one(self.table, name, next(self._addresses))
            self._history.published(name, addresses_of(table.services[name]), time.monotonic())
            sequence = self._workers.publish(table)
            self.table = table
            if await self._workers.acknowledged(sequence, _PATIENCE):
                self._history.acknowledged(name, time.monotonic())
            self.changes += 1
            self._latest = [*self._latest[-20:], name]
            await asyncio.sleep(max(0.0, start + self.changes / CHANGES - time.monotonic()))

    async def _check(self) -> None:
        """Names that have just changed and names that have not, in turn."""
        names = list(self.table.services)
        client = await Client.connect(self._server)
        try:
            while True:
                for name in (random.choice(self._latest), random.choice(names)):
                    asked = time.monotonic()
                    addresses = await client.ask(name)
                    self.checked += 1
                    self.wrong += not self._history.was_right(name, addresses, asked, time.monotonic())
                await asyncio.sleep(0.002)
        finally:
            client.close()


async def freshness(server: Server, workers: Workers, table: Table, changes: int) -> tuple[Table, list[float]]:
    """Milliseconds from an endpoint's change in the supervisor's Table to the first right answer, for each change."""
    addresses = fresh_addresses(230)
    names = list(table.services)
    client = await Client.connect(server)
    times = []
    try:
        for _ in range(changes):
            name = random.choice(names)
            await client.ask(name)  # the old answer is a kept one
            table = change_one(table, name, next(addresses))
            right = addresses_of(table.services[name])
            began = time.perf_counter()
            workers.publish(table)
            while await client.ask(name) != right:
                if time.perf_counter() - began > _PATIENCE:
                    raise SystemExit(f"{name} was never answered with its new endpoint")
            times.append((time.perf_counter() - began) * 1000)
    finally:
        client.close()
    return table, times


async def check_all(server: Server, table: Table) -> int:
    """Asks for every name; returns how many answers were wrong."""
    client = await Client.connect(server)
    try:
        return sum([await client.ask(name) != addresses_of(table.services[name]) for name in table.services])
    finally:
        client.close()
