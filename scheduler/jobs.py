"""The decision on a service that runs to its end: a job once for each release, a cron service whenever it is due.

A run fills its slots, 1 to `completions`, a few at a time, each until one replica of it has exited with code 0.

    running ──every slot has succeeded──► succeeded
       ├─ more than `retries` replicas failed, or the deadline has passed ──► failed
       └─ a newer release of a job, or with `overlap: replace` a newer run ─► replaced

On a drained node replicas may end by themselves; those that have not by its deadline are stopped. What is lost with its
node, drained or preempted has not failed: its slot is run again. A replica that ended before it heard that it should
stop is run again too: a slot runs at least once to its end, and never twice at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from mesh import cron
from mesh.model import Assignment, Release, Rollout, Run, RunState, ServicePlan, Want
from mesh.scheduler import backoff, releases
from mesh.scheduler.blueprint import Blueprint, blueprint_of, blueprint_or_none
from mesh.scheduler.classify import Buckets, Replica
from mesh.scheduler.decision import Decision, Input
from mesh.scheduler.hosts import Condition
from mesh.spec.scale import Job, Schedule
from mesh.units import format_duration, format_numbers, parse_numbers

MAX_RUNS = 10
"""Runs that have ended and are remembered."""

MAX_AT_ONCE = 10
"""Runs of one cron service side by side (`overlap: allow`)."""

MAX_RECORDS = 5
"""Ended replicas that are kept for their output."""


class JobDecision(Decision):
    """For `kind: job` and `cron`."""

    def __init__(self, given: Input, plan: ServicePlan, buckets: Buckets) -> None:
        super().__init__(given, plan)
        self._now = given.scene.now
        self._newest = blueprint_of(plan.service, plan.releases[-1])
        self._runs = {run.number: run for run in plan.runs}
        self._stop = self.overdue(buckets)  # id → cause
        self._preempted = self.preempted(buckets)
        here = [replica for seat in buckets.seats.values() for replica in (*seat.live, *seat.suspect, *seat.stopping)]
        self.update(claims=[], seats="", rollout=Rollout(release=plan.releases[-1].number))
        self._count(buckets)
        self._begin()
        self._end()
        self.vacant -= {replica.slot for replica in here}
        self._fill(here)
        self.carry_out(here, self._stop, lambda replica: replica.overdue)
        self._remember(buckets)
        self.plan = releases.publish(self.plan, self._newest, None)

    @property
    def _running(self) -> list[Run]:
        return [run for run in self._runs.values() if run.state is RunState.RUNNING]

    def _set(self, run: Run, **fields: object) -> None:
        self._runs[run.number] = msgspec.structs.replace(self._runs.get(run.number, run), **fields)

    def _count(self, buckets: Buckets) -> None:
        """Takes in which replicas have succeeded and failed."""
        for replica in buckets.failed:
            run = self._runs.get(replica.assignment.run)
            if run is None or run.state is not RunState.RUNNING or not isinstance(replica.slot, int):
                continue
            if replica.succeeded:
                self._set(run, completed=format_numbers(parse_numbers(run.completed) | {replica.slot}))
            else:
                self._set(run, failures=run.failures + 1)
                self.count_failure(replica)
                self.vacant.add(replica.slot)
        for replica in buckets.lost:
            self.vacant.add(replica.slot)
            self.story.tell("lost:", f"{replica.id} on {replica.node}", f"{replica.node} lost")

    # ── the runs ─────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        """Begins the runs that are due."""
        release = self.plan.releases[-1]
        schedule = self._newest.spec.schedule
        if schedule is not None:
            self._follow(schedule)
            return
        self.update(next_run=0.0)
        if not any(run.release == release.number for run in self._runs.values()):
            for run in self._running:
                self._replace(run, f"release {release.number}")
            self._begin_run()

    def _follow(self, schedule: Schedule) -> None:
        """The newest run that is due; what was missed before it is left out."""
        before = self.given.plan.releases
        is_new = not before or before[-1].number != self.plan.releases[-1].number
        due = 0.0 if is_new else self.plan.next_run
        if due and self._now >= due:
            newest = cron.last_run(schedule.cron, schedule.zone, self._now) or due
            if newest > due:
                self.story.tell(f"missed the runs from {_utc(due)} on, begins the newest: {_utc(newest)}", "")
            self._begin_due(schedule, newest)
            due = 0.0
        due = due or cron.next_run(schedule.cron, schedule.zone, self._now) or 0.0
        self.update(next_run=due)
        self.wake.extend([due] if due else [])

    def _begin_due(self, schedule: Schedule, due: float) -> None:
        running = self._running
        if running and schedule.overlap == "replace":
            for run in running:
                self._replace(run, f"the run of {_utc(due)}")
        elif len(running) >= (MAX_AT_ONCE if schedule.overlap == "allow" else 1):
            self.story.tell(f"left out the run of {_utc(due)}: run {running[-1].number} has not ended", "")
            return
        self._begin_run(due)

    def _begin_run(self, due: float = 0.0) -> None:
        number = max(self._runs, default=0) + 1
        run = Run(
            number=number,
            release=self.plan.releases[-1].number,
            completions=(self._newest.spec.job or Job()).completions,
            due=due,
            started=self._now,
        )
        self._runs[number] = run
        self.story.tell(f"run {number} begins", "", self._cause(run))

    def _replace(self, run: Run, by: str) -> None:
        self._set(run, state=RunState.REPLACED, ended=self._now, message=f"replaced by {by}")
        self.story.tell(f"run {run.number} is replaced by {by}", "")

    def _end(self) -> None:
        """Ends the runs that have succeeded or failed."""
        for run in self._running:
            blueprint = blueprint_or_none(self.plan, run.release)
            why = _failure(run, blueprint, self._now)
            if blueprint is not None:
                self.wake.append(run.started + (blueprint.spec.job or Job()).deadline)
            if len(parse_numbers(run.completed)) >= run.completions:
                self._set(run, state=RunState.SUCCEEDED, ended=self._now)
                self.story.tell(f"run {run.number} succeeded", "")
            elif why:
                self._set(run, state=RunState.FAILED, ended=self._now, message=why)
                self.story.tell(f"run {run.number} failed: {why}", "")

    def _cause(self, run: Run) -> str:
        return f"due {_utc(run.due)}" if run.due else f"release {run.release}"

    # ── their replicas ───────────────────────────────────────────────────────────────────────

    def _fill(self, here: Sequence[Replica]) -> None:
        """Stops what no run needs, and asks for what the runs may have beside what they have."""
        by_run: dict[int, list[Replica]] = defaultdict(list)
        for replica in here:
            run = self._runs.get(replica.assignment.run)
            if run is None or run.state is not RunState.RUNNING:
                self._stop[replica.id] = f"run {run.number} {run.state}" if run else self.plan.releases[-1].cause
            by_run[replica.assignment.run].append(replica)
        schedule = self._newest.spec.schedule
        side_by_side = schedule is not None and schedule.overlap == "allow"
        desired = 0
        for run in self._running:
            blueprint = blueprint_of(self.plan.service, self._release(run))
            others = () if side_by_side else [one for one in here if one.assignment.run != run.number]
            desired += self._fill_run(run, blueprint.spec.job or Job(), by_run[run.number], others)
        self.update(desired=desired)

    def _fill_run(self, run: Run, job: Job, own: Sequence[Replica], others: Sequence[Replica]) -> int:
        """How many replicas it should have; `others`: of runs that must be over before this one begins."""
        for replica in own:
            if replica.id in self._stop or replica.assignment.want is Want.STOP:
                self.wait(replica.slot, f"waits until {replica.id} has stopped", self._preempted.get(replica.slot, ""))
        taken = {replica.slot for replica in own}
        completed = parse_numbers(run.completed)
        desired = min(job.parallelism, run.completions - len(completed))
        free = desired - len(taken)
        for slot in range(1, run.completions + 1):
            if free <= 0:
                break
            if slot in completed or slot in taken:
                continue
            retry = backoff.retry_at(self.plan.slots.get(str(slot)), self._now)
            cause = self._preempted.get(slot) or self._cause(run)
            if retry > self._now:
                self.wake.append(retry)
                self.wait(slot, self.explained(slot, "backs off after its last failure"), cause)
                continue
            free -= 1
            if others:
                self.wait(slot, f"waits until {others[0].id} has stopped", cause)
            else:
                self.ask(slot, self._release(run), cause, run=run.number)
        return desired

    def _release(self, run: Run) -> Release:
        return next(release for release in self.plan.releases if release.number == run.release)

    def _remember(self, buckets: Buckets) -> None:
        """Bounds what is kept of runs and replicas that have ended."""
        ended = [run for run in self._runs.values() if run.state is not RunState.RUNNING]
        forgotten = {run.number for run in ended[:-MAX_RUNS]}
        if not self._running:
            self.vacant.clear()
        self.update(runs=[run for number, run in sorted(self._runs.items()) if number not in forgotten])
        failing = {slot for run in self._running for slot in self.plan.slots
                   if slot.isdecimal() and int(slot) not in parse_numbers(run.completed)}  # fmt: skip
        self.keep_failures(self._newest.spec.restart, failing)
        kept = [replica for replica in (*buckets.records, *buckets.failed)
                if replica.assignment.run and replica.report is not None
                and replica.condition is not Condition.LOST and not replica.condition.draining]  # fmt: skip
        kept.sort(key=lambda replica: (replica.assignment.placed, replica.id))
        for replica in kept[-MAX_RECORDS:]:
            self.records.setdefault(replica.node, []).append(_record(replica))


def _record(replica: Replica) -> Assignment:
    assignment = replica.assignment
    return assignment if assignment.want is Want.KEEP else msgspec.structs.replace(assignment, want=Want.KEEP)


def _failure(run: Run, blueprint: Blueprint | None, now: float) -> str:
    """Why a run has failed; empty if it has not."""
    if blueprint is None:
        return f"release {run.release} is no more"
    job = blueprint.spec.job or Job()
    if run.failures > job.retries:
        return f"{run.failures} of its replicas failed, {job.retries} may (job.retries)"
    if now >= run.started + job.deadline:
        return f"not done within {format_duration(job.deadline)} (job.deadline)"
    return ""


def _utc(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%MZ")
