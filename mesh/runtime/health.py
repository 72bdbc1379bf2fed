"""Is a replica fit for traffic, is it alive? The machine that counts, and the loops that feed it.

`ProbeState` is pure; the checks themselves are in `probes`. A replica is checked at once when it has started, then,
until it has first passed, after a tenth of its age each time, so that its readiness is seen at most 10 % late however
slow its start is, and the successes that `rise` wants come in quick succession. From then on `interval` rules.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mesh.aio import Tasks
from mesh.runtime import Instance, Runtime, RuntimeUnavailable
from mesh.runtime.probes import Check, ProbeFailed, check_of
from mesh.spec.service import Probe, ServiceSpec

HURRY = 0.05
HURRY_EXEC = 0.5
"""An exec costs an engine some 100 ms of CPU, a connection less than one."""
WAKE_UP = 0.25
"""Seconds. Checks of replicas that pass are due at multiples of it: on an idle machine the wake-up, which they so
share, costs more than the check."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the probes say of a replica; None: no verdict yet, or no such probe."""

    id: str
    ready: bool | None = None
    alive: bool | None = None
    message: str = ""


@dataclass(slots=True)
class ProbeState:
    """Counts the results of one probe of one replica. Times are of any one clock, in seconds.

    `passing` turns on after `rise` successes in a row and off after `fall` failures in a row. Failures within `grace`
    seconds of the start do not count, until the probe has first passed.
    """

    rise: int
    fall: int
    grace: float
    started: float
    passing: bool
    """False at first for readiness (unfit until proven fit), True for liveness."""
    proven: bool = False
    """There has been a success while passing."""
    against: int = 0
    """Results in a row that speak against `passing`."""

    def observe(self, ok: bool, now: float) -> bool:
        """Takes in a result; True if `passing` has turned."""
        if ok == self.passing or (not ok and not self.proven and now < self.started + self.grace):
            self.against = 0
            self.proven |= ok
            return False
        self.against += 1
        if self.against < (self.rise if ok else self.fall):
            return False
        self.against = 0
        self.passing = ok
        self.proven |= ok
        return True

    def wait(self, now: float, interval: float, hurry: float = HURRY) -> float:
        """Seconds until the next check."""
        if self.proven or self.passing:
            return interval
        return min(interval, hurry if self.against else max(hurry, (now - self.started) / 10))


class Prober:
    """Probes replicas of one runtime, and tells each change of what it thinks of them."""

    def __init__(self, runtime: Runtime, tell: Callable[[Verdict], None]) -> None:
        self._runtime = runtime
        self._tell = tell
        self._tasks = Tasks()
        self._watches: dict[str, list[asyncio.Task[None]]] = {}

    def begin(self, id: str, spec: ServiceSpec, instance: Instance, *, ready: bool) -> None:
        """`ready`: the replica was ready before; one that is adopted keeps its traffic, and its start is over."""
        self.end(id)
        probes: list[tuple[Probe | None, bool, Callable[[bool, str], None]]] = [
            (spec.health.ready, ready, lambda passing, why: self._tell(Verdict(id, ready=passing, message=why))),
            (spec.health.alive, True, lambda passing, why: self._tell(Verdict(id, alive=passing, message=why))),
        ]
        self._watches[id] = [
            self._tasks.spawn(
                self._watch(probe, check_of(probe, spec, instance, self._runtime), passing, ready, tell), f"probe {id}"
            )
            for probe, passing, tell in probes
            if probe
        ]

    def end(self, id: str) -> None:
        for watch in self._watches.pop(id, ()):
            watch.cancel()

    async def close(self) -> None:
        await self._tasks.close()

    async def _watch(
        self, probe: Probe, check: Check, passing: bool, proven: bool, tell: Callable[[bool, str], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        hurry = HURRY_EXEC if probe.exec else HURRY
        state = ProbeState(probe.rise, probe.fall, probe.start, loop.time(), passing, proven)
        told = ""
        while True:
            with suppress(RuntimeUnavailable):  # says nothing of the replica
                problem = await problem_of(check)
                turned = state.observe(not problem, loop.time())
                if turned or (problem and not state.passing and problem != told):
                    told = problem
                    tell(state.passing, problem)
            now = loop.time()
            due = now + state.wait(now, probe.interval, hurry)
            if state.passing and probe.interval > WAKE_UP:
                due = math.ceil(due / WAKE_UP) * WAKE_UP
            await asyncio.sleep(due - now)


async def problem_of(check: Check) -> str:
    """What is wrong by this check, or nothing."""
    try:
        await check()
    except ProbeFailed as failure:
        return str(failure)
    return ""
