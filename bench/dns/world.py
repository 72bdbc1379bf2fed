"""What is asked and what must be answered: Tables of any size, and what a service's answer was at any time."""

from __future__ import annotations

import random
import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
from dnslib import EDNS0, QTYPE, DNSRecord

from mesh.table import Endpoint, Table, TableNode, TablePort, TableService

HOT = 10
"""Names of the hot run."""
SPELLINGS = 10
"""Of each name in the wide run, in mixed case."""

Addresses = frozenset[str]


def make_table(services: int, endpoints: int) -> Table:
    """Services `s00001`…, each `discovery: direct` with so many ready instances."""
    address = fresh_addresses()
    return Table(
        index=1,
        nodes={f"n{number}": TableNode(address=f"10.77.0.{number}") for number in range(1, 11)},
        services={
            f"s{number:05}": TableService(
                vip=f"10.96.{number >> 8}.{number & 255}",
                discovery="direct",
                desired=endpoints,
                ports={"http": TablePort(port=80, protocol="http")},
                endpoints=[
                    Endpoint(
                        id=f"s{number:05}-{slot}-{random.randbytes(2).hex()}",
                        slot=slot,
                        node=f"n{slot % 10 + 1}",
                        release=1,
                        address=next(address),
                        ports={"http": random.randrange(20000, 60000)},
                    )
                    for slot in range(1, endpoints + 1)
                ],
            )
            for number in range(1, services + 1)
        },
    )


def fresh_addresses(network: int = 20) -> Iterator[str]:
    """Addresses that nobody has, from 10.<network>.0.0 on."""
    for value in range(network << 16, 255 << 16):
        yield socket.inet_ntoa((10 << 24 | value).to_bytes(4, "big"))


def addresses_of(service: TableService) -> Addresses:
    return frozenset(endpoint.address for endpoint in service.endpoints)


def change_one(table: Table, name: str, address: str) -> Table:
    """One instance of a service moves."""
    service = table.services[name]
    place = random.randrange(len(service.endpoints))
    moved = [*service.endpoints]
    moved[place] = msgspec.structs.replace(moved[place], address=address)
    changed = msgspec.structs.replace(service, endpoints=moved)
    return msgspec.structs.replace(table, index=table.index + 1, services={**table.services, name: changed})


class History:
    """Which answers were right when. A change may be seen from its publication on, and must be from its
    acknowledgement on; times are of any steady clock."""

    def __init__(self, table: Table) -> None:
        self._versions: dict[str, list[tuple[Addresses, float, float]]] = defaultdict(list)
        for name, service in table.services.items():
            self._versions[name].append((addresses_of(service), 0.0, 0.0))

    def published(self, name: str, addresses: Addresses, now: float) -> None:
        self._versions[name].append((addresses, now, float("inf")))

    def acknowledged(self, name: str, now: float) -> None:
        addresses, published, _ = self._versions[name][-1]
        self._versions[name][-1] = addresses, published, now

    def was_right(self, name: str, addresses: Addresses, asked: float, answered: float) -> bool:
        ends = [acknowledged for *_, acknowledged in self._versions[name][1:]] + [float("inf")]
        return any(
            addresses == right and published <= answered and asked <= end
            for (right, published, _), end in zip(self._versions[name], ends, strict=True)
        )


def query(name: str) -> bytes:
    asked = DNSRecord.question(name)
    asked.add_ar(EDNS0(udp_len=1232))
    return bytes(asked.pack())


def answered_addresses(packet: bytes) -> Addresses:
    return frozenset(str(record.rdata) for record in DNSRecord.parse(packet).rr if record.rtype == QTYPE.A)


def write_questions(folder: Path, names: list[str], domain: str) -> dict[str, Path]:
    """Files for dnsperf: `hot` has few names, `wide` all of them in mixed case."""
    source = random.Random(1)
    full = [f"{name}.{domain}" for name in names]
    wide = [mixed_case(name, source) for name in full for _ in range(SPELLINGS)]
    source.shuffle(wide)
    files = {}
    for kind, asked in (("hot", full[:HOT]), ("wide", wide)):
        files[kind] = folder / f"{kind}.{domain}"
        files[kind].write_text("".join(f"{name} A\n" for name in asked))
    return files


def mixed_case(name: str, source: random.Random) -> str:
    return "".join(source.choice((letter, letter.upper())) for letter in name)
