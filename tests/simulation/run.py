"""One run: a seed makes a cluster, a schedule of trouble, and a verdict. The same seed, the same run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from unittest import mock

from mesh import probing
from mesh.autoscaling import agents
from mesh.autoscaling.waiting import Waiting
from mesh.model import NodePlan, NodeReport, ServicePlan
from mesh.view import decode_document
from tests.simulation.chaos import Chaos
from tests.simulation.clock import BEGIN, EPOCH, PROCESS, VirtualLoop, virtual_time
from tests.simulation.cluster import Cluster
from tests.simulation.history import Ended, Fact, Offered, Said, Started, ToldToStop, Trouble, Written
from tests.simulation.network import KEYS
from tests.simulation.operators import EXTRAS
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.peers import socket_module

QUIET = 240.0
"""Virtual seconds after the last fault within which everything is as desired."""
EACH_NODE = 8.0
"""The same for each node: a global service is rolled out one node after the other."""

REST = 12.0
"""Virtual seconds of being as desired that count as rest: what was said last may not have been heard and done yet."""

STAYS = 60.0
"""Virtual seconds for which it must stay so."""

IDLE = 30.0
"""Virtual seconds between the ticks of probers that have nobody to probe."""

MANY = 16
"""Nodes, of which more are not probed."""

LOOK = 0.5
"""Virtual seconds between the oracle's looks at what is offered."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How large a cluster is, what happens in it, and how much trouble it has."""

    nodes: int
    calm_steps: int
    steps: int
    probes: bool
    extras: frozenset[str] = frozenset()

    @classmethod
    def of(cls, seed: int, nodes: int | None = None, *, plain: bool = False) -> Schedule:
        """`plain`: without `EXTRAS`, and small."""
        choose = random.Random(f"schedule {seed}")
        drawn = choose.choice([2, 3, 3, 4, 5])
        made = cls(nodes or drawn, calm_steps=choose.choice([0, 0, 4]), steps=choose.randint(3, 14),
                   probes=choose.random() < 0.25)  # fmt: skip
        if plain:
            return made
        extras = frozenset(name for name in EXTRAS if choose.random() < 0.3)
        large = choose.choices([0, choose.randint(8, 16), choose.randint(17, 50)], [95, 4, 1])[0]
        probes = made.probes and large <= MANY  # that all probe all is much work for one process
        return replace(made, nodes=nodes or large or drawn, probes=probes, extras=extras)


@dataclass(slots=True)
class Result:
    seed: int
    violations: list[Violation]
    facts: list[Fact] = field(default_factory=list)
    virtual: float = 0.0  # seconds
    steps: int = 0  # callbacks run
    digest: int = 0  # equal for equal runs


class Run:
    """`story`: keeps every fact; without it a run is faster and comes to the same."""

    def __init__(self, seed: int, nodes: int | None = None, *, plain: bool = False, story: bool = False) -> None:
        self.seed = seed
        self.schedule = Schedule.of(seed, nodes, plain=plain)
        self.oracle = Oracle(wall=EPOCH)
        self.facts: list[Fact] = []
        self._story = story
        self._digest = 0
        self._stopped = False

    def __call__(self) -> Result:
        with virtual_time(self.seed) as loop, _logs(self._log(loop), story=self._story):
            loop.set_exception_handler(self._unhandled(loop))
            loop.run_until_complete(self._main(loop))
            virtual, steps = loop.time() - BEGIN, loop.steps
        return Result(self.seed, self.oracle.violations, self.facts, virtual, steps, self._digest)

    def _record(self, fact: Fact) -> None:
        if self._stopped:
            return
        if self._story:
            self.facts.append(fact)
        if isinstance(fact, Written | Started | Ended | Trouble):
            words = f"{fact.at:.6f} {type(fact).__name__} {getattr(fact, 'key', '')}"
            self._digest = zlib.crc32(words.encode(), self._digest)
        self.oracle.observe(fact)

    async def _main(self, loop: VirtualLoop) -> None:
        cluster = Cluster(loop, self.schedule.nodes, random.Random(f"cluster {self.seed}"), self._record,
                          probes=self.schedule.probes)  # fmt: skip
        with (
            mock.patch.object(probing, "socket", socket_module(cluster.peers)),
            mock.patch.dict(probing.Prober.__init__.__kwdefaults__, clock=loop.time),  # bound when it was defined
            mock.patch.object(probing, "TICK", probing.TICK if self.schedule.probes else IDLE),
            mock.patch.object(agents, "ask", cluster.load.ask),
            mock.patch.object(Waiting, "_ask", cluster.load.waiting),
        ):
            await self._live(cluster, loop)

    async def _live(self, cluster: Cluster, loop: VirtualLoop) -> None:
        await cluster.start()
        chaos = Chaos(cluster, self.seed, self.schedule.extras)
        looking = loop.create_task(self._keep_looking(loop))
        trouble = loop.create_task(chaos.run(self.schedule.calm_steps, self.schedule.steps))
        await asyncio.wait([trouble, looking], return_when=asyncio.FIRST_COMPLETED)
        if not self.oracle.violations:
            trouble.result()
            chaos.heal()
            cluster.say("everything is healed")
            await self._judge_the_end(loop, chaos)
        looking.cancel()
        self._stopped = True
        await cluster.end()

    async def _keep_looking(self, loop: VirtualLoop) -> None:
        """Ends at the first violation."""
        while not self.oracle.violations:
            await asyncio.sleep(LOOK)
            self.oracle.look(loop.time())

    async def _judge_the_end(self, loop: VirtualLoop, chaos: Chaos) -> None:
        oracle = self.oracle
        quiet = QUIET + EACH_NODE * self.schedule.nodes
        deadline = loop.time() + quiet
        differences: list[str] = []
        since = loop.time()
        while not oracle.violations and loop.time() < min(deadline, since + REST):
            await asyncio.sleep(1.0)
            chaos.operators.tend()
            if differences := oracle.differences():
                since = loop.time()
        if differences and not oracle.violations:
            oracle.violated("a", f"{quiet:g} s after the last fault: " + "; ".join(differences))
        running = set(oracle.running)
        end = loop.time() + STAYS
        while loop.time() < end and not oracle.violations:
            await asyncio.sleep(1.0)
            if changed := running ^ set(oracle.running):
                oracle.violated("a", f"it had come to rest, and then {', '.join(sorted(changed))} changed")
        if not oracle.violations:
            oracle.check_fixpoint()

    # ── what the code says ───────────────────────────────────────────────────────────────────

    def _log(self, loop: VirtualLoop) -> Callable[[logging.LogRecord], None]:
        def take(record: logging.LogRecord) -> None:
            process = PROCESS.get()
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] and record.levelno >= logging.ERROR:
                text += f" ({record.exc_info[1]!r})"
            self._record(Said(loop.time(), process.name if process else "", text, record.levelno >= logging.ERROR))

        return take

    def _unhandled(self, loop: VirtualLoop) -> Callable[[asyncio.AbstractEventLoop, dict[str, object]], None]:
        def take(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
            text = f"{context.get('message')}: {context.get('exception')!r}"
            self._record(Said(loop.time(), "", text, is_error=True))

        return take


class _Handler(logging.Handler):
    def __init__(self, take: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        self._take(record)


@contextlib.contextmanager
def _logs(take: Callable[[logging.LogRecord], None], *, story: bool) -> Iterator[None]:
    """Shows the log of everything that the mesh does inside the block; without a story its errors alone."""
    logger, handler = logging.getLogger("mesh"), _Handler(take)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if story else logging.ERROR)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


# ── the story ────────────────────────────────────────────────────────────────────────────────


def story(facts: list[Fact], violations: list[Violation]) -> str:
    """The facts as sentences, with what was found at the end."""
    teller = _Teller()
    lines = [f"{fact.at - BEGIN:9.3f}  {text}" for fact in facts for text in teller.tell(fact)]
    lines += [f"{found.at - BEGIN:9.3f}  !! {found}" for found in violations]
    return "\n".join(lines)


class _Teller:
    def __init__(self) -> None:
        self._reports: dict[str, NodeReport] = {}
        self._plans: dict[str, NodePlan] = {}
        self._events: dict[str, float] = {}
        self._offered: dict[str, dict[str, str]] = {}
        self._holders: dict[str, str | None] = {}

    def tell(self, fact: Fact) -> list[str]:
        match fact:
            case Trouble(_, who, what, begins):
                return [f"{'▼' if begins else '▲'} {who}: {what}{'' if begins else ' — over'}"]
            case Said(_, who, text, is_error):
                return [f"{'✗' if is_error else '·'} {who or 'world'}: {text}"]
            case Started():
                return [f"  {fact.node} runs {fact.id}"]
            case Ended():
                return [f"  {fact.node} runs {fact.id} no more ({fact.how}{', as asked' if fact.asked else ''})"]
            case ToldToStop():
                return [f"  {fact.node} gives {fact.id} {fact.signal}"]
            case Offered(_, node, endpoints):
                before, self._offered[node] = self._offered.get(node, {}), dict(endpoints)
                changed = [f"{id} {endpoints.get(id, 'gone')}" for id in sorted(before.keys() | endpoints.keys())
                           if before.get(id) != endpoints.get(id)]  # fmt: skip
                return [f"  {node} offers: {', '.join(changed)}"]
            case Written():
                return list(self._written(fact))
        return []

    def _written(self, fact: Written) -> list[str]:
        lines = []
        if self._holders.get(fact.key) != fact.session:
            self._holders[fact.key] = fact.session
            lines.append(f"  {fact.key}: held by {fact.session or 'nobody'}")
        if fact.key.startswith(KEYS.observed_nodes) and fact.value:
            report = decode_document(fact.value, NodeReport)
            before = self._reports.get(report.node)
            old = {one.id: one.state for one in before.replicas} if before else {}
            new = {one.id: one.state for one in report.replicas}
            self._reports[report.node] = report
            if told := _changes(old, new):
                lines.append(f"  {report.node} reports {told}")
        elif fact.key.startswith(KEYS.planned_nodes):
            node = fact.key.removeprefix(KEYS.planned_nodes)
            plan = decode_document(fact.value, NodePlan) if fact.value else NodePlan(node=node)
            old_plan, self._plans[node] = self._plans.get(node), plan
            wanted = {one.id: one.want for one in old_plan.replicas} if old_plan else {}
            told = _changes(wanted, {one.id: one.want for one in plan.replicas})
            lines.append(f"  {fact.writer} plans {node}: {told}{' LOST' if plan.lost else ''}")
        elif fact.key.startswith(KEYS.planned_services) and fact.value:
            service = decode_document(fact.value, ServicePlan)
            last = self._events.get(service.service, 0.0)
            lines += [f"  {fact.writer} decides {service.service}: {event.text} ({event.cause})"
                      for event in service.events if event.time > last]  # fmt: skip
            self._events[service.service] = max((event.time for event in service.events), default=last)
        return lines


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    return ", ".join(f"{id} {new.get(id, 'gone')}" for id in sorted(old.keys() | new.keys())
                     if old.get(id) != new.get(id))  # fmt: skip
