"""Whether requests wait for services that sleep: a long question kept open to every agent, `GET <admin>/v1/waiting`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

import aiohttp
import msgspec

from mesh.aio import Backoff, Tasks
from mesh.autoscaling.agents import body
from mesh.dataplane.waiting import WaitingReport

WAIT = 30.0
"""Seconds that an agent may take to answer that nobody waits."""

PATIENCE = 5.0
"""Seconds beyond that."""

MAX_ANSWER = 4 * 1024 * 1024


class Waiting:
    """What waits for whom, as the agents tell it at once."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is called when an agent has told something new."""
        self._changed = changed
        self._tasks = Tasks()
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._told: dict[tuple[str, str], Mapping[str, int]] = {}
        self._http: aiohttp.ClientSession | None = None

    def follow(self, admins: Mapping[str, str]) -> None:
        """From now on these agents are asked, by node; none, while nothing sleeps."""
        wanted = {(node, admin) for node, admin in admins.items() if admin}
        for agent in self._asking.keys() - wanted:
            self._asking.pop(agent).cancel()
            self._told.pop(agent, None)
        for agent in wanted - self._asking.keys():
            self._asking[agent] = self._tasks.spawn(self._ask_for_ever(agent), f"waiting on {agent[0]}")

    def services(self) -> Counter[str]:
        """Requests and connections that are held, by service."""
        held: Counter[str] = Counter()
        for told in self._told.values():
            held.update(told)
        return held

    async def close(self) -> None:
        await self._tasks.close()
        self._asking.clear()
        self._told.clear()
        if self._http:
            await self._http.close()
            self._http = None

    async def _ask_for_ever(self, agent: tuple[str, str]) -> None:
        """An agent that cannot be asked is asked again; that its proxy holds requests, its load tells as well."""
        backoff = Backoff(0.1, 5.0)
        since = ""
        while True:
            try:
                told = await self._ask(agent[1], since)
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
                self._told.pop(agent, None)
                since = ""
                await backoff.sleep()
                continue
            backoff.reset()
            since = f"&since={told.version}"
            if told.services != self._told.get(agent, {}):
                self._told[agent] = told.services
                self._changed()

    async def _ask(self, admin: str, since: str) -> WaitingReport:
        self._http = self._http or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=WAIT + PATIENCE)
        )
        async with self._http.get(f"{admin}/v1/waiting?wait={WAIT:g}{since}", allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"answers {answer.status}")
            return msgspec.json.decode(await body(answer, MAX_ANSWER), type=WaitingReport)
