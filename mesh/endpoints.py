"""Endpoints are computed from replicas and stored nowhere: the pure function from a View to the Table."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import msgspec

from mesh.model import NodePlan, NodeReport, ReplicaReport, ServicePlan
from mesh.table import IN_TABLE, Endpoint, Table, TableNode, TablePort, TableService
from mesh.view import NodeView, View


def build_table(view: View) -> Table:
    """What the data plane needs, of what is planned and observed.

    A node that is not `held` keeps its endpoints as `suspect`: used only where no other answers, until the scheduler
    has given it up.
    """
    return TableBuilder()(view)


class TableBuilder:
    """`build_table` for a row of Views: what has the same sources as last time is the same object.

    So the cost of a change is, but for walks over names, the size of the change; the same for comparing Tables.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, _NodePart] = {}
        self._services: dict[str, _ServicePart] = {}

    def __call__(self, view: View) -> Table:
        endpoints: dict[str, list[Endpoint]] = defaultdict(list)
        for node, seen in sorted(view.nodes.items()):
            if view.cluster.has_lost(node):
                continue
            for service, endpoint in self._node(node, seen, view.node_plans.get(node)):
                endpoints[service].append(endpoint)
        services = {name: self._service(name, plan, endpoints.get(name, []))
                    for name, plan in sorted(view.plans.items()) if not plan.deleted}  # fmt: skip
        self._nodes = {node: part for node, part in self._nodes.items() if node in view.nodes}
        self._services = {name: part for name, part in self._services.items() if name in services}
        return Table(
            index=view.index,
            domain=view.config.domain,
            vip_range=view.config.vip_range,
            nodes={node: TableNode(address=seen.report.address) for node, seen in sorted(view.nodes.items())},
            services=services,
            routes=dict(view.routes),
        )

    def _node(self, node: str, seen: NodeView, plan: NodePlan | None) -> list[tuple[str, Endpoint]]:
        known = self._nodes.get(node)
        if known and known.report is seen.report and known.held is seen.held and known.plan is plan:
            return known.endpoints
        part = _NodePart(seen.report, seen.held, plan, _endpoints(seen, plan))
        self._nodes[node] = part
        return part.endpoints

    def _service(self, name: str, plan: ServicePlan, endpoints: list[Endpoint]) -> TableService:
        known = self._services.get(name)
        if known and known.plan is plan and known.endpoints == endpoints:
            return known.service
        part = _ServicePart(plan, endpoints, _service(plan, endpoints))
        self._services[name] = part
        return part.service


class _NodePart(NamedTuple):
    """One node's endpoints by service, and what they were computed from."""

    report: NodeReport
    held: bool
    plan: NodePlan | None
    endpoints: list[tuple[str, Endpoint]]


class _ServicePart(NamedTuple):
    plan: ServicePlan
    endpoints: list[Endpoint]
    service: TableService


def _endpoints(seen: NodeView, plan: NodePlan | None) -> list[tuple[str, Endpoint]]:
    wanted = None if plan is None else {assignment.id for assignment in plan.replicas}
    return [
        (replica.service, endpoint)
        for replica in seen.report.replicas
        if (wanted is None or replica.id in wanted)
        and (endpoint := _endpoint(seen.report, replica, suspect=not seen.held))
    ]


def _endpoint(node: NodeReport, replica: ReplicaReport, *, suspect: bool) -> Endpoint | None:
    state = IN_TABLE.get(replica.state)
    if state is None or not replica.address:
        return None
    return Endpoint(
        id=replica.id,
        slot=replica.slot,
        node=node.node,
        release=replica.release,
        tags=replica.tags,
        weight=replica.weight,
        state="suspect" if suspect and state == "ready" else state,
        address=replica.address,
        ports=replica.ports,
    )


def _service(plan: ServicePlan, endpoints: list[Endpoint]) -> TableService:
    return TableService(
        vip=plan.vip,
        ttl=plan.ttl,
        discovery=plan.discovery,
        all_unready=plan.all_unready,
        desired=plan.desired,
        asleep=plan.asleep,
        ports={name: msgspec.convert(port, TablePort, from_attributes=True) for name, port in plan.ports.items()},
        traffic=plan.traffic,
        endpoints=sorted(endpoints, key=lambda endpoint: (str(endpoint.slot).zfill(8), endpoint.id)),
    )
