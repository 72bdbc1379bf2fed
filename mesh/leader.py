"""The scheduler's shell: takes the lead, watches, reconciles, writes what changed behind a fence.

Several schedulers may run; one holds the lock. Every write carries the lock's fence in its transaction and the
modify index of each document, so a leader that slept, or read an old picture, changes nothing: it reads again
and thinks again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from mesh.aio import Backoff, Signal, Tasks
from mesh.autoscaling.live import Autoscaling
from mesh.autoscaling.telling import AutoscaleCounters, Explanation, autoscale_families
from mesh.keys import Keys
from mesh.metrics import Family, Sample
from mesh.model import Leader, ServicePlan
from mesh.probing import Prober
from mesh.scheduler.hosts import Hearing, Memory
from mesh.scheduler.plan import Outcome
from mesh.scheduler.reconcile import reconcile
from mesh.settings import SchedulerSettings
from mesh.store import Entry, Listing, Op, Store, StoreError, lease
from mesh.transactions import transactions
from mesh.trials import Trials
from mesh.view import View, ViewReader, encode_document, leader_of

log = logging.getLogger(__name__)

COALESCE = 0.01
"""Seconds between two looks: the first change is answered at once, those that follow gather."""

FULL_LOOK = 45.0
"""Seconds after which everything is read and reconciled again, whatever the watches said."""

MISS_INTERVAL = 0.2
"""Seconds between two looks at whether the leader is still heard."""


class SteadyClock:
    """Unix time that only goes forward, one second per second: a wall clock that jumps moves no deadline."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._offset


@dataclass(slots=True)
class Counters:
    """What the metrics count."""

    reconciles: int = 0
    seconds: float = 0.0
    writes: int = 0
    conflicts: int = 0
    terms: int = 0


class SchedulerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """For the admin HTTP and people."""

    name: str
    leads: bool
    frozen: str = ""
    pending: int = 0
    problems: list[str] = []


class Scheduler:
    """One scheduler of possibly several. `run` never returns by itself; cancelling it gives the lead back."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        settings: SchedulerSettings,
        *,
        clock: Callable[[], float] | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._settings = settings
        self._clock = clock or SteadyClock()
        self._new_id = new_id or (lambda: os.urandom(2).hex())
        self._counters = Counters()
        self._autoscale_counters = AutoscaleCounters()
        self._term: _Term | None = None
        self._leader: Entry | None = None
        self._process = f"{socket.gethostname()}:{os.getpid()}"
        self._prober = Prober(f"@{self._process}", clock=self._clock)

    async def run(self, admin: str = "") -> None:
        """Waits for the lead, leads until it is lost, and begins again. All the while it probes the nodes.

        Args:
            admin: base URL of its admin HTTP, for those who look for the leader.
        """
        tasks = Tasks()
        tasks.spawn(self._prober.run(), "probes")
        tasks.spawn(self._follow_nodes(), "nodes")
        tasks.spawn(self._miss_leader(), "leader")
        try:
            await self._contend(admin)
        finally:
            await tasks.close()
            await self._prober.close()

    async def _contend(self, admin: str) -> None:
        who = f"mesh-scheduler {self._settings.name} {self._process}"
        value = encode_document(Leader(name=self._settings.name, process=self._process, admin=admin))
        backoff = Backoff(1.0, 30.0)
        while True:
            async with lease.held(self._store, self._keys.leader, value, who, self._settings.session_ttl) as lock:
                well = await self._serve(lock)
            log.warning("leads no more name=%s", self._settings.name)
            if well:
                backoff.reset()
            else:
                await backoff.sleep()

    async def _follow_nodes(self) -> None:
        """Tells the prober which nodes there are, and who leads: one that waits for the lead knows them all too."""
        keys, reader = self._keys, ViewReader(self._keys)
        entries: dict[str, Mapping[str, Entry]] = {}

        async def watch(prefix: str) -> None:
            async for change in self._store.watch(prefix, marked=prefix == keys.observed_nodes):
                entries[prefix] = change.entries
                view = reader.read({key: entry for part in entries.values() for key, entry in part.items()})
                self._leader = entries.get(keys.leader, {}).get(keys.leader)
                who = leader_of(self._leader).process
                nodes = {name: seen.report.probe for name, seen in view.nodes.items()}
                self._prober.follow(nodes, view.config.failure_detection, f"@{who}" if who != self._process else "")

        async with asyncio.TaskGroup() as group:
            for prefix in (keys.observed_nodes, keys.config, keys.leader):
                group.create_task(watch(prefix))

    async def _miss_leader(self) -> None:
        """Ends the session of a leader that no node has heard for the time after which a node is given up.

        It may live, cut off or asleep: then its writes are refused, for they carry its lock.
        """
        while True:
            await asyncio.sleep(MISS_INTERVAL)
            silence, entry = self._prober.leader_silence, self._leader
            if self._term or silence is None or silence < self._prober.pace.give_up or entry is None:
                continue
            if entry.session is None:
                continue
            log.warning("no node has heard the leader for %.1f s, taking its lock: %s", silence, entry.value.decode())
            try:
                await self._store.destroy_session(entry.session)
                self._leader = None
            except StoreError as error:
                log.warning("the silent leader's lock stays until its session ends: %s", error)

    async def _serve(self, lock: lease.Lock) -> bool:
        """Leads until the lock is lost; False if it failed, and another may fare better."""
        log.info("leads name=%s", self._settings.name)
        self._counters.terms += 1
        autoscaling = Autoscaling(self._clock, self._autoscale_counters)
        self._term = _Term(
            self._store, self._keys, lock, self._counters, self._clock, self._new_id, self._prober, autoscaling
        )
        try:
            await self._term.serve()
        except Exception:
            log.exception("failed while leading name=%s", self._settings.name)
            return False
        finally:
            self._term = None
        return True

    @property
    def leads(self) -> bool:
        return self._term is not None

    def status(self) -> SchedulerStatus:
        term = self._term
        if term is None:
            return SchedulerStatus(name=self._settings.name, leads=False)
        return SchedulerStatus(
            name=self._settings.name,
            leads=True,
            frozen=term.outcome.frozen,
            pending=term.outcome.pending,
            problems=[*term.problems, *term.outcome.faults],
        )

    def explain(self, service: str) -> Explanation | None:
        """What its autoscaler says of a service; None if it does not lead, or the service does not follow its load."""
        return self._term.autoscaling.explain(service) if self._term else None

    def metrics(self) -> list[Family]:
        counters, term = self._counters, self._term
        outcome = term.outcome if term else Outcome()
        return [
            _gauge("mesh_scheduler_is_leader", "1 while this scheduler leads.", term is not None),
            _gauge("mesh_scheduler_pending_slots", "Slots without a replica.", outcome.pending),
            _gauge("mesh_scheduler_frozen", "1 while lost replicas are not replaced.", bool(outcome.frozen)),
            _counter("mesh_scheduler_terms", "Times that this scheduler took the lead.", counters.terms),
            _counter("mesh_scheduler_reconciles", "Looks at the whole picture.", counters.reconciles),
            _counter("mesh_scheduler_reconcile_seconds", "Time spent deciding.", counters.seconds),
            _counter("mesh_scheduler_writes", "Documents written or removed.", counters.writes),
            _counter("mesh_scheduler_conflicts", "Transactions refused: somebody else was faster.", counters.conflicts),
            *autoscale_families(self._autoscale_counters),
        ]


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(name, text, "gauge", [Sample(float(value))])


def _counter(name: str, text: str, value: float) -> Family:
    return Family(name, text, "counter", [Sample(float(value))])


class _Term:
    """One time of leading, from taking the lock to losing it."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        lock: lease.Lock,
        counters: Counters,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        prober: Prober,
        autoscaling: Autoscaling,
    ) -> None:
        self._store = store
        self._keys = keys
        self._lock = lock
        self._counters = counters
        self._clock = clock
        self._new_id = new_id
        self._prober = prober
        self.autoscaling = autoscaling
        self._trials = Trials()
        self._reader = ViewReader(keys)
        self._changed = Signal()
        self._read: dict[str, Listing] = {}
        self._memory = Memory()
        self.outcome = Outcome()
        self.problems: tuple[str, ...] = ()

    async def serve(self) -> None:
        """Leads until the lock is lost."""
        tasks = Tasks()
        try:
            for prefix in (self._keys.desired, self._keys.observed_nodes):
                tasks.spawn(self._watch(prefix), f"watch {prefix}")
            tasks.spawn(self._hear(), "hear")
            tasks.spawn(self.autoscaling.run(self._changed.set), "autoscaling")
            tasks.spawn(self._trials.run(self._changed.set), "canaries")
            leading = tasks.spawn(self._lead(), "lead")
            lost = tasks.spawn(self._lock.lost(), "lock lost")
            await asyncio.wait((leading, lost), return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                leading.result()
        finally:
            await tasks.close()

    async def _watch(self, prefix: str) -> None:
        """Takes in what is newer than what was read. Watches may be answered by a server that lags behind, and to
        act on its picture would be to stop what was only just wished for."""
        async for change in self._store.watch(prefix, marked=prefix == self._keys.observed_nodes):
            if prefix in self._read and change.index >= self._read[prefix].index:
                self._read[prefix] = Listing(change.index, change.entries)
                self._changed.set()

    async def _hear(self) -> None:
        while True:
            await self._prober.news.wait()
            self._changed.set()

    async def _lead(self) -> None:
        """Looks whenever something changed, a decision fell due, or a while has passed."""
        backoff = Backoff(0.05, 2.0)
        read_again_at = 0.0
        while True:
            try:
                if time.monotonic() >= read_again_at:
                    await self._read_all()
                    read_again_at = time.monotonic() + FULL_LOOK
                if await self._look():
                    backoff.reset()
                    wait = self._until_due()
                else:
                    self._counters.conflicts += 1
                    read_again_at = 0.0
                    wait = backoff.next()
            except StoreError as error:
                log.warning("could not read or write the plans, trying again: %s", error)
                read_again_at = 0.0
                wait = backoff.next()
            await asyncio.sleep(COALESCE)
            await self._changed.wait(wait)

    def _until_due(self) -> float:
        if self.outcome.wake_at is None:
            return FULL_LOOK
        return max(0.0, min(FULL_LOOK, self.outcome.wake_at - self._clock()))

    async def _read_all(self) -> None:
        """Everything, as the store's leader has it. What is planned is not watched: nobody else writes it."""
        for prefix in (self._keys.desired, self._keys.observed_nodes, self._keys.planned):
            self._read[prefix] = await self._store.list(prefix)

    async def _look(self) -> bool:
        """Reconciles once and writes what changed; False if a write was refused."""
        view = self.autoscaling.overlaid(self._view())
        started = time.perf_counter()
        hearing = Hearing(self._prober.sights, self._prober.pace)
        outcome = reconcile(
            view,
            self._clock(),
            self._new_id,
            self._memory,
            hearing=hearing,
            served=self._trials.served,
            keys=self._keys,
        )
        self._trials.follow(view, outcome)
        outcome = self.autoscaling.added_to(outcome, view)
        self._counters.reconciles += 1
        self._counters.seconds += time.perf_counter() - started
        self._warn(view, outcome)
        self.outcome, self._memory, self.problems = outcome, outcome.memory, view.problems
        for ops in transactions(outcome, view, self._keys):
            if not await self._commit(ops):
                return False
        for service, plan in outcome.services.items():
            _tell(view.plans.get(service), plan)
        return True

    def _view(self) -> View:
        entries: dict[str, Entry] = {}
        for listing in self._read.values():
            entries.update(listing.entries)
        return self._reader.read(entries, max(listing.index for listing in self._read.values()))

    def _warn(self, view: View, outcome: Outcome) -> None:
        for problem in sorted({*view.problems, *outcome.faults} - {*self.problems, *self.outcome.faults}):
            log.warning("cannot use a document, the last good one stays: %s", problem)
        if outcome.frozen != self.outcome.frozen:
            log.warning("%s", outcome.frozen or "replacement goes on")

    async def _commit(self, ops: Sequence[Op]) -> bool:
        result = await self._store.txn([self._lock.fence(), *ops])
        if not result.ok:
            log.info("a write was refused, reading again: %s", "; ".join(result.errors))
            return False
        self._counters.writes += len(ops)
        planned = self._read[self._keys.planned]
        entries = {key: entry for key, entry in planned.entries.items() if key not in {op.key for op in ops}}
        entries.update((entry.key, entry) for entry in result.entries)
        self._read[self._keys.planned] = Listing(planned.index, entries)
        return True


def _tell(before: ServicePlan | None, plan: ServicePlan) -> None:
    """Logs what is new in a service's story."""
    known = before.events if before else []
    for event in plan.events:
        if event not in known:
            log.info("service=%s %s%s", plan.service, event.text, f" cause={event.cause!r}" if event.cause else "")
