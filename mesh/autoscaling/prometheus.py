"""Numbers from a Prometheus server: its HTTP API's instant queries.

Source: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from mesh.aio import Tasks
from mesh.autoscaling.agents import body
from mesh.scheduler.autoscale.model import Sample

INTERVAL = 2.0
"""Seconds from one answer to the next question. Prometheus itself looks every 15 s or so."""

PATIENCE = 2.0
MAX_ANSWER = 64 * 1024
AT_ONCE = 16

Query = tuple[str, str]
"""URL and PromQL."""


class _Answer(msgspec.Struct):
    status: str = ""
    error: str = ""
    data: Any = None


def number_in(answer: bytes) -> float:
    """The one number that a query yields.

    Raises:
        ValueError: for whatever else: an error, no number, several, text; the message says which.
    """
    try:
        read = msgspec.json.decode(answer, type=_Answer)
    except msgspec.DecodeError:
        raise ValueError("answers with something else than Prometheus' JSON") from None
    if read.status != "success":
        raise ValueError(f"refuses the query: {read.error[:200] or 'without a reason'}")
    try:
        kind, result = read.data["resultType"], read.data["result"]
        if kind == "vector":
            if len(result) != 1:
                raise ValueError(f"the query yields {len(result)} results, it must yield one: use sum() or max()")
            text = result[0]["value"][1]
        elif kind == "scalar":
            text = result[1]
        else:
            raise ValueError(f"the query yields a {kind}, it must yield a number")
        value = float(text)
    except (KeyError, IndexError, TypeError):
        raise ValueError("answers with something else than Prometheus' JSON") from None
    if not math.isfinite(value):
        raise ValueError(f"the query yields {text}, which is no number to scale by")
    return value


@dataclass(slots=True)
class _Asked:
    sample: Sample
    task: asyncio.Task[None]


class Prometheus:
    """Asks every query that is followed now and then; a failure is a sample without a value."""

    def __init__(self) -> None:
        self._asked: dict[Query, _Asked] = {}
        self._tasks = Tasks()
        self._http: aiohttp.ClientSession | None = None
        self.failures = 0

    def follow(self, queries: Collection[Query]) -> None:
        for query in self._asked.keys() - set(queries):
            self._asked.pop(query).task.cancel()
        for query in set(queries) - self._asked.keys():
            first = Sample(fault=f"{query[0]} has not answered yet")
            self._asked[query] = _Asked(first, self._tasks.spawn(self._ask_for_ever(query), f"prometheus {query[0]}"))

    def last(self, url: str, query: str) -> Sample:
        """The last answer."""
        asked = self._asked.get((url, query))
        return asked.sample if asked else Sample(fault=f"{url} is not asked")

    async def close(self) -> None:
        await self._tasks.close()
        self._asked.clear()
        if self._http:
            await self._http.close()
            self._http = None

    async def _ask_for_ever(self, query: Query) -> None:
        while True:
            sample = await self._ask(*query)
            self._asked[query].sample = sample
            self.failures += sample.value is None
            await asyncio.sleep(INTERVAL)

    async def _ask(self, url: str, query: str) -> Sample:
        self._http = self._http or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=AT_ONCE), timeout=aiohttp.ClientTimeout(total=PATIENCE)
        )
        target = f"{url.rstrip('/')}/api/v1/query"
        try:
            async with self._http.get(target, params={"query": query}, allow_redirects=False) as answer:
                if 300 <= answer.status < 400:
                    raise ValueError(f"redirects ({answer.status}): give the address it leads to")
                text = await body(answer, MAX_ANSWER)
                if answer.status != 200 and not text.lstrip().startswith(b"{"):
                    raise ValueError(f"answers {answer.status}")
                return Sample(value=number_in(text))
        except TimeoutError:
            return Sample(fault=f"{url} does not answer within {PATIENCE:g} s")
        except aiohttp.ClientConnectorError as error:
            return Sample(fault=f"{url} cannot be reached: {error.os_error.strerror or error}")
        except aiohttp.ClientError as error:
            return Sample(fault=f"{url}: {error}")
        except ValueError as error:
            return Sample(fault=f"{url} {error}")
