"""An event loop without waiting: when nothing is left to do, its clock jumps to the next timer.

Callbacks that are ready together run in an order drawn from the seed. Every task belongs to a `Process`, which can be
paused (SIGSTOP: its timers fall due, nothing runs) and killed (SIGKILL: nothing of it ever runs again, no `finally`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import math
import random
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar, copy_context
from types import SimpleNamespace
from typing import Any
from unittest import mock

from mesh import aio

EPOCH = 1_700_000_000.0
"""Unix seconds at the loop's time 0."""

BEGIN = 1000.0
"""The loop's time at the start: a monotonic clock does not begin at 0 either."""


class Stuck(Exception):
    """Nothing is ready and nothing will ever be: somebody waits for what cannot come."""


class Process:
    """What is paused and killed as one. `skew`: seconds by which its wall clock is wrong."""

    def __init__(self, name: str, *, skew: float = 0.0) -> None:
        self.name = name
        self.skew = skew
        self.paused = False
        self.dead = False
        self.steps = 0
        self.ambush: tuple[float, Callable[[], None]] | None = None
        """Call this when so many steps have been taken: a fault at an await that no timer would hit. None spares it."""
        self.held: list[asyncio.Handle] = []
        self.pid = next(_pids)

    def context(self) -> Context:
        context = copy_context()
        context.run(PROCESS.set, self)
        return context


def _strike(process: Process) -> None:
    if process.ambush is not None:  # it may have been spared at the last moment
        strike, process.ambush = process.ambush[1], None
        strike()


_pids = itertools.count(1)

PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
"""Whose code runs; None: the world's own."""

WORLD = Context()
"""For what happens whoever is paused or dead: packets arrive, sessions lapse."""


class _Task(asyncio.Task[Any]):
    """Numbered in the order of creation, which is the same in every replay; its address is not."""

    number = 0
    process: Process | None = None


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` is virtual. Deterministic for a seed, given the same hash seed."""

    def __init__(self, choose: random.Random) -> None:
        super().__init__()
        self._virtual = BEGIN
        self._choose = choose
        self._tasks_made = 0
        self._fault: BaseException | None = None
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]
        self.steps = 0
        self.connect: Callable[[str], Coroutine[Any, Any, None]] | None = None
        """Who decides what becomes of a TCP connection to a host."""

    def time(self) -> float:
        return self._virtual

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task of that process."""
        return self.create_task(coroutine, name=name, context=process.context())

    def resume(self, process: Process) -> None:
        """What fell due while it was paused runs now."""
        process.paused = False
        self._ready.extend(process.held)  # type: ignore[attr-defined]
        process.held.clear()

    async def bury(self) -> None:
        """Ends all tasks but the caller's, also those of the dead: nothing is left to the garbage collector."""
        me = asyncio.current_task()
        while tasks := [task for task in asyncio.all_tasks() if task is not me]:
            for process in {process.name + str(id(process)): process for task in tasks
                            if (process := process_of(task))}.values():  # fmt: skip
                process.dead = False
                self.resume(process)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)

    def later(self, delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """A timer of the world's."""
        return self.call_later(delay, callback, *args, context=WORLD.copy())

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task = _Task(coroutine, loop=loop, **options)
        self._tasks_made += 1
        task.number = self._tasks_made
        context: Context | None = options.get("context")
        task.process = context.get(PROCESS) if context else PROCESS.get()
        return task

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0].cancelled():
            heapq.heappop(timers)._scheduled = False  # type: ignore[attr-defined]
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timers:
                raise Stuck(f"nothing will ever happen after {self._virtual:.3f}")
            self._virtual = max(self._virtual, timers[0].when())
        while timers and timers[0].when() <= self._virtual:
            timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]
            ready.append(timer)
        batch = list(ready)
        ready.clear()
        if len(batch) > 1:
            batch.sort(key=_number)  # sets of tasks are walked by their addresses, which no seed rules
            self._choose.shuffle(batch)
        for handle in batch:
            if not handle.cancelled():
                self._run(handle)

    def _run(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
        self.steps += 1
        if process is not None:
            if process.paused or process.dead:  # what the dead would have done is kept for `bury`
                process.held.append(handle)
                return
            process.steps += 1
            if process.ambush and process.steps >= process.ambush[0]:
                process.ambush = (math.inf, process.ambush[1])  # not again
                self.call_soon(_strike, process, context=WORLD.copy())
        handle._run()

    def add_reader(self, where: Any, callback: Callable[..., object], *args: object) -> None:
        context = copy_context()
        where.notify = lambda: self.call_soon(callback, *args, context=context)

    def remove_reader(self, where: Any) -> bool:
        where.notify = lambda: None
        return True

    async def create_connection(  # type: ignore[override]
        self, factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        assert self.connect is not None, "nobody has made a network"
        await self.connect(host)
        return SimpleNamespace(close=lambda: None, is_closing=lambda: True), factory()

    def _write_to_self(self) -> None:
        """There is no selector to be woken."""

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""


def process_of(task: asyncio.Task[Any]) -> Process | None:
    """Whose task it is."""
    return task.process if isinstance(task, _Task) else None


def _number(handle: asyncio.Handle) -> int:
    """The number of the task that it wakes; 0 for plain callbacks, which keep their order."""
    return getattr(getattr(handle._callback, "__self__", None), "number", 0)  # type: ignore[attr-defined]


@contextlib.contextmanager
def virtual_time(seed: int) -> Iterator[VirtualLoop]:
    """A loop whose clock is everybody's inside the block: `time.time`, `time.monotonic`, jitter."""
    loop = VirtualLoop(random.Random(f"order {seed}"))

    def wall() -> float:
        process = PROCESS.get()
        return EPOCH + loop.time() + (process.skew if process else 0.0)

    def pid() -> int:
        process = PROCESS.get()
        return process.pid if process else 0

    global _pids
    _pids = itertools.count(1)
    was_enabled = gc.isenabled()
    gc.disable()  # finalisers would run at moments that no seed rules
    try:
        with (
            mock.patch("time.time", wall),
            mock.patch("time.monotonic", loop.time),
            mock.patch("os.getpid", pid),
            mock.patch("socket.gethostname", return_value="simulated"),
            mock.patch.object(aio, "_random", random.Random(f"jitter {seed}")),
        ):
            yield loop
    finally:
        loop.close()
        if was_enabled:
            gc.enable()
        gc.collect()
