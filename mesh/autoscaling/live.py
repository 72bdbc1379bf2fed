"""The leader's autoscaler: looks once a second, at once where a service that sleeps is asked for, and decides.

It writes nothing itself. What it decided stands in the picture that the scheduler looks at (`overlaid`), and goes to
the store with all else that this look brings about (`added_to`), behind the same fence.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from mesh.aio import Signal
from mesh.autoscaling.agents import Agents, Question, Silent
from mesh.autoscaling.demand import Demand
from mesh.autoscaling.prometheus import Prometheus
from mesh.autoscaling.readings import RESOURCES, Moment, metrics_of, read
from mesh.autoscaling.telling import AutoscaleCounters, Explanation
from mesh.autoscaling.troubles import Troubles
from mesh.autoscaling.waiting import Waiting
from mesh.model import ScaleChange, ScaleState
from mesh.scheduler.autoscale import model
from mesh.scheduler.classify import Replica
from mesh.scheduler.count import Count, count_of
from mesh.scheduler.plan import Outcome
from mesh.view import View

if TYPE_CHECKING:
    from mesh.scheduler.autoscale.autoscaler import Autoscaler

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds from one look to the next."""

MAX_CHANGES = 20
"""Of the last changes of a service, kept for people."""

SAVE = 600.0
"""Seconds between two notes of what a new leader should know of a service's days."""

SAVED_AT_ONCE = 20
"""Such notes in one look."""

Muster = Mapping[str, Sequence[Replica]]


class Autoscaling:
    """Of one term of leading. `run` until cancelled; the rest is called by the scheduler's own loop."""

    def __init__(self, clock: Callable[[], float], counters: AutoscaleCounters) -> None:
        """`clock`: Unix seconds that never go back."""
        self._clock = clock
        self._changed: Callable[[], None] = lambda: None
        self._counters = counters
        self._began = clock()
        self._agents = Agents()
        self._demand = Demand()
        self._prometheus = Prometheus()
        self._work = Signal()  # there is something to follow
        self._bell = Signal()  # somebody waits
        self._waiting = Waiting(self._bell.set)
        self._view = View()
        self._musters: Mapping[str, Muster] = {}
        self._targets: dict[str, model.Target] = {}
        self._decided: dict[str, ScaleState] = {}  # not written yet
        self._to_save: dict[str, model.Memory] = {}
        self._saved = clock()
        self._restored = False
        self._of_resources: set[str] = set()  # services that scale on CPU or memory
        self._metered: set[str] = set()  # services whose figures are news every time
        self._asleep: set[str] = set()
        self._dirty: set[str] = set()  # services of which something changed since they were read
        self._active: set[str] = set()
        self._silent: tuple[str, ...] = ()
        self._held: Counter[str] = Counter()
        self._troubles: dict[str, Troubles] = {}

    @cached_property
    def _core(self) -> Autoscaler:
        """Made when the first service follows its load: it brings numpy, which most clusters can spare till then."""
        from mesh.scheduler.autoscale.autoscaler import Autoscaler

        return Autoscaler(self._began)

    # ── the scheduler's side ─────────────────────────────────────────────────────────────────

    def overlaid(self, view: View) -> View:
        """The picture with what was decided since; the services that follow their load are taken from it."""
        if not self._restored:
            self._restored = True
            if memories := [*memories_of(view)]:
                self._core.restore(memories)
        self._follow(view)
        self._decided = {name: state for name, state in self._decided.items()
                         if name in self._targets and view.scaled.get(name) != state}  # fmt: skip
        self._view = replace(view, scaled={**view.scaled, **self._decided}) if self._decided else view
        return self._view

    def added_to(self, outcome: Outcome, view: View) -> Outcome:
        """The outcome of a look at that picture, with the counts that are to be written and those that are to go."""
        musters = outcome.memory.look.musters if outcome.memory.look else {}
        before, self._musters = self._musters, musters
        self._dirty.update(name for name in self._targets if before.get(name) is not musters.get(name))
        gone = frozenset(name for name in view.scaled if name not in self._targets and _follows_no_more(view, name))
        return replace(outcome, scaled=dict(self._decided), removed_scaled=gone)

    def _follow(self, view: View) -> None:
        targets: dict[str, model.Target] = {}
        for name, wish in view.wishes.items():
            known = self._targets.get(name)
            plan = view.plans.get(name)
            if wish.spec is None or (plan and plan.errors):
                if known:  # a spec that cannot be used changes nothing
                    targets[name] = known
            elif wish.spec.kind == "service" and wish.spec.scale is not None and plan and plan.releases:
                by_hand = view.scale.get(name)
                held = by_hand if by_hand is not None else None if wish.spec.replicas else 0
                if known and known.scale is wish.spec.scale and known.held == held:
                    targets[name] = known
                else:
                    targets[name] = model.Target(scale=wish.spec.scale, held=held)
        if targets != self._targets:
            self._dirty.update(name for name, target in targets.items() if self._targets.get(name) is not target)
            self._targets = targets
            self._take_stock()
        for name, target in targets.items():
            if target.held is not None:
                self._go_on_from(name, target.held, view)

    def _take_stock(self) -> None:
        """Other services follow their load than before, or do so differently."""
        targets = self._targets
        self._core.follow(targets)
        queries = {(metric.prometheus.url, metric.prometheus.query)
                   for target in targets.values() for metric in target.scale.metrics if metric.prometheus}  # fmt: skip
        self._prometheus.follow(queries)
        self._of_resources = {name for name, target in targets.items() if metrics_of(target.scale) & RESOURCES}
        elsewhere = (name for name, target in targets.items() if any(one.prometheus for one in target.scale.metrics))
        self._metered = {*self._of_resources, *elsewhere}
        self._asleep &= targets.keys()
        self._troubles = {name: known for name, known in self._troubles.items() if name in targets}
        self._work.set()

    def _go_on_from(self, name: str, held: int, view: View) -> None:
        """What an operator holds is where the autoscaler goes on when it is released; of zero, at the spec's count."""
        state = self._decided.get(name) or view.scaled.get(name) or ScaleState()
        if state.replicas != (held or None):
            self._decided[name] = msgspec.structs.replace(state, replicas=held or None)

    # ── looking ──────────────────────────────────────────────────────────────────────────────

    async def run(self, changed: Callable[[], None]) -> None:
        """Looks and decides until cancelled; `changed` is called when something is to be written."""
        self._changed = changed
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._look_for_ever())
                group.create_task(self._wake_for_ever())
        finally:
            await self._agents.close()
            await self._prometheus.close()
            await self._waiting.close()

    async def _look_for_ever(self) -> None:
        while True:
            if not self._targets:
                self._waiting.follow({})
                await self._agents.close()
                await self._work.wait()
                continue
            due = time.monotonic() + TICK
            await self._look()
            await asyncio.sleep(max(due - time.monotonic(), TICK / 10))

    async def _wake_for_ever(self) -> None:
        """Somebody waits for a service that sleeps: no matter for the next second."""
        while True:
            await self._bell.wait()
            if any(not self._held[name] for name in self._waiting.services()):
                self._tick(self._now())

    async def _look(self) -> None:
        nodes = self._nodes()
        self._demand.expect(nodes)
        failures = self._agents.failures
        answers = await self._agents.round({node: self._question(node, admin) for node, admin in nodes.items()})
        self._counters.unanswered += self._agents.failures - failures
        now = self._now()
        for node, answer in answers.items():
            if not isinstance(answer, Silent):
                self._demand.take(node, answer, self._protocols, now.monotonic)
        active = self._demand.active
        self._dirty |= active | self._active | self._metered
        self._active = active
        if (silent := self._demand.silent(now.monotonic)) != self._silent:
            self._tell_silent(silent, answers)
            self._silent = silent
            self._dirty |= self._targets.keys()
        self._tick(now)
        self._waiting.follow(nodes if self._asleep else {})
        self._save()

    def _now(self) -> Moment:
        return Moment(time.monotonic(), self._clock())

    def _nodes(self) -> dict[str, str]:
        """Where the agents of all nodes answer that have not been given up."""
        return {name: seen.report.admin for name, seen in self._view.nodes.items()
                if not self._view.cluster.has_lost(name)}  # fmt: skip

    def _question(self, node: str, admin: str) -> Question:
        plan = self._view.node_plans.get(node) if self._of_resources else None
        return Question(admin, {one.service for one in plan.replicas} & self._of_resources if plan else ())

    def _protocols(self, service: str) -> dict[str, str] | None:
        plan = self._view.plans.get(service) if service in self._targets else None
        return {name: port.protocol for name, port in plan.ports.items()} if plan else None

    def _tell_silent(self, silent: Sequence[str], answers: Mapping[str, object]) -> None:
        for node in set(silent) - set(self._silent):
            answer = answers.get(node)
            why = answer.problem if isinstance(answer, Silent) else "it has not answered yet"
            log.warning("nothing is scaled down: node %s does not tell what it carries: %s", node, why)

    # ── deciding ─────────────────────────────────────────────────────────────────────────────

    def _tick(self, now: Moment) -> None:
        started = time.perf_counter()
        before, self._held = self._held, self._waiting.services()
        self._dirty.update(name for name in self._held | before if self._held[name] != before[name])
        names = self._dirty & self._targets.keys()
        self._dirty = set()
        readings = {name: reading for name in names if (reading := self._read(name, now))}
        decisions = self._core.tick(now.unix, readings)
        for decision in decisions:
            self._carry_out(decision)
        for name, reading in readings.items():
            self._watch_for_trouble(name, reading, now)
        self._counters.ticks += 1
        self._counters.seconds += time.perf_counter() - started
        if self._decided:
            self._changed()

    def _read(self, name: str, now: Moment) -> model.Reading | None:
        plan = self._view.plans.get(name)
        if plan is None:
            return None
        return read(
            self._targets[name].scale, plan, self._note_sleep(name).replicas, self._musters.get(name, {}), self._demand,
            self._prometheus.last, self._held[name], now,
        )  # fmt: skip

    def _note_sleep(self, name: str) -> Count:
        """Its count, by which agents are asked, or asked no more, who waits for it."""
        count = self._count(name)
        (self._asleep.add if count.asleep else self._asleep.discard)(name)
        return count

    def _count(self, name: str) -> Count:
        """As it will be once what was decided is written."""
        view, plan = self._view, self._view.plans[name]
        spec = None if plan.errors else view.wishes[name].spec
        return count_of(spec, view.scale.get(name), self._state(name), plan.desired)

    def _state(self, name: str) -> ScaleState:
        return self._decided.get(name) or self._view.scaled.get(name) or ScaleState()

    def _carry_out(self, decision: model.Decision) -> None:
        """Notes a count to be written; one that is noted already needs no second note."""
        name, state = decision.service, self._state(decision.service)
        if self._targets[name].held is not None or decision.replicas in (self._count(name).replicas, state.replicas):
            return
        change = ScaleChange(
            time=decision.time, current=decision.current, replicas=decision.replicas, metric=decision.metric,
            recommendation=decision.recommendation, window=decision.window, limit=decision.limit, why=decision.why,
        )  # fmt: skip
        changes = [*state.changes, change][-MAX_CHANGES:]
        self._decided[name] = msgspec.structs.replace(state, replicas=decision.replicas, changes=changes)
        self._dirty.add(name)
        self._note_sleep(name)  # the next second would be late for who asks in this one
        self._counters.wakes += not decision.current
        self._counters.ups += decision.replicas > decision.current
        self._counters.downs += decision.replicas < decision.current

    def _watch_for_trouble(self, name: str, reading: model.Reading, now: Moment) -> None:
        problems = self._troubles.setdefault(name, Troubles()).update(reading, now.monotonic)
        for metric in self._targets[name].scale.metrics:
            sample = reading.metrics.get(model.key_of(metric))
            self._counters.metric_failures += sample is None or sample.value is None
        if problems != self._state(name).problems:
            self._decided[name] = msgspec.structs.replace(self._state(name), problems=problems)
            self._dirty.add(name)

    # ── remembering ──────────────────────────────────────────────────────────────────────────

    def _save(self) -> None:
        """Notes what a new leader should know, a few services at a time."""
        now = self._clock()
        if now - self._saved >= SAVE:
            self._to_save.update((memory.service, memory) for memory in self._core.memories(self._saved))
            self._saved = now
        for name in list(self._to_save)[:SAVED_AT_ONCE]:
            memory = self._to_save.pop(name)
            if name in self._targets:
                self._decided[name] = msgspec.structs.replace(
                    self._state(name), season=memory.season, season_at=memory.time
                )
                self._changed()

    # ── telling ──────────────────────────────────────────────────────────────────────────────

    def explain(self, service: str) -> Explanation | None:
        """What was decided last about a service, and why; None if it does not follow its load."""
        if service not in self._targets:
            return None
        try:
            decision = self._core.explain(service)
        except KeyError:
            decision = None
        return Explanation.of(service, decision, self._state(service), self._targets[service].held)


def memories_of(view: View) -> Iterator[model.Memory]:
    """What the leaders before have left."""
    for name, state in view.scaled.items():
        if state.season or state.changes:
            changes = [(change.time, change.replicas - change.current) for change in state.changes]
            yield model.Memory(service=name, time=state.season_at, season=state.season, changes=changes)


def _follows_no_more(view: View, name: str) -> bool:
    """Its wish is gone, or says so; one that cannot be read says nothing."""
    wish = view.wishes.get(name)
    return wish is None or (wish.spec is not None and (wish.spec.scale is None or wish.spec.kind != "service"))
