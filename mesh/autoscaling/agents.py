"""What the proxies of all nodes carry: `GET <admin>/v1/stats` of their agents."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import aiohttp
import msgspec

from mesh.dataplane.load import LoadReport

PATIENCE = 2.0
"""Seconds for an agent's answer."""

AT_ONCE = 32
"""Agents asked at one time."""

MAX_ANSWER = 32 * 1024 * 1024

STRAGGLERS = 0.5
"""Seconds that one round waits for all agents; who is later counts in the next."""

MAX_NAMES = 200
"""Services named in one question; of more, all are asked about."""


class Silent(msgspec.Struct, frozen=True, kw_only=True):
    """A node whose agent does not tell."""

    node: str
    problem: str


def session() -> aiohttp.ClientSession:
    """For questions to agents."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=AT_ONCE), timeout=aiohttp.ClientTimeout(total=PATIENCE)
    )


async def ask(http: aiohttp.ClientSession, node: str, admin: str, query: str = "") -> LoadReport | Silent:
    """What one node's proxy carries, or why that is not known."""
    if not admin:
        return Silent(node=node, problem="it does not report where its agent is")
    try:
        async with http.get(f"{admin}/v1/stats{query}", allow_redirects=False) as answer:
            if answer.status != 200:
                return Silent(node=node, problem=f"{admin}/v1/stats answers {answer.status}")
            return msgspec.json.decode(await body(answer, MAX_ANSWER), type=LoadReport)
    except TimeoutError:
        return Silent(node=node, problem=f"{admin} does not answer within {PATIENCE:g} s")
    except (aiohttp.ClientError, OSError, ValueError, msgspec.DecodeError) as error:
        return Silent(node=node, problem=f"{admin}: {error}")


async def body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The answer's body. Raises `ValueError` if it has more than `most` bytes."""
    whole = bytearray()
    async for chunk in answer.content.iter_any():
        whole += chunk
        if len(whole) > most:
            raise ValueError(f"the answer has more than {most} bytes")
    return bytes(whole)


@dataclass(frozen=True, slots=True)
class Question:
    """Whom to ask, and about what else than the load."""

    admin: str
    usage: Collection[str] = ()  # services of which CPU and memory are wanted

    def query(self, *, first: bool) -> str:
        """At first everything, so that what comes later can be told from what was; then only what is not idle."""
        parts = [] if first else ["active=1"]
        if self.usage:
            parts.append(f"usage={','.join(sorted(self.usage)) if len(self.usage) <= MAX_NAMES else '*'}")
        return f"?{'&'.join(parts)}" if parts else ""


class Agents:
    """Asks all agents, round by round. One that is slow is not asked twice, and keeps nobody waiting."""

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession | None = None
        self._asking: dict[str, asyncio.Task[LoadReport | Silent]] = {}
        self._known: set[str] = set()  # asked with success before
        self._failures = 0

    @property
    def failures(self) -> int:
        """Questions that got no answer, ever."""
        return self._failures

    async def round(self, questions: Mapping[str, Question]) -> dict[str, LoadReport | Silent]:
        """What came in now, by node."""
        self._http = self._http or session()
        for node in self._asking.keys() - questions.keys():
            self._asking.pop(node).cancel()
        self._known &= questions.keys()
        for node, question in questions.items():
            if node not in self._asking:
                query = question.query(first=node not in self._known)
                self._asking[node] = asyncio.create_task(ask(self._http, node, question.admin, query))
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=STRAGGLERS)
        answers = {node: task.result() for node, task in self._asking.items() if task.done()}
        for node, answer in answers.items():
            del self._asking[node]
            if isinstance(answer, Silent):
                self._failures += 1
                self._known.discard(node)
            else:
                self._known.add(node)
        return answers

    async def close(self) -> None:
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        self._asking.clear()
        self._known.clear()
        if self._http:
            await self._http.close()
            self._http = None
