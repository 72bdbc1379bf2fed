"""Kept packets are the answers that the zone would give now, in the asker's spelling."""

from __future__ import annotations

from collections import Counter

import pytest

import dns.message
from mesh.dns.packets import Packets
from mesh.dns.wire import Reply, Transport, respond
from mesh.dns.zone import Zone
from mesh.table import Table, TableService, table_diff
from tests.dns_server.zones import guestbook, instance


class Server:
    """A zone behind kept packets, without sockets."""

    def __init__(self, table: Table, packets: Packets | None = None) -> None:
        self.zone = Zone(table)
        self.packets = Packets() if packets is None else packets
        self.kept = 0

    def ask(self, query: bytes) -> bytes:
        if known := self.packets.answer(query):
            self.kept += 1
            return known[0]
        reply = respond(query, Transport.UDP, self.zone)
        assert isinstance(reply, Reply)
        self.packets.keep(query, reply, [0])
        return reply.packet


def question(name: str, qtype: str = "A", **others: object) -> bytes:
    return dns.message.make_query(name, qtype, **others).to_wire()  # type: ignore[arg-type]


def test_the_second_query_is_answered_from_the_first_in_any_spelling() -> None:
    server = Server(guestbook())
    server.ask(question("web.svc.cluster"))
    query = question("WEB.Svc.cluster")
    answer = server.ask(query)
    assert server.kept == 1
    assert answer == respond(query, Transport.UDP, server.zone).packet  # type: ignore[union-attr]


def test_types_that_differ_like_letters_are_not_mixed_up() -> None:
    server = Server(guestbook())
    assert not dns.message.from_wire(server.ask(question("web.svc.cluster", "HTTPS"))).answer
    for qtype in ("TYPE97", "HTTPS", "TYPE97"):
        query = question("web.svc.cluster", qtype)
        assert dns.message.from_wire(server.ask(query)).question == dns.message.from_wire(query).question


def test_flags_edns_and_type_tell_answers_apart() -> None:
    server = Server(guestbook())
    for others in ({"use_edns": 0}, {"use_edns": False}, {"use_edns": 0, "payload": 512}, {"flags": 0}):
        for qtype in ("A", "AAAA", "TXT"):
            query = question("web.svc.cluster", qtype, **others)
            fresh = respond(query, Transport.UDP, server.zone)
            assert server.ask(query) == server.ask(query) == fresh.packet  # type: ignore[union-attr]
    assert server.kept == 12


@pytest.mark.parametrize("count", [2, 3, 20])
def test_addresses_take_turns_in_leading(count: int) -> None:
    endpoints = [instance("web", n, f"10.0.0.{n}") for n in range(1, count + 1)]
    server = Server(Table(services={"web": TableService(discovery="direct", endpoints=endpoints)}))
    query = question("web.svc.cluster")
    leading = Counter(str(next(iter(dns.message.from_wire(server.ask(query)).answer[0]))) for _ in range(count * 5))
    assert set(leading.values()) == {5}
    assert len(leading) == count
    assert server.kept == count * 5 - 1


def test_a_change_drops_what_it_touches_and_nothing_else() -> None:
    old = guestbook()
    server = Server(old)
    asked = [question(name) for name in ("redis.svc.cluster", "web.svc.cluster", "nothing.svc.cluster")]
    for query in asked:
        server.ask(query)
    services = {**old.services, "nothing": TableService(vip="10.96.0.99")}
    new = Table(index=43, nodes=old.nodes, services=services)
    server.packets.drop(server.zone.update(new, table_diff(old, new)))
    _, _, nothing = (dns.message.from_wire(server.ask(query)) for query in asked)
    assert server.kept == 2
    assert nothing.answer
    server.packets.drop(None)
    assert len(server.packets) == 0


def test_bounded() -> None:
    server = Server(guestbook(), Packets(entries=10))
    for n in range(100):
        server.ask(question(f"n{n}.svc.cluster"))
        assert len(server.packets) <= 10
    server = Server(guestbook(), Packets(size=5000))
    for n in range(100):
        server.ask(question(f"n{n}.svc.cluster"))
        assert len(server.packets) <= 12
