"""What the proxies of all nodes sent to canaries, and got of them: asked once a second, while there are some."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from mesh.aio import Signal
from mesh.autoscaling.agents import Agents, Question, Silent
from mesh.dataplane.load import LoadReport
from mesh.model import RolloutState
from mesh.scheduler.plan import Outcome
from mesh.scheduler.service.rollout import Served
from mesh.view import View

TICK = 1.0
"""Seconds from one question to the next."""


class Trials:
    """Of one term of leading. `run` until cancelled; `follow` says whom to ask about what."""

    def __init__(self) -> None:
        self.served: Mapping[str, Served] = {}
        """By replica, of services with canaries: over the proxies' window, the last ten seconds."""
        self._services: frozenset[str] = frozenset()
        self._questions: Mapping[str, Question] = {}
        self._work = Signal()

    def follow(self, view: View, outcome: Outcome) -> None:
        """The picture as it now is."""
        plans = {**view.plans, **outcome.services}
        self._services = frozenset(name for name, plan in plans.items() if plan.rollout.state is RolloutState.CANARY)
        if not self._services:
            self.served = {}
            return
        self._questions = {node: Question(seen.report.admin) for node, seen in view.nodes.items() if seen.held}
        self._work.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Asks while there are canaries; `changed` is called when there is something new."""
        agents = Agents()
        try:
            while True:
                while not self._services:
                    await self._work.wait()
                answers = await agents.round(self._questions)
                served = served_by(answers.values(), self._services)
                if served != self.served:
                    self.served = served
                    changed()
                await asyncio.sleep(TICK)
        finally:
            await agents.close()


def served_by(answers: Iterable[LoadReport | Silent], services: Iterable[str]) -> dict[str, Served]:
    """What each replica of these services was sent, by all proxies that answered. A try that got no answer failed."""
    found: dict[str, Served] = {}
    names = set(services)
    for answer in answers:
        if isinstance(answer, Silent):
            continue
        for name in names & answer.services.keys():
            for id, told in answer.services[name].endpoints.items():
                requests = told.rps * answer.window
                failures = requests * (1 - (1.0 if told.success_ratio is None else told.success_ratio))
                before = found.get(id, Served())
                found[id] = Served(before.requests + requests, before.failures + failures)
    return found
