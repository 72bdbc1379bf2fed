"""Small asyncio tools that several parts need."""

import asyncio
import logging
import random
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Backoff:
    """Waits that double from `first` to `longest` seconds, each with full jitter above one half.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter").
    """

    def __init__(self, first: float, longest: float, *, random: random.Random | None = None) -> None:
        self._first = first
        self._longest = longest
        self._random = random or _random
        self._next = first

    def reset(self) -> None:
        self._next = self._first

    def next(self) -> float:
        """Seconds to wait now."""
        wait = self._next
        self._next = min(self._next * 2, self._longest)
        return wait * (0.5 + self._random.random() / 2)

    async def sleep(self) -> None:
        await asyncio.sleep(self.next())


_random = random.Random()


class Signal:
    """`Look again`: any number of `set()` before a `wait()` are one. Levels, not edges."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits for a `set()` since the last return; False if `timeout` seconds passed first."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Tasks:
    """Background tasks that are held, whose failures are logged, and that end together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("task %s failed: %s", task.get_name(), error, exc_info=error)

    async def finish(self, timeout: float) -> None:
        """Gives all of them `timeout` seconds to end by themselves, then cancels the rest."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout)
        await self.close()

    async def close(self) -> None:
        """Cancels all and waits for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Pending:
    """Names to look at again: however often one is added, it is taken once. Bounded by the number of names."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._added = Signal()

    def add(self, name: str) -> None:
        self._names[name] = None
        self._added.set()

    async def take(self, timeout: float | None = None) -> list[str]:
        """All names in the order of their first `add`; empty if none came within `timeout` seconds."""
        await self._added.wait(timeout)
        names, self._names = list(self._names), {}
        return names
