"""What the mesh answers for a name and a type, from the Table alone.

A `Zone` is the Table with the indexes that questions need; `update` follows a change of the Table at the
cost of the change. Nothing here knows of packets or sockets: see `wire.py` and `server.py`.

Sources: RFC 1034 4.3.2 and RFC 2308 (NXDOMAIN, NODATA), RFC 8020 (nothing lies below a name that is not),
RFC 2181 5 (no record twice), RFC 2782 (SRV), RFC 8482 (ANY).
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dnslib import AAAA, NS, PTR, QTYPE, RD, SOA, SRV, TXT, A, DNSLabel

from mesh.dns import names
from mesh.dns.instances import ready, select
from mesh.dns.names import Labels, Name, labels_of, parse_name
from mesh.dns.reverse import AddressKey, VipZone, address_key, family, key_of
from mesh.table import Endpoint, Table, TableDelta, TableService

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
HINFO = 13  # dnslib knows the type's number, not its data

TTL = 5
"""Seconds, for what no service's own `ttl` governs."""
NEGATIVE_TTL = 5
"""The longest that anybody may remember that something is not there."""
_ANY_TTL = 8482
_RFC8482 = RD(b"\x07RFC8482\x00")

Subject = tuple[str, str | int]
"""What an answer was derived from, beside the nodes: `("service", "web")`, `("address", KEY)`, or `APEX`."""
APEX: Subject = ("apex", "")
"""Changes with every Table."""


class Record(NamedTuple):
    """A resource record of class IN."""

    owner: DNSLabel
    type: int
    ttl: int
    data: Any  # one of dnslib's RD classes

    def __str__(self) -> str:
        data = '"RFC8482" ""' if self.type == HINFO else self.data.toZone()
        return f"{self.owner} {self.ttl} IN {QTYPE[self.type]} {data}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say. With `choice` any fair subset of `answer` will do."""

    rcode: int
    subject: Subject
    answer: Sequence[Record] = ()
    authority: Sequence[Record] = ()
    additional: Sequence[Record] = ()
    choice: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The data of one type at a name that exists; none: NODATA."""

    data: Iterable[Any] = ()
    ttl: int = TTL
    additional: Sequence[Record] = ()
    choice: bool = False


class Zone:
    """The Table as DNS sees it. `node`: where this server runs, if it is a node of the Table.

    Raises:
        ValueError: if the Table's VIP range is none.
    """

    def __init__(self, table: Table, node: str | None = None) -> None:
        self._node = node
        self._table = table
        self._load(table)

    @property
    def table(self) -> Table:
        return self._table

    @property
    def domain(self) -> Labels:
        return self._domain

    def update(self, table: Table, delta: TableDelta | None) -> set[Subject] | None:
        """Answers from `table` from now on. Returns what changed; None: everything may have.

        Raises:
            ValueError: if the Table's VIP range is none; the zone stays as it was.
        """
        old = self._table
        if delta is None or (table.domain, table.vip_range) != (old.domain, old.vip_range):
            self._load(table)
            return None
        self._table = table
        changed = {APEX}
        for service in delta.services:
            changed.add(("service", service))
            changed |= self._index_service(service, old.services.get(service), table.services.get(service))
        if delta.nodes:  # they are in many answers, and seldom change
            self._index_nodes()
            return None
        return changed

    def answer(self, labels: Labels, qtype: int) -> Answer | None:
        """The answer to a question of class IN; None: the name is not ours."""
        name = parse_name(labels, self._domain)
        apex = self._apex(name, labels)
        if apex is None:
            return None
        subject = self._subject(name)
        found = self._find(name, qtype)
        if apex == labels:
            found = self._find_at_apex(qtype) or found or Found()
        if found is None:
            return Answer(NXDOMAIN, subject, authority=[self._soa(apex, NEGATIVE_TTL)])
        owner = dns_name(labels)
        if qtype == QTYPE.ANY and not isinstance(name, names.Parent | names.PortParent):
            return Answer(NOERROR, subject, [Record(owner, HINFO, _ANY_TTL, _RFC8482)])
        answer = [Record(owner, qtype, found.ttl, data) for data in found.data]
        if not answer:
            return Answer(NOERROR, subject, authority=[self._soa(apex, min(NEGATIVE_TTL, found.ttl))])
        return Answer(NOERROR, subject, answer, (), found.additional, found.choice)

    # ── Indexes ──────────────────────────────────────────────────────────────────────────────

    def _load(self, table: Table) -> None:
        self._vip_zone = VipZone(table.vip_range)
        self._table = table
        self._domain = labels_of(table.domain)
        self._services_at: dict[AddressKey, tuple[str, ...]] = {}  # address → services with it as VIP or endpoint
        self._parents: Counter[Labels] = Counter()  # reverse names above the VIPs
        for name, service in table.services.items():
            self._index_service(name, None, service)
        self._index_nodes()

    def _index_service(self, name: str, old: TableService | None, new: TableService | None) -> set[Subject]:
        """Follows one service's change; returns the addresses whose names changed."""
        was, now = _presence(old), _presence(new)
        old_addresses, new_addresses = {address for address, *_ in was}, {address for address, *_ in now}
        at, mine = self._services_at, (name,)
        for address in old_addresses - new_addresses:
            if others := tuple(other for other in at[address] if other != name):
                at[address] = others
            else:
                del at[address]
        for address in new_addresses - old_addresses:
            others = at.get(address, ())
            at[address] = (*others, name) if others else mine
        old_vip, new_vip = old.vip if old else "", new.vip if new else ""
        if old_vip != new_vip:
            self._parents.update(self._vip_zone.parents(new_vip))
            for parent in self._vip_zone.parents(old_vip):
                self._parents[parent] -= 1
                if not self._parents[parent]:
                    del self._parents[parent]
        return {("address", address) for address, *_ in was ^ now}

    def _index_nodes(self) -> None:
        self._nodes = {node.lower(): node for node in self._table.nodes}
        self._nodes_at: dict[AddressKey, list[str]] = {}
        for name, node in self._table.nodes.items():
            self._nodes_at.setdefault(address_key(node.address), []).append(name)

    # ── Where a name belongs ─────────────────────────────────────────────────────────────────

    def _apex(self, name: Name, labels: Labels) -> Labels | None:
        """The top of the zone that the name lies in; None: in none of ours."""
        if isinstance(name, names.Reverse):
            if apex := self._vip_zone.apex(name.network):
                return apex
            address = key_of(name)
            known = address in self._services_at or address in self._nodes_at
            return labels if known else None  # a zone of one name: whose address it is, we know best
        return None if isinstance(name, names.Foreign) else self._domain

    def _subject(self, name: Name) -> Subject:
        match name:
            case names.Reverse():
                address = key_of(name)
                return APEX if address is None else ("address", address)
            case (
                names.Apex()
                | names.NameServer()
                | names.Parent()
                | names.NodeName()
                | names.Nothing()
                | names.Foreign()
            ):
                return APEX
        return ("service", name.service)

    # ── What is at a name ────────────────────────────────────────────────────────────────────

    def _find(self, name: Name, qtype: int) -> Found | None:
        """The data of a type at a name that is no apex; None: there is no such name."""
        match name:
            case names.NameServer():
                return Found(_addresses(self._name_servers(), qtype))
            case names.Parent():
                return Found()
            case names.NodeName(node):
                spelled = self._nodes.get(node)
                return Found(_addresses([self._table.nodes[spelled].address], qtype)) if spelled else None
            case names.Reverse():
                return self._find_reverse(name, qtype)
            case names.Apex() | names.Nothing() | names.Foreign():
                return None
        service = self._table.services.get(name.service)
        return self._find_in_service(name, service, qtype) if service else None

    def _find_in_service(self, name: names.InService, service: TableService, qtype: int) -> Found | None:
        if isinstance(name, names.ServiceName) and service.discovery == "vip" and qtype != QTYPE.TXT:
            return Found(_addresses([service.vip], qtype), service.ttl)
        instances = select(name, service, self._nodes)
        if instances is None:
            return None
        if isinstance(name, names.PortName):
            return self._srv(name, service, instances) if qtype == QTYPE.SRV else Found(ttl=service.ttl)
        if qtype == QTYPE.TXT:
            texts = dict.fromkeys(_texts(endpoint) for endpoint in ready(instances))
            return Found([TXT(list(text)) for text in texts], service.ttl)
        addresses = _addresses([endpoint.address for endpoint in instances], qtype)
        return Found(addresses, service.ttl, choice=not isinstance(name, names.AllInstances))

    def _srv(self, name: names.PortName, service: TableService, instances: Sequence[Endpoint]) -> Found:
        data, glue = [], []
        for endpoint in instances:
            target = self._instance_name(name.service, endpoint)
            data.append(SRV(0, min(max(endpoint.weight, 0), 65535), endpoint.ports[name.port], target))
            if family(endpoint.address):
                glue.append(_address_record(target, service.ttl, endpoint.address))
        return Found(data, service.ttl, glue)

    def _find_reverse(self, name: names.Reverse, qtype: int) -> Found | None:
        address = key_of(name)
        if address is None:
            exists = self._parents[self._vip_zone.labels(name.network)] > 0
            return Found() if exists else None
        owners = list(self._names_at(address))
        if not owners:
            return None
        if qtype != QTYPE.PTR:
            return Found()
        return Found([PTR(owner) for owner, _ in owners], min(ttl for _, ttl in owners))

    def _names_at(self, address: AddressKey) -> Iterator[tuple[DNSLabel, int]]:
        """Every name that has the address, with its TTL."""
        for service_name in self._services_at.get(address, ()):
            service = self._table.services[service_name]
            if address_key(service.vip) == address:
                yield dns_name((service_name, "svc", *self._domain)), service.ttl
            for endpoint in service.endpoints:
                if address_key(endpoint.address) == address:
                    yield self._instance_name(service_name, endpoint), service.ttl
        for node in self._nodes_at.get(address, ()):
            yield dns_name((*node.split("."), "node", *self._domain)), TTL

    def _find_at_apex(self, qtype: int) -> Found | None:
        if qtype == QTYPE.SOA:
            return Found([self._soa_data()])
        if qtype == QTYPE.NS:
            server = dns_name(("ns", *self._domain))
            glue = [_address_record(server, TTL, address) for address in self._name_servers() if family(address)]
            return Found([NS(server)], additional=glue)
        return None

    def _name_servers(self) -> list[str]:
        """The address of this server's node; where that is not known, of all: each node runs a DNS server."""
        nodes = self._table.nodes
        here = nodes.get(self._node) if self._node else None
        return [here.address] if here else list(dict.fromkeys(node.address for node in nodes.values()))

    def _instance_name(self, service: str, endpoint: Endpoint) -> DNSLabel:
        return dns_name((endpoint.id, service, "svc", *self._domain))

    def _soa(self, apex: Labels, ttl: int) -> Record:
        return Record(dns_name(apex), QTYPE.SOA, ttl, self._soa_data())

    def _soa_data(self) -> SOA:
        server, mailbox = dns_name(("ns", *self._domain)), dns_name(("hostmaster", *self._domain))
        serial = self._table.index & 0xFFFFFFFF
        return SOA(server, mailbox, (serial, 7200, 1800, 86400, NEGATIVE_TTL))


# ── Data ─────────────────────────────────────────────────────────────────────────────────────────


def dns_name(labels: Iterable[str]) -> DNSLabel:
    # latin-1: what came as bytes goes back as the same bytes
    return DNSLabel(tuple(label.encode("latin-1") for label in labels))


def _addresses(addresses: Iterable[str], qtype: int) -> list[RD]:
    if qtype == QTYPE.A:
        return [A(address) for address in dict.fromkeys(addresses) if family(address) == socket.AF_INET]
    if qtype == QTYPE.AAAA:
        return [AAAA(address) for address in dict.fromkeys(addresses) if family(address) == socket.AF_INET6]
    return []


def _address_record(owner: DNSLabel, ttl: int, address: str) -> Record:
    qtype = QTYPE.AAAA if ":" in address else QTYPE.A
    return Record(owner, qtype, ttl, AAAA(address) if ":" in address else A(address))


def _texts(endpoint: Endpoint) -> tuple[str, ...]:
    release = f"release={endpoint.release}"
    return (release, f"tags={','.join(endpoint.tags)}"[:255]) if endpoint.tags else (release,)


def _presence(service: TableService | None) -> set[tuple[AddressKey, str, int]]:
    """(address, instance or "" for the VIP, TTL): all of a service that PTR records are made from."""
    if service is None:
        return set()
    present = {(address_key(endpoint.address), endpoint.id, service.ttl) for endpoint in service.endpoints}
    return present | {(address_key(service.vip), "", service.ttl)} if service.vip else present
