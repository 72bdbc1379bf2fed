"""What a Docker engine tells of one node's containers, as it happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from mesh.aio import Backoff, Pending, Signal
from mesh.runtime import RuntimeFault, RuntimeUnavailable
from mesh.runtime.docker_config import whole_seconds
from mesh.runtime.docker_engine import PING_TIMEOUT, Engine

log = logging.getLogger(__name__)

EVENTS = ("start", "die", "oom", "destroy")
FULL_LOOK = 45.0
PING_INTERVAL = 5.0


class EngineEvents:
    """The engine's events of the containers with these labels.

    `died`: handles of containers whose death was told. Listings still say for a while that they run; who has one that
    does not, takes them off.
    """

    def __init__(self, engine: Engine, labels: list[str]) -> None:
        self._engine = engine
        self._labels = labels
        self._ends: dict[str, Signal] = {}  # of containers that someone waits for
        self.died: set[str] = set()

    @contextmanager
    def of(self, id: str) -> Iterator[Signal]:
        """A signal for whatever is told of one replica, if someone follows the events meanwhile."""
        try:
            yield self._ends.setdefault(id, Signal())
        finally:
            self._ends.pop(id, None)

    async def follow(self) -> AsyncGenerator[str, None]:
        """Ids of replicas to look at; an empty one asks for a look at all."""
        pending = Pending()
        following = asyncio.create_task(self._follow(pending), name="docker events")
        try:
            while True:
                for id in await pending.take(FULL_LOOK) or [""]:
                    yield id
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _follow(self, pending: Pending) -> None:
        """Fills `pending` from the engine's events and connects again for ever.

        The stream ends without a word when the engine dies and hangs when a cable is cut: hence the pings beside it.
        """
        backoff = Backoff(0.1, 5.0)
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._read(pending, backoff))
                    group.create_task(self._ping_for_ever())
            except* RuntimeFault as faults:
                log.warning("no events from the Docker engine, trying again: %s", faults.exceptions[0])
                pending.add("")  # whoever follows shall see for himself that it is away
            await backoff.sleep()

    async def _read(self, pending: Pending, backoff: Backoff) -> None:
        info = await self._engine.call(lambda api: api.info(), timeout=PING_TIMEOUT)
        since = int(whole_seconds(info["SystemTime"]))  # the engine answers before it listens for events
        wanted = {"type": ["container"], "event": list(EVENTS), "label": self._labels}
        async with self._engine.stream(lambda api: api.events(since=since, filters=wanted, decode=True)) as events:
            backoff.reset()
            pending.add("")
            async for event in events:
                id = event["Actor"]["Attributes"]["mesh.id"]
                if event["Action"] == "die":
                    self.died.add(event["Actor"]["ID"][:12])
                pending.add(id)
                if told := self._ends.get(id):
                    told.set()
        raise RuntimeUnavailable(f"the Docker engine at {self._engine.host} has ended the connection")

    async def _ping_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PING_INTERVAL)
            await self._engine.ping()
