"""Why a name has the answer it has: which service, which instances, and which were left out (`mesh resolve`)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import assert_never

from dnslib import QTYPE

from mesh.dns import names
from mesh.dns.instances import has_tag, hopeful, ready, select
from mesh.dns.names import labels_of, parse_name, reverse_name
from mesh.dns.zone import NXDOMAIN, Zone
from mesh.table import Endpoint, Table, TableService


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer and its reasons; records are written as in a zone file."""

    name: str
    type: str
    outcome: str
    """`NOERROR`, `NODATA` (the name exists, without this type), `NXDOMAIN`, or `FOREIGN` (forwarded, or refused)."""
    answer: list[str]
    additional: list[str]
    why: str
    left_out: list[str]
    """`web-3-6f3a on n2 (10.77.0.12): running, not ready`."""

    def lines(self) -> list[str]:
        """For a terminal."""
        return [
            f"{self.name} {self.type}: {self.outcome}",
            *(f"  {record}" for record in self.answer),
            *(f"  {record}  (additional)" for record in self.additional),
            f"  why: {self.why}",
            *(f"  left out: {reason}" for reason in self.left_out),
        ]


def explain(table: Table, name: str, qtype: str = "A", node: str | None = None) -> Explanation:
    """What a DNS server with this Table says, and why.

    `web` is short for `web.svc.<domain>`; an address is asked for backwards. `node`: where the server runs.

    Raises:
        ValueError: if there is no such type of record.
    """
    labels = labels_of(name)
    if _is_address(name):
        labels, qtype = reverse_name(name), "PTR"
    elif len(labels) == 1 and labels != labels_of(table.domain):
        labels = (*labels, "svc", *labels_of(table.domain))
    zone = Zone(table, node)
    answer = zone.answer(labels, _type_number(qtype))
    full = ".".join(labels) or "."
    if answer is None:
        why = f"not under {table.domain}: looked up elsewhere for the clients that may, refused for others"
        return Explanation(full, qtype.upper(), "FOREIGN", [], [], why, [])
    outcome = "NXDOMAIN" if answer.rcode == NXDOMAIN else "NOERROR" if answer.answer else "NODATA"
    parsed = parse_name(labels, zone.domain)
    why, left_out = _reasons(parsed, table, {spelled.lower() for spelled in table.nodes})
    if outcome == "NODATA" and not left_out:
        why += f"; it has no {qtype.upper()} record"
    return Explanation(
        full, qtype.upper(), outcome, [*map(str, answer.answer)], [*map(str, answer.additional)], why, left_out
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _type_number(qtype: str) -> int:
    numbers = {text: number for number, text in QTYPE.forward.items()}
    if (number := numbers.get(qtype.upper())) is None:
        raise ValueError(f"no type of record: {qtype!r} (as in A, AAAA, SRV, PTR, TXT, NS, SOA)")
    return int(number)


def _reasons(name: names.Name, table: Table, nodes: set[str]) -> tuple[str, list[str]]:
    """Why, and who was left out."""
    match name:
        case names.Apex():
            return "the domain itself", []
        case names.NameServer():
            return "the name server: this node, as far as it is known, else all nodes", []
        case names.Parent():
            return "it exists only for what is below it", []
        case names.NodeName(node):
            return (f"the address of node {node}" if node in nodes else f"there is no node {node}"), []
        case names.Reverse(network):
            return f"the names that have the address {network.network_address}", []
        case names.Nothing() | names.Foreign():
            return "there are only services (svc), nodes (node) and the name server (ns) under the domain", []
    service = table.services.get(name.service)
    if service is None:
        return f"there is no service {name.service}", []
    chosen = select(name, service, nodes)
    if isinstance(name, names.ServiceName) and service.discovery == "vip":
        count = len(ready(service.endpoints))
        return (
            f"service {name.service} has the virtual IP {service.vip or '(none yet)'}; the proxy behind it "
            f"chooses among {count} of {len(service.endpoints)} instances", _left_out(name, service, chosen or [])
        )  # fmt: skip
    if chosen is None:
        return f"service {name.service} has {_lacking(name, service)}", []
    return f"service {name.service}: {_wanted(name, service)}", _left_out(name, service, chosen)


def _wanted(name: names.InService, service: TableService) -> str:
    match name:
        case names.ServiceName():
            if ready(service.endpoints) or not hopeful(service):
                return "its ready instances (discovery: direct)"
            return "every running instance, since none is ready (discovery: direct, all_unready: any)"
        case names.ReadyInstances():
            return "its ready instances"
        case names.AllInstances():
            return "every running instance, ready or not"
        case names.SlotName(_, slot):
            return f"the instance in slot {slot} of {service.desired}"
        case names.Member(_, label):
            if any(has_tag(endpoint, label) for endpoint in service.endpoints):
                return f"its ready instances tagged {label}"
            return f"the instance {label}"
        case names.PortName(_, port, _):
            return f"its ready instances with the port {port}"
        case names.PortParent(_, transport):
            return f"it exists for the names of its {transport} ports"
    assert_never(name)


def _lacking(name: names.InService, service: TableService) -> str:
    match name:
        case names.SlotName(_, slot):
            return f"no slot {slot}: {service.desired} are wanted"
        case names.Member(_, label):
            return f"no instance {label}, and none tagged so"
        case names.PortName(_, port, transport):
            return f"no {transport} port {port}"
    return "no such name"


def _left_out(name: names.InService, service: TableService, chosen: list[Endpoint]) -> list[str]:
    return [
        f"{endpoint.id} on {endpoint.node} ({endpoint.address}): {_why_not(name, endpoint)}"
        for endpoint in service.endpoints
        if endpoint not in chosen
    ]


def _why_not(name: names.InService, endpoint: Endpoint) -> str:
    match name:
        case names.SlotName(_, slot) if endpoint.slot != slot:
            return f"in slot {endpoint.slot}"
        case names.SlotName():
            return "another instance of the slot is ready, or newer"
        case names.Member(_, label) if not has_tag(endpoint, label):
            return f"not {label}, and not tagged so"
        case names.PortName(_, port, _) if port not in endpoint.ports:
            return f"without the port {port}"
        case names.PortParent():
            return "not asked for"
    if endpoint.state == "suspect":
        return f"node {endpoint.node} is silent, and others are ready"
    return f"{endpoint.state}, not ready"
