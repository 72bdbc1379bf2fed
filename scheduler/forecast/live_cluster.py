"""The running cluster as a forecast looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mesh.keys import Keys
from mesh.model import Assignment, ReplicaState, RolloutState, RunState, ServicePlan, Slot, Want
from mesh.scheduler import releases
from mesh.scheduler.blueprint import NO_DEMAND, blueprint_of, blueprint_or_none
from mesh.scheduler.count import count_of
from mesh.scheduler.forecast.cluster import Cluster, Replica, Service, Site
from mesh.scheduler.hosts import Condition, Host, Memory, remember, survey
from mesh.spec.scale import Job
from mesh.units import parse_numbers
from mesh.view import View

_NOW = 0.0
"""A forecast knows no time: what is silent counts as lost, what backs off or is being stopped as done."""


def live_cluster(view: View) -> Cluster:
    """What is wished, what runs, and what the nodes have, as the store tells it.

    A silent node counts as lost. A spec that is not in force yet is taken as it will be.
    """
    hosts = survey(view, remember(view, Memory(), _NOW), _NOW, 0.0, Keys()).by_name
    plans = {name: _plan(view, name) for name in view.wishes}
    return Cluster(
        sites={name: _site(host) for name, host in hosts.items()},
        services={name: _service(view, plan) for name, plan in plans.items()},
        replicas=[*_replicas(view, plans), *_remembered(plans)],
        strategy=view.config.strategy,
    )


def _plan(view: View, name: str) -> ServicePlan:
    """The service's plan once its newest wish has been looked at."""
    return releases.accept(view.plans.get(name, ServicePlan(service=name)), view.wishes[name], view.configs, _NOW)


def _site(host: Host) -> Site:
    return Site(
        name=host.name,
        capacity=host.room,
        attributes=host.attributes,
        barred=host.why if host.condition is not Condition.ACTIVE else "",
        draining=host.condition.draining,
        lost=host.condition in (Condition.GONE, Condition.LOST),
    )


def _service(view: View, plan: ServicePlan) -> Service:
    """The service as it should be; one whose plan makes no sense (edited by hand, say) stays as it is."""
    try:
        return _readable(view, plan)
    except ValueError as error:
        return Service(plan.service, None, 0, why=f"its plan cannot be read: {' '.join(str(error).split())}")


def _readable(view: View, plan: ServicePlan) -> Service:
    name, wish = plan.service, view.wishes[plan.service]
    why = "; ".join(plan.errors)
    spec = None if plan.errors else wish.spec
    desired = count_of(spec, view.scale.get(name), view.scaled.get(name), plan.desired).replicas
    if not plan.releases:
        return Service(name, None, desired, why=why)
    newest = plan.releases[-1]
    service = Service(
        name,
        blueprint_of(name, newest),
        desired,
        newest.number,
        why,
        rolls=plan.rollout.state is not RolloutState.PAUSED,
        slots=parse_numbers(plan.seats) if plan.seats else range(1, plan.desired + 1),
    )
    return _job(service, plan) if service.kind == "job" else service


def _job(service: Service, plan: ServicePlan) -> Service:
    """What is left to run of a job; one whose run has ended wants nothing more."""
    assert service.blueprint is not None
    job = service.blueprint.spec.job or Job()
    runs = [run for run in plan.runs if run.release == service.release]
    done = parse_numbers(runs[-1].completed) if runs else set()
    over = bool(runs) and runs[-1].state is not RunState.RUNNING
    left = 0 if over else min(job.parallelism, job.completions - len(done))
    return replace(service, desired=left, slots=(), done=done)


def _replicas(view: View, plans: dict[str, ServicePlan]) -> Iterator[Replica]:
    """All that is assigned, with what its node says of it."""
    for node, node_plan in view.node_plans.items():
        seen = view.nodes.get(node)
        states = {report.id: report.state for report in seen.report.replicas} if seen else {}
        for assignment in node_plan.replicas:
            plan = plans.get(assignment.service)
            blueprint = blueprint_or_none(plan, assignment.release) if plan else None
            yield Replica(
                id=assignment.id,
                service=assignment.service,
                slot=assignment.slot,
                node=node,
                state=_state(assignment, states.get(assignment.id, ReplicaState.ASSIGNED)),
                current=plan is None or not plan.releases or _hash(plan, assignment.release) == plan.releases[-1].hash,
                since=assignment.placed,
                demand=blueprint.demand if blueprint else NO_DEMAND,
            )


def _state(assignment: Assignment, state: ReplicaState) -> ReplicaState:
    """What was told to stop will have."""
    return state if state.ended or assignment.want is Want.RUN else ReplicaState.STOPPED


def _hash(plan: ServicePlan, release: int) -> str:
    return next((known.hash for known in plan.releases if known.number == release), "")


def _remembered(plans: dict[str, ServicePlan]) -> Iterator[Replica]:
    """What the plans remember of replicas that are no more: where their volumes are, and which node failed them."""
    for plan in plans.values():
        for slot, node in plan.pins.items():
            yield _ended(plan, slot, node, ReplicaState.STOPPED)
        for slot, state in plan.slots.items():
            if plan.releases and _hash(plan, state.release) == plan.releases[-1].hash:
                yield from (_ended(plan, slot, node, ReplicaState.FAILED) for node in {*state.nodes, state.node})


def _ended(plan: ServicePlan, slot: str, node: str, state: ReplicaState) -> Replica:
    place: Slot = int(slot) if slot.isdecimal() and plan.kind != "global" else slot
    return Replica(f"{plan.service} {slot} {state} on {node}", plan.service, place, node, state, since=-1.0)
