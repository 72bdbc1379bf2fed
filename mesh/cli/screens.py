"""What `status`, `nodes` and `events` look like."""

import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from mesh import console, units
from mesh.cli.status import EventStatus, NodeStatus, ServiceStatus, node_statuses, service_names, service_status
from mesh.view import View


def status_json(view: View, service: str | None) -> Any:
    if service:
        return msgspec.to_builtins(service_status(view, service))
    return msgspec.to_builtins([service_status(view, name) for name in service_names(view)])


def nodes_json(view: View) -> Any:
    return msgspec.to_builtins(node_statuses(view))


def show_services(view: View, now: float) -> None:
    services = [service_status(view, name) for name in service_names(view)]
    if services:
        console.print_table(
            ["service", "kind", "ready", "release", "rollout", "name", "vip", "age", "problems"],
            [_service_row(service, now) for service in services],
        )
    else:
        console.note("no services yet; write one with: mesh apply FILE")
    for problem in view.problems:
        console.note(f"warning: {problem}")


def warn_of_nodes(view: View) -> None:
    """Why nothing is replaced, if so, and which nodes are doubtful: beside the result, whatever that is."""
    if view.cluster.frozen:
        console.note(f"warning: {view.cluster.frozen}; if they are gone for good: mesh confirm-loss")
    for name, doubt in view.cluster.nodes.items():
        console.note(f"warning: node {name} {doubt.why}")


def _service_row(service: ServiceStatus, now: float) -> list[object]:
    problems = service.problems[:1]
    if len(service.problems) > 1:
        problems.append(f"(+{len(service.problems) - 1}: mesh status {service.name})")
    return [
        service.name, service.kind, _ready(service), service.release or "", service.rollout,
        service.dns, service.vip, _age(service.since, now), " ".join(problems),
    ]  # fmt: skip


def _ready(service: ServiceStatus) -> str:
    """`2/3`; of a job how far its last run has come."""
    if service.kind not in ("job", "cron"):
        return f"{service.ready}/{service.desired}"
    return service.runs[-1].text if service.runs else "no run yet"


def _age(since: float, now: float) -> str:
    return console.age(now - since) if since else ""


def show_service(view: View, name: str, now: float) -> None:
    service = service_status(view, name)
    ports = ", ".join(f"{port_name} {port}" for port_name, port in service.ports.items())
    ends = service.kind in ("job", "cron")
    facts = {
        "service": f"{service.name} ({service.kind})",
        "ready": "" if ends else f"{service.ready} of {service.desired}",
        "run": _ready(service) if ends else "",
        "next": _when(service.next_run) if service.next_run else "",
        "release": f"{service.release}, {_age(service.since, now)} old" if service.release else "none yet",
        "rollout": " ".join(part for part in (service.rollout, service.rollout_message) if part),
        "name": f"{service.dns}{f' → {service.vip}' if service.vip else ''}",
        "ports": ports,
        "scaling": service.scaling,
    }
    for key, value in facts.items():
        if value:
            console.say(f"{key + ':':9}{value}")
    for problem in service.problems:
        console.say(f"problem: {problem}")
    if service.runs:
        console.say()
        console.print_table(
            ["run", "release", "state", "done", "failures", "due", "started", "ended", "message"],
            [
                [run.number, run.release, run.state, f"{run.done}/{run.completions}", run.failures or "",
                 _when(run.due), _when(run.started), _when(run.ended), run.message]
                for run in service.runs
            ],
        )  # fmt: skip
    if service.replicas:
        console.say()
        console.print_table(
            ["replica", "slot", "node", "release", "state", "since", "address", "message"],
            [
                [replica.id, replica.slot, replica.node, replica.release, replica.state, _age(replica.since, now),
                 _where(replica.address, replica.ports), replica.message]
                for replica in service.replicas
            ],
        )  # fmt: skip
    for pending in service.pending:
        console.say(f"\nslot {pending.slot} waits:")
        for reason in pending.reasons:
            console.say(f"  {reason}")
    if service.events:
        console.say("\nevents:")
        show_events(service.events[-10:], indent="  ")


def _when(time_: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_)) if time_ else ""


def _where(address: str, ports: dict[str, int]) -> str:
    return ", ".join(f"{address}:{port}" for port in ports.values()) or address


def show_nodes(view: View) -> None:
    nodes = node_statuses(view)
    if not nodes:
        console.note("no nodes yet; on each host run: mesh agent --store URL")
        return
    console.print_table(
        ["node", "state", "address", "runtime", "replicas", "cpu", "memory", "labels", "problems"],
        [_node_row(node, time.time()) for node in nodes],
    )
    if view.cluster.frozen:
        console.note(f"warning: {view.cluster.frozen}; if they are gone for good: mesh confirm-loss")


def _node_row(node: NodeStatus, now: float) -> list[object]:
    state = node.drain.text(now) if node.drain and node.state == "drain" else node.state
    return [
        node.name, state, node.address, node.runtime, node.replicas,
        f"{units.format_cpu(node.reserved.cpu)}/{units.format_cpu(node.capacity.cpu)}",
        f"{_memory(node.reserved.memory)}/{_memory(node.capacity.memory)}",
        ",".join(f"{name}={value}" for name, value in sorted(node.labels.items())), "; ".join(node.problems),
    ]  # fmt: skip


def _memory(size: int) -> str:
    """Memory for the eye: three digits at most, not the exact notation of the spec."""
    return units.format_memory(size) if size < 2**30 and size % 2**20 == 0 else f"{size / 2**30:.1f}Gi"


def show_events(events: Sequence[EventStatus], *, json_lines: bool = False, indent: str = "") -> None:
    for event in events:
        if json_lines:
            print(json.dumps(msgspec.to_builtins(event), ensure_ascii=False), flush=True)
            continue
        cause = f"  ({event.cause})" if event.cause else ""
        console.say(f"{indent}{_when(event.time)}  {event.service}: {event.text}{cause}")
