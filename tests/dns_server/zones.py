"""Tables to ask, and questions whose answers read like a zone file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dnslib import QTYPE

from mesh.dns import zone as rcodes
from mesh.dns.names import labels_of
from mesh.dns.zone import Zone
from mesh.table import Endpoint, Table, TableNode, TablePort, TableService

NOERROR, NXDOMAIN = rcodes.NOERROR, rcodes.NXDOMAIN
SOA = "cluster. 5 IN SOA ns.cluster. hostmaster.cluster. 42 7200 1800 86400 5"
VIP_SOA = SOA.replace("cluster. 5", "96.10.in-addr.arpa. 5", 1)


def instance(service: str, slot: int | str, address: str, state: str = "ready", **others: Any) -> Endpoint:
    others.setdefault("node", "n1")
    return Endpoint(id=f"{service}-{slot}-aaaa", slot=slot, address=address, state=state, **others)


def guestbook() -> Table:
    """Two nodes; `web` behind a VIP, `redis` direct, `peers` with nothing ready, `exporter` on each node."""
    return Table(
        index=42,
        nodes={"n1": TableNode(address="10.77.0.11"), "N2": TableNode(address="10.77.0.12")},
        services={
            "web": TableService(
                vip="10.96.0.7",
                desired=4,
                ports={"http": TablePort(port=80, protocol="http"), "dns": TablePort(port=53, protocol="udp")},
                endpoints=[
                    instance("web", 1, "10.77.0.11", release=3, tags=["v2", "blue"], ports={"http": 31001}, weight=10),
                    instance("web", 2, "10.77.0.12", release=2, ports={"http": 31002, "dns": 31003}),
                    instance("web", 3, "10.77.0.13", "running", release=3, tags=["v3"], ports={"http": 31004}),
                ],
            ),
            "redis": TableService(
                discovery="direct",
                ttl=2,
                desired=2,
                ports={"redis": TablePort(port=6379)},
                endpoints=[
                    instance("redis", 1, "10.1.0.1", ports={"redis": 6379}),
                    instance("redis", 2, "10.1.0.2", "suspect", ports={"redis": 6379}),
                    instance("redis", 3, "fd00::7", ports={"redis": 6379}),
                ],
            ),
            "peers": TableService(
                discovery="direct",
                desired=2,
                endpoints=[instance("peers", slot, f"10.2.0.{slot}", "running") for slot in (1, 2)],
            ),
            "strict": TableService(
                discovery="direct",
                desired=1,
                all_unready="nodata",
                endpoints=[instance("strict", 1, "10.3.0.1", "running")],
            ),
            "asleep": TableService(discovery="direct", vip="10.96.1.1"),
            "lost": TableService(discovery="direct", desired=1, endpoints=[instance("lost", 1, "10.4.0.1", "suspect")]),
            "exporter": TableService(
                vip="10.96.0.9", desired=2, endpoints=[instance("exporter", "n1", "10.5.0.1", "running")]
            ),
        },
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A question, `NAME TYPE`, and its answer."""

    question: str
    rcode: int
    answer: Sequence[str] = ()
    authority: Sequence[str] = ()
    additional: Sequence[str] = ()

    def __str__(self) -> str:
        return self.question

    def check(self, zone: Zone) -> None:
        name, qtype = self.question.split()
        found = zone.answer(labels_of(name), getattr(QTYPE, qtype))
        assert found is not None, "not ours"
        assert found.rcode == self.rcode
        assert sorted(map(str, found.answer)) == sorted(self.answer)
        assert list(map(str, found.authority)) == list(self.authority)
        assert sorted(map(str, found.additional)) == sorted(self.additional)


def case(question: str, *answer: str, additional: Sequence[str] = ()) -> Case:
    """There are records. Each is written without its owner where that is the name asked for."""
    owner = question.split()[0]
    return Case(question, NOERROR, [f"{owner}. {record}" for record in answer], (), additional)


def nodata(question: str, soa: str = SOA) -> Case:
    return Case(question, NOERROR, (), [soa])


def nxdomain(question: str, soa: str = SOA) -> Case:
    return Case(question, NXDOMAIN, (), [soa])
