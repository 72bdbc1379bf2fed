"""Endpoints are computed from replicas and stored nowhere: the pure function from a View to the Table."""

from __future__ import annotations

from collections import defaultdict

from mesh.model import NodeReport, ReplicaReport, ServicePlan
from mesh.table import IN_TABLE, Endpoint, Table, TableNode, TablePort, TableService
from mesh.view import View


def build_table(view: View) -> Table:
    """What the data plane needs, of what is planned and observed.

    A node whose session is gone keeps its endpoints as `suspect`: used only where no other answers,
    until the scheduler has declared its replicas lost (they then are in no node's plan).
    """
    endpoints: dict[str, list[Endpoint]] = defaultdict(list)
    for node, seen in sorted(view.nodes.items()):
        planned = view.node_plans.get(node)
        wanted = None if planned is None else {assignment.id for assignment in planned.replicas}
        for replica in seen.report.replicas:
            if wanted is not None and replica.id not in wanted:
                continue
            if endpoint := _endpoint(seen.report, replica, suspect=not seen.held):
                endpoints[replica.service].append(endpoint)
    return Table(
        index=view.index,
        domain=view.config.domain,
        vip_range=view.config.vip_range,
        nodes={node: TableNode(address=seen.report.address) for node, seen in sorted(view.nodes.items())},
        services={name: _service(plan, endpoints.get(name, []))
                  for name, plan in sorted(view.plans.items()) if not plan.deleted},
        routes=dict(view.routes),
    )  # fmt: skip


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
        ports={name: TablePort(port=port.port, protocol=port.protocol) for name, port in plan.ports.items()},
        traffic=plan.traffic,
        endpoints=sorted(endpoints, key=lambda endpoint: (str(endpoint.slot).zfill(8), endpoint.id)),
    )
