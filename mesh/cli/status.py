"""What `mesh status`, `nodes`, `events` and `apply --wait` show: a pure digest of a View.

Its structs are the shapes that `--json` prints.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from mesh import units
from mesh.cli.drains import Drain, drain_of
from mesh.model import (
    Capacity,
    NodePlan,
    ReplicaReport,
    ReplicaState,
    RolloutState,
    RunState,
    ServicePlan,
    Slot,
    Want,
)
from mesh.scheduler import releases
from mesh.scheduler.count import counted, wanted
from mesh.scheduler.service.commands import waiting_canaries
from mesh.spec.errors import SpecError
from mesh.spec.service import ServiceSpec
from mesh.view import View


class ExitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a replica ended; `code`: not known if None."""

    code: int | None
    oom: bool


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One replica that is planned or reported."""

    id: str
    slot: Slot
    node: str
    release: int
    state: str
    since: float = 0.0  # Unix seconds; 0: not known
    address: str = ""
    ports: dict[str, int] = {}
    message: str = ""
    exit: ExitStatus | None = None


class PendingStatus(msgspec.Struct, frozen=True, kw_only=True):
    slot: Slot
    reasons: list[str]


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a job, or of a cron service."""

    number: int
    release: int
    state: str  # running | succeeded | failed | replaced
    completions: int
    done: int  # slots that have succeeded
    running: int  # replicas
    failures: int  # replicas that have failed
    due: float = 0.0  # the time of the schedule that it answers
    started: float = 0.0
    ended: float = 0.0
    message: str = ""

    @property
    def text(self) -> str:
        """`3/10 done, 2 running`."""
        parts = [f"{self.done}/{self.completions} done"]
        if self.state == RunState.RUNNING:
            parts.append(f"{self.running} running")
        elif self.state != RunState.SUCCEEDED:
            parts.append(self.state)
        return ", ".join(parts)


class EventStatus(msgspec.Struct, frozen=True, kw_only=True):
    time: float
    service: str
    text: str
    cause: str = ""


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service: what is wished, what runs, and what is wrong."""

    name: str
    kind: str
    desired: int
    ready: int
    release: int  # 0: none yet
    rollout: str  # idle | rolling | canary | paused | failed | deleting | waiting (the scheduler has not seen it)
    rollout_message: str = ""
    since: float = 0.0  # when the newest release was made
    vip: str = ""
    dns: str = ""
    ports: dict[str, str] = {}  # name → `80/http`
    scaling: str = ""  # who holds the count, if it is not the spec alone
    problems: list[str] = []
    pending: list[PendingStatus] = []
    runs: list[RunStatus] = []  # of a job or cron service, oldest first
    next_run: float = 0.0  # of a cron service
    replicas: list[ReplicaStatus] = []
    events: list[EventStatus] = []


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    """What a node offers, or what is reserved on it: also what is zero."""

    cpu: int  # millicores
    memory: int  # bytes
    resources: dict[str, int]


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: str  # active | pause | drain | suspected (does not answer) | down (given up)
    address: str
    admin: str
    runtime: str
    version: str
    capacity: Amounts
    reserved: Amounts  # by replicas
    overhead: Amounts  # kept for the node itself
    replicas: int
    labels: dict[str, str] = {}
    attributes: dict[str, str] = {}
    problems: list[str] = []
    drain: Drain | None = None  # how far it has come, if the node is drained


def service_names(view: View) -> list[str]:
    """All that is wished or planned, and what is left of what was."""
    left = {replica.service for seen in view.nodes.values() for replica in seen.report.replicas}
    return sorted(view.wishes.keys() | view.plans.keys() | left)


def service_status(view: View, name: str) -> ServiceStatus:
    wish = view.wishes.get(name)
    plan = view.plans.get(name) or ServicePlan(service=name)
    replicas = _replicas(view, name)
    newest = plan.releases[-1] if plan.releases else None
    spec = wish.spec if wish else None
    return ServiceStatus(
        name=name,
        kind=plan.kind if name in view.plans else spec.kind if spec else "service",
        desired=plan.desired if name in view.plans else spec.replicas if spec else 0,
        ready=sum(replica.state == ReplicaState.READY for replica in replicas),
        release=newest.number if newest else 0,
        rollout=_rollout(view, name, plan),
        rollout_message=plan.rollout.message,
        since=newest.created if newest else 0.0,
        vip=plan.vip,
        dns=f"{name}.svc.{view.config.domain}",
        ports={port_name: f"{port.port}/{port.protocol}" for port_name, port in plan.ports.items()},
        scaling=_scaling(view, name, spec),
        problems=[*refusals(view, name), *_problems(plan)],
        pending=[PendingStatus(slot=pending.slot, reasons=pending.reasons) for pending in plan.pending],
        runs=_runs(view, plan),
        next_run=plan.next_run,
        replicas=replicas,
        events=_events(plan),
    )


def _rollout(view: View, name: str, plan: ServicePlan) -> str:
    if plan.deleted or (name not in view.plans and name not in view.wishes):
        return "deleting"
    return plan.rollout.state if name in view.plans else "waiting"


def _scaling(view: View, name: str, spec: ServiceSpec | None) -> str:
    follows = spec is not None and spec.scale is not None
    if (by_hand := view.scale.get(name)) is not None:
        heir = "the autoscaler" if follows else "the spec"
        return f"held at {by_hand} by hand; `mesh scale {name}=spec` gives the count back to {heir}"
    if spec is None or spec.scale is None:
        return ""
    if not spec.replicas:
        return "off: `replicas` is 0"
    count = wanted(view, name)
    bounds = f"autoscaler, {spec.scale.min} to {spec.scale.max}"
    return f"{bounds}: asleep" if count.asleep else f"{bounds}: {count.why or 'has changed nothing yet'}"


def refusals(view: View, name: str) -> list[str]:
    """Why a service's spec is not in force."""
    wish, plan = view.wishes.get(name), view.plans.get(name)
    errors = [*(wish.errors if wish else ()), *(plan.errors if plan else ())]
    return [f"the spec is not in force: {error}" for error in dict.fromkeys(errors)]


def _problems(plan: ServicePlan) -> list[str]:
    problems: list[str] = []
    if plan.rollout.state in (RolloutState.FAILED, RolloutState.PAUSED):
        problems.append(f"rollout {plan.rollout.state}: {plan.rollout.message}".rstrip(": "))
    if plan.runs and plan.runs[-1].state is RunState.FAILED:
        problems.append(f"run {plan.runs[-1].number} failed: {plan.runs[-1].message}")
    problems += [f"autoscaler: {warning}" for warning in plan.warnings]
    problems += [f"slot {pending.slot} waits: {'; '.join(pending.reasons)}" for pending in plan.pending]
    problems += [f"slot {slot} failed {_times(state.failures)}" for slot, state in plan.slots.items() if state.failures]
    return problems


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _runs(view: View, plan: ServicePlan) -> list[RunStatus]:
    if not plan.runs:
        return []
    alive = {replica.id for seen in view.nodes.values() for replica in seen.report.replicas if replica.state.alive}
    running = Counter(one.run for planned in view.node_plans.values() for one in planned.replicas
                      if one.service == plan.service and one.id in alive)  # fmt: skip
    return [
        RunStatus(
            number=run.number, release=run.release, state=run.state, completions=run.completions,
            done=len(units.parse_numbers(run.completed)), running=running[run.number], failures=run.failures,
            due=run.due, started=run.started, ended=run.ended, message=run.message,
        )
        for run in plan.runs
    ]  # fmt: skip


_SERVING = (ReplicaState.RUNNING, ReplicaState.READY)


def _replicas(view: View, service: str) -> list[ReplicaStatus]:
    found: dict[str, ReplicaStatus] = {}
    for node, plan in view.node_plans.items():
        for assignment in plan.replicas:
            if assignment.service == service:
                found[assignment.id] = ReplicaStatus(id=assignment.id, slot=assignment.slot, node=node,
                                                     release=assignment.release, state="assigned")  # fmt: skip
    for node, seen in view.nodes.items():
        is_discounted = view.cluster.discounts(node, seen.index)
        for replica in seen.report.replicas:
            if replica.service != service:
                continue
            found[replica.id] = ReplicaStatus(
                id=replica.id,
                slot=replica.slot,
                node=node,
                release=replica.release,
                state=ReplicaState.LOST if is_discounted and replica.state in _SERVING else replica.state,
                since=replica.since,
                address=replica.address,
                ports=replica.ports,
                message=_message(replica, node, held=seen.held),
                exit=ExitStatus(code=replica.exit.code, oom=replica.exit.oom) if replica.exit else None,
            )
    return sorted(found.values(), key=lambda replica: (str(replica.slot).zfill(8), replica.id))


def _message(replica: ReplicaReport, node: str, *, held: bool) -> str:
    silence = "" if held or replica.state.ended else f"node {node} does not report"
    return "; ".join(part for part in (silence, replica.message) if part)


def _events(plan: ServicePlan) -> list[EventStatus]:
    return [EventStatus(time=event.time, service=plan.service, text=event.text, cause=event.cause)
            for event in plan.events]  # fmt: skip


def events(view: View, service: str | None = None) -> list[EventStatus]:
    """Everybody's events, or one service's, oldest first."""
    plans = [plan for name, plan in view.plans.items() if service in (None, name)]
    return sorted((event for plan in plans for event in _events(plan)), key=lambda event: event.time)


def node_statuses(view: View) -> list[NodeStatus]:
    found = []
    for name, seen in sorted(view.nodes.items()):
        report = seen.report
        settings = view.settings.get(name)
        availability = settings.availability if settings else "active"
        found.append(
            NodeStatus(
                name=name,
                state=_node_state(view, name, held=seen.held) or availability,
                address=report.address,
                admin=report.admin,
                runtime=report.runtime,
                version=report.version,
                capacity=_amounts(report.capacity),
                overhead=_amounts(report.reserved),
                reserved=_reserved(view.node_plans.get(name)),
                replicas=sum(not replica.state.ended for replica in report.replicas),
                labels={**report.labels, **(settings.labels if settings else {})},
                attributes=report.attributes,
                problems=[*([view.cluster.nodes[name].why] if name in view.cluster.nodes else []), *report.problems],
                drain=drain_of(view, name),
            )
        )
    return found


def _node_state(view: View, node: str, *, held: bool) -> str:
    """What keeps it from being as operators want it; empty if nothing does."""
    doubt = view.cluster.nodes.get(node)
    if doubt is None:
        return "" if held else "down"
    return "down" if doubt.state == "lost" else "suspected" if doubt.state == "suspected" else ""


def _amounts(capacity: Capacity) -> Amounts:
    return Amounts(cpu=capacity.cpu, memory=capacity.memory, resources=capacity.resources)


def _reserved(plan: NodePlan | None) -> Amounts:
    cpu = memory = 0
    counts: Counter[str] = Counter()
    for assignment in plan.replicas if plan else ():
        if assignment.want is Want.KEEP:
            continue
        resources = (
            plan.specs.get(f"{assignment.service}@{assignment.release}", {}).get("resources", {}) if plan else {}
        )
        cpu += units.parse_cpu(resources.get("cpu", "100m"))
        memory += units.parse_memory(resources.get("memory", "64Mi"))
        counts.update({name: count for name, count in resources.items() if name not in ("cpu", "memory")})
    return Amounts(cpu=cpu, memory=memory, resources=dict(counts))


class Progress(msgspec.Struct, frozen=True):
    """How far a spec that was just written has come."""

    text: str
    done: bool = False
    faults: list[str] = []


def progress(view: View, spec: ServiceSpec, *, before: int) -> Progress:
    """Whether `spec` is in force; `before`: the newest release's number when it was written."""
    status = service_status(view, spec.name)
    plan, wish = view.plans.get(spec.name), view.wishes.get(spec.name)
    if plan is None or (plan.errors and wish is not None and plan.spec_index != wish.index):
        return Progress("waits for the scheduler")
    if plan.errors:
        return Progress("refused", faults=plan.errors)
    newest = plan.releases[-1] if plan.releases else None
    digest = _digest(spec, view)
    if newest is None or newest.hash != digest:
        if newest is not None and newest.number > before:
            return Progress("replaced", faults=[plan.rollout.message or f"release {newest.number} took its place"])
        if (tried := releases.wished(plan)) is not None and tried.hash == digest:
            why = plan.rollout.message or f"release {tried.number} was taken back"
            return Progress("taken back", faults=[f"{why}; the same spec is not tried again until it is changed"])
        return Progress("waits for the scheduler")
    if plan.rollout.state in (RolloutState.FAILED, RolloutState.PAUSED):
        return Progress(plan.rollout.state, faults=status.problems)
    if plan.rollout.state is RolloutState.CANARY:
        return _canary_progress(plan)
    if spec.kind == "cron":
        return Progress(f"release {newest.number}", done=True)
    if spec.kind == "job":
        return _job_progress(status, newest.number)
    asked = plan.desired
    if spec.kind == "service":
        asked = counted(view, spec).replicas
    same = {release.number for release in plan.releases if release.hash == digest}  # what came back was never stopped
    here = sum(replica.state == ReplicaState.READY and replica.release in same for replica in status.replicas)
    text = f"release {newest.number}: {here}/{asked} ready"
    settled = plan.rollout.state == RolloutState.IDLE and plan.desired == asked
    return Progress(text, done=settled and here >= asked)


def _digest(spec: ServiceSpec, view: View) -> str:
    """Of the release that the spec makes; of none, while a config is missing."""
    try:
        return releases.resolved(spec, view.configs).digest()
    except SpecError:
        return ""


def _canary_progress(plan: ServicePlan) -> Progress:
    """It is done when all canaries are healthy: an operator comes next."""
    canaries, healthy = waiting_canaries(plan), plan.rollout.healthy
    text = f"release {plan.rollout.release}: {min(healthy, canaries)}/{canaries} canaries healthy"
    if healthy < canaries or plan.rollout.promote:
        return Progress(text)
    return Progress(f"{text}; mesh rollout promote {plan.service} lets it take over", done=True)


def _job_progress(status: ServiceStatus, release: int) -> Progress:
    run = next((run for run in status.runs if run.release == release), None)
    if run is None:
        return Progress(f"release {release}")
    faults = [f"run {run.number} {run.state}: {run.message}"] if run.message else []
    return Progress(f"run {run.number}: {run.text}", done=run.state == RunState.SUCCEEDED, faults=faults)
