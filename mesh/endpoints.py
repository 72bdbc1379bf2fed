"""Endpoints are computed from replicas and stored nowhere: the pure function from a View to the Table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from mesh.model import NodePlan, NodeReport, ReplicaReport, ServicePlan
from mesh.table import IN_TABLE, Endpoint, Table, TableNode, TablePort, TableService
from mesh.units import parse_spans
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
        self._services: dict[str, tuple[ServicePlan, TableService]] = {}
        self._endpoints: dict[str, dict[str, list[Endpoint]]] = {}  # by service, then by node

    def __call__(self, view: View) -> Table:
        touched = self._take_nodes(view)
        services: dict[str, TableService] = {}
        for name, plan in sorted(view.plans.items()):
            if not plan.deleted:
                known = self._services.get(name)
                same = known is not None and known[0] is plan and name not in touched
                services[name] = known[1] if known and same else self._service(plan, known)
        self._services = {name: (view.plans[name], service) for name, service in services.items()}
        return Table(
            index=view.index,
            domain=view.config.domain,
            vip_range=view.config.vip_range,
            nodes={node: self._nodes[node].table_node for node in sorted(view.nodes)},
            services=services,
            routes=dict(view.routes),
        )

    def _take_nodes(self, view: View) -> set[str]:
        """Takes in the nodes that have changed; the services whose endpoints this touches."""
        touched: set[str] = set()
        for node in self._nodes.keys() - view.nodes.keys():
            touched |= self._replace(node, self._nodes.pop(node).endpoints, {})
        for node, seen in view.nodes.items():
            plan, lost = view.node_plans.get(node), view.cluster.discounts(node, seen.index)
            known = self._nodes.get(node)
            if known and known.report is seen.report and known.plan is plan and known.state == (seen.held, lost):
                continue
            endpoints = {} if lost else _endpoints(seen, plan)
            touched |= self._replace(node, known.endpoints if known else {}, endpoints)
            table_node = TableNode(address=seen.report.address)
            self._nodes[node] = _NodePart(seen.report, plan, (seen.held, lost), table_node, endpoints)
        return touched

    def _replace(
        self, node: str, before: Mapping[str, list[Endpoint]], after: Mapping[str, list[Endpoint]]
    ) -> set[str]:
        touched = {service for service in before.keys() | after.keys() if before.get(service) != after.get(service)}
        for service in touched:
            nodes = self._endpoints.setdefault(service, {})
            if service in after:
                nodes[node] = after[service]
            else:
                del nodes[node]
            if not nodes:
                del self._endpoints[service]
        return touched

    def _service(self, plan: ServicePlan, known: tuple[ServicePlan, TableService] | None) -> TableService:
        endpoints = [one for part in self._endpoints.get(plan.service, {}).values() for one in part]
        service = _service(plan, endpoints)
        return known[1] if known and known[1] == service else service


class _NodePart(NamedTuple):
    """One node's part of the Table, and what it was computed from."""

    report: NodeReport
    plan: NodePlan | None
    state: tuple[bool, bool]  # held, lost
    table_node: TableNode
    endpoints: Mapping[str, list[Endpoint]]  # by service


def _endpoints(seen: NodeView, plan: NodePlan | None) -> dict[str, list[Endpoint]]:
    """By service."""
    wanted = None if plan is None else {assignment.id for assignment in plan.replicas}
    endpoints: dict[str, list[Endpoint]] = {}
    for replica in seen.report.replicas:
        if wanted is not None and replica.id not in wanted:
            continue
        if endpoint := _endpoint(seen.report, replica, suspect=not seen.held):
            endpoints.setdefault(replica.service, []).append(endpoint)
    return endpoints


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
        seats=parse_spans(plan.seats),
        asleep=plan.asleep,
        ports={name: msgspec.convert(port, TablePort, from_attributes=True) for name, port in plan.ports.items()},
        traffic=plan.traffic,
        endpoints=sorted(endpoints, key=lambda endpoint: (str(endpoint.slot).zfill(8), endpoint.id, endpoint.node)),
    )
