"""One node's agent: the shell around `state.AgentState`, where events come from and actions go to.

store ──plan──►┐                       ┌──► hands ──► runtime
runtime ─list─►├─► AgentState.handle ──┤
probes ─verdict►┘        │             └──► probes
                         └─ replica states ─► Table ─► workers (DNS, proxy)
                                          └─► reporter ─► store
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from mesh import __version__
from mesh.agent.events import (
    Action,
    Event,
    Hindered,
    Isolated,
    Listed,
    Moment,
    Planned,
    Prepare,
    Probe,
    Remembered,
    Start,
    Tick,
    Unprobe,
)
from mesh.agent.hands import Hands
from mesh.agent.needs import ISOLATION_GRACE
from mesh.agent.publish import Publisher
from mesh.agent.report import Reporter, session_name
from mesh.agent.state import ISOLATED, AgentState
from mesh.agent.surroundings import surroundings
from mesh.agent.vip_route import VipMode
from mesh.agent.watches import Watches
from mesh.aio import Backoff, Signal, Tasks
from mesh.dataplane.workers import Workers
from mesh.hearing import Sign
from mesh.keys import Keys
from mesh.metrics import Family, Sample
from mesh.model import Capacity, NodePlan, NodeReport, ReplicaReport
from mesh.probing import Echo
from mesh.probing import Prober as NodeProber
from mesh.runtime import Facts, InstanceState, Runtime, RuntimeFault
from mesh.runtime.health import Prober
from mesh.settings import AgentSettings
from mesh.store import Store, StoreDenied, StoreError
from mesh.store.lease import Held
from mesh.table import Table
from mesh.view import View

log = logging.getLogger(__name__)

LISTING = 30.0
"""Seconds between full listings of the runtime's instances, whatever its events say."""

ENGINE_RETRY = 1.0
"""Seconds between attempts to reach an engine that does not answer."""

STORE_RETRIES = (0.2, 2.0)
SAY_EVERY = 5.0
"""Seconds between the lines that say that the store is away at the start."""

ISOLATED_AFTER = 1.5
"""TTLs without a confirmed session until singletons are stopped, which takes up to `WITHDRAWAL` and their grace."""
DISOWNED_AFTER = 0.5
"""Seconds for which the key may be wanting where a session was ended early: five after its end all is replaced, and
by then singletons are to be gone."""
UNCLAIMED_AFTER = 0.5
"""TTLs from an agent's start without a claim: it cannot know for how long its earlier life had no session."""
ISOLATION_LOOK = 0.25
"""Seconds between two looks at these."""

PATIENCE = 5.0
"""Seconds for actions that are under way when everything is to be removed."""

WITHDRAWAL = 2.0
"""Seconds that the data plane and the store get to learn of a withdrawal before the drain time begins anyway."""


class Agent:
    """Everything of one node. `run` until cancelled, then `close`."""

    def __init__(
        self,
        settings: AgentSettings,
        store: Store,
        runtime: Runtime,
        workers: Workers,
        *,
        problems: Sequence[str] = (),
        gateway: str = "",
        echo: Echo | None = None,
        answer_probes: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`problems`: what was found wrong with this node before it started; `gateway`: see `surroundings`; `echo`:
        what answers probes of it, from `answer_probes` on.
        """
        self._settings = settings
        self._gateway = gateway
        self._store = store
        self._runtime = runtime
        self._workers = workers
        self._keys = Keys(settings.store.root)
        self._tasks = Tasks()

        self._state = AgentState()
        self._replicas: list[ReplicaReport] = []
        self._timer: asyncio.TimerHandle | None = None
        self._leaving = False  # nothing is begun any more
        self._probes = Prober(runtime, self._handle)
        self._hands = Hands(runtime, store, self._keys, withdraw=self._withdrawn, tell=self._handle)

        self._watches = Watches(store, self._keys, settings.node)
        self._view: View | None = None  # None until every watch has delivered
        self._plan: NodePlan | None = None
        self._stale = Signal()  # the Table may differ from what the workers have

        self._echo = echo
        self._answer_probes = answer_probes
        self._silent: set[str] = set()
        self._prober = NodeProber(settings.node, echo)

        self._publisher = Publisher(settings, store, self._keys, workers)

        self._look = Signal()  # an instance may have changed
        self._listed = 0.0  # when the engine was asked for the newest listing
        self._facts: Facts | None = None
        self._engine_problem = ""
        self._before: NodeReport | None = None  # of this agent's earlier life
        self._standing_problems = list(problems)
        self._problems = self._standing_problems
        self._reporter = Reporter(
            store, self._keys.node_report(settings.node), session_name(settings.node, settings.state),
            settings.session_ttl, report=self._report, incomplete=lambda: self._state.explaining,
            look=self._look.set,
        )  # fmt: skip

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Waits for the store if need be, then keeps the node as planned until it is cancelled.

        Raises:
            Held: if another machine's agent has this node's name.
            StoreDenied: if the token may not claim the node.
        """
        await self._ask_facts()
        unclaimed = self._tasks.spawn(self._end_unclaimed_singletons(), "singletons of a node without a claim")
        self._before = await self._claim()
        unclaimed.cancel()
        if self._answer_probes:
            await self._answer_probes()  # not before: whoever does not know what it should run is no sign of life
        if self._before:
            self._handle(Remembered(tuple(self._before.replicas)))
        async with asyncio.TaskGroup() as group:
            self._watches.begin(group)
            for loop in (self._read_store, self._publish_tables, self._list_instances, self._hear_runtime,
                         self._hear_workers, self._hear_nodes, self._mind_isolation, self._prober.run,
                         self._reporter.run):  # fmt: skip
                group.create_task(loop(), name=loop.__name__)

    async def close(self, *, leave: bool = False) -> None:
        """Ends the agent's own work; replicas run on. `leave`: the node's key is given back at once."""
        if self._timer:
            self._timer.cancel()
        await self._tasks.close()
        await self._publisher.close()
        await self._probes.close()
        await self._prober.close()
        await self._reporter.close(leave=leave)

    async def remove_all(self, grace: float) -> None:
        """Stops and removes every replica of this node, without drain: for `mesh dev`, which leaves nothing."""
        self._leaving = True
        await self._tasks.finish(PATIENCE)  # a start that is under way would come after the listing
        instances = await self._runtime.instances()
        await asyncio.gather(*(self._stop(instance.id, grace) for instance in instances))

    async def _stop(self, id: str, grace: float) -> None:
        try:
            await self._runtime.signal_and_wait(id, "SIGTERM", grace)
            await self._runtime.remove(id)
        except RuntimeFault as error:
            log.warning("replica %s: cannot be removed: %s", id, error)

    async def _claim(self) -> NodeReport | None:
        """Waits for the store, however long, and says so."""
        backoff = Backoff(*STORE_RETRIES)
        said = -SAY_EVERY
        while True:
            try:
                return await self._reporter.claim()
            except (Held, StoreDenied):
                raise
            except StoreError as error:
                if time.monotonic() - said >= SAY_EVERY:
                    said = time.monotonic()
                    log.warning("waiting for the store: %s", error)
            await backoff.sleep()

    async def _end_unclaimed_singletons(self) -> None:
        """What the plan says of them cannot be read; others may have been told to replace them."""
        await asyncio.sleep(UNCLAIMED_AFTER * self._settings.session_ttl)
        while True:
            with suppress(RuntimeFault):  # tried again
                for one in await self._runtime.instances():
                    if one.singleton and one.state is InstanceState.RUNNING:
                        log.warning("replica %s: %s", one.id, ISOLATED)
                        await self._runtime.signal_and_wait(one.id, "SIGTERM", ISOLATION_GRACE)
            await asyncio.sleep(ENGINE_RETRY)

    # ── the heart ────────────────────────────────────────────────────────────────────────────

    def _handle(self, event: Event) -> None:
        for action in self._state.handle(event, _now()):
            match action:
                case Probe(id, spec, instance, ready):
                    self._probes.begin(id, spec, instance, ready=ready)
                case Unprobe(id):
                    self._probes.end(id)
                case _ if not self._leaving:
                    self._tasks.spawn(self._act(action), f"{type(action).__name__} {action.id}")
        self._arm_timer()
        replicas = self._state.reports()
        if replicas != self._replicas:
            self._replicas = replicas
            self._stale.set()
            self._reporter.changed()

    async def _act(self, action: Action) -> None:
        event = await self._hands.do(action)
        if isinstance(event, Hindered) and (event.retry or not isinstance(action, (Prepare, Start))):
            log.warning("replica %s: %s: %s: trying again", event.id, type(action).__name__.lower(), event.why)
            self._look.set()  # it may have been done all the same
        self._handle(event)

    def _arm_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if (wake := self._state.wake()) is not None:
            delay = max(wake - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._handle, Tick())

    async def _withdrawn(self) -> None:
        """Returns when no new request of this node meets a withdrawn replica, and the others have been told."""
        sequence = self._publish()
        in_time = await asyncio.gather(
            self._workers.acknowledged(sequence, WITHDRAWAL), self._reporter.published(WITHDRAWAL)
        )
        if not all(in_time):
            log.warning("withdrawal goes on without %s", "the workers" if not in_time[0] else "the store")

    # ── the runtime ──────────────────────────────────────────────────────────────────────────

    async def _ask_facts(self) -> None:
        try:
            self._facts = await self._runtime.facts()
        except RuntimeFault as error:
            self._engine_says(str(error))

    async def _list_instances(self) -> None:
        while True:
            asked = time.monotonic()
            try:
                if self._facts is None or self._engine_problem:
                    self._facts = await self._runtime.facts()
                instances = await self._runtime.instances()
            except RuntimeFault as error:
                self._engine_says(str(error))
                await self._look.wait(ENGINE_RETRY)
                continue
            self._engine_says("")
            if self._listed < self._reporter.claimed <= asked:
                self._reporter.changed()
            self._listed = asked
            self._handle(Listed(tuple(instances), asked))
            await self._look.wait(LISTING)

    async def _hear_runtime(self) -> None:
        async for _ in self._runtime.events():
            self._look.set()

    def _engine_says(self, problem: str) -> None:
        if problem == self._engine_problem:
            return
        if problem:
            log.warning("%s: replicas are kept as they were last seen", problem)
        else:
            log.info("the engine answers again")
        self._engine_problem = problem
        self._tell_problems()

    # ── the store ────────────────────────────────────────────────────────────────────────────

    async def _read_store(self) -> None:
        while True:
            await self._watches.news.wait()
            self._view = self._watches.view()
            if self._view is None:
                continue
            await self._publisher.choose_vips(self._view.config.vip_range)
            self._hands.surroundings = surroundings(self._settings, self._view.config.domain, self._gateway)
            self._prober.follow({name: seen.report.probe for name, seen in self._view.nodes.items()},
                                self._view.config.failure_detection)  # fmt: skip
            plan = self._view.node_plans.get(self._settings.node)
            if plan is not None and plan is not self._plan:
                self._plan = plan
                self._handle(Planned(plan))
            self._tell_problems()
            self._stale.set()

    # ── the Table ────────────────────────────────────────────────────────────────────────────

    async def _publish_tables(self) -> None:
        while True:
            await self._stale.wait()
            self._publish()

    def _publish(self) -> int:
        """Gives the workers the newest Table: what the store says, with this node's own replicas as they are now."""
        if self._view is None:
            return 0
        return self._publisher.publish(self._view, self._report(), self._prober.sights)

    async def _hear_nodes(self) -> None:
        while True:
            await self._prober.news.wait()
            silent = {name for name, sight in self._prober.sights.items() if sight.sign is Sign.SILENT}
            if silent - self._silent:
                self._tasks.spawn(self._watches.ask_anew(), "ask anew")
            self._silent = silent
            self._stale.set()

    async def _mind_isolation(self) -> None:
        """A session lapses after twice its TTL; singletons are gone before that."""
        while True:
            await asyncio.sleep(ISOLATION_LOOK)
            late = self._reporter.isolation > ISOLATED_AFTER * self._settings.session_ttl
            if late or self._reporter.disowned > DISOWNED_AFTER:
                self._handle(Isolated())

    # ── what it says of itself ───────────────────────────────────────────────────────────────

    def _report(self) -> NodeReport:
        before, facts, settings = self._before, self._facts, self._settings
        return NodeReport(
            node=settings.node,
            address=settings.address,
            admin=_reachable(settings.admin_listen, settings.address),
            probe=self._echo.address if self._echo else "",
            version=__version__,
            runtime=facts.name if facts else before.runtime if before else settings.runtime,
            attributes={
                "arch": platform.machine(), "os": platform.system().lower(), "kernel": platform.release(),
                "engine": facts.version if facts else "",
            },
            labels=dict(settings.labels),
            capacity=facts.capacity if facts else before.capacity if before else Capacity(),
            reserved=settings.reserved,
            replicas=self._replicas,
            remembered=self._listed < self._reporter.claimed,
            problems=self._problems,
        )  # fmt: skip

    async def _hear_workers(self) -> None:
        while True:
            await self._workers.news.wait()
            self._tell_problems()

    def _tell_problems(self) -> None:
        problems = self._all_problems()
        if problems != self._problems:
            self._problems = problems
            self._reporter.changed()

    def _all_problems(self) -> list[str]:
        problems = [*self._standing_problems, *filter(None, [self._engine_problem])]
        if self._view:
            mine = (f"{self._keys.node_plan(self._settings.node)}: ", f"{self._keys.config}: ")
            problems += [f"{text}; what runs is kept" for text in self._view.problems if text.startswith(mine)]
        return problems + self._workers.problems()

    @property
    def node(self) -> str:
        return self._settings.node

    @property
    def table(self) -> Table | None:
        return self._workers.table

    @property
    def vips(self) -> VipMode | None:
        """How this node answers for virtual IPs; None until the cluster's settings are known."""
        return self._publisher.vips

    def replicas(self) -> list[ReplicaReport]:
        return self._replicas

    def waiting_for(self) -> list[str]:
        """Why this node does not serve yet; empty when it does."""
        reasons = []
        if self._view is None:
            reasons.append(f"waiting for the store at {self._store.address}")
        reasons += [f"worker {name} has no Table yet" for name in self._workers.waiting()]
        return reasons

    async def metrics(self) -> list[Family]:
        states: dict[str, int] = {}
        for replica in self._replicas:
            states[replica.state] = states.get(replica.state, 0) + 1
        table = self._workers.table
        return [
            Family("mesh_replicas", "Replicas of this node by state", "gauge",
                   [Sample(count, {"state": state}) for state, count in states.items()]),
            Family("mesh_store_contact_age_seconds", "Seconds since the store last answered", "gauge",
                   [Sample(self._store.contact_age)]),
            Family("mesh_table_index", "Index of the store that the Table was built from", "gauge",
                   [Sample(table.index if table else 0)]),
            Family("mesh_node_problems", "Problems of this node, as `mesh nodes` shows them", "gauge",
                   [Sample(len(self._problems))]),
            *await self._workers.metrics(),
        ]  # fmt: skip


def _reachable(listen: str, address: str) -> str:
    """The URL of what listens there; on every address, that is the node's."""
    host, _, port = listen.rpartition(":")
    return f"http://{address if host in ('', '0.0.0.0', '[::]') else host}:{port}"


def _now() -> Moment:
    return Moment(time.time(), time.monotonic())
