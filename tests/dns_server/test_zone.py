"""What the zone says, case by case. Read it as the zone's documentation."""

from __future__ import annotations

import pytest
from dnslib import QTYPE

from mesh.dns.names import labels_of, reverse_name
from mesh.dns.reverse import address_key
from mesh.dns.zone import APEX, Zone
from mesh.table import Table, TableNode, TableService, apply_delta, table_diff
from tests.dns_server.zones import SOA, VIP_SOA, Case, case, guestbook, instance, nodata, nxdomain

NS_GLUE = ["ns.cluster. 5 IN A 10.77.0.11", "ns.cluster. 5 IN A 10.77.0.12"]
SHORT_SOA = SOA.replace(" 5 IN", " 2 IN")  # a service's own TTL is the bound

CASES = [
    # ── the apex and what only has things below it ──
    Case("cluster SOA", 0, [SOA]),
    case("cluster NS", "5 IN NS ns.cluster.", additional=NS_GLUE),
    nodata("cluster A"),
    case("cluster ANY", '8482 IN HINFO "RFC8482" ""'),
    case("ns.cluster A", "5 IN A 10.77.0.11", "5 IN A 10.77.0.12"),
    nodata("ns.cluster AAAA"),
    nodata("svc.cluster A"),
    nodata("node.cluster NS"),
    nodata("svc.cluster ANY"),
    nxdomain("nothing.cluster A"),
    nxdomain("web.cluster A"),
    nxdomain("a.b.c.cluster A"),
    # ── a service behind its virtual IP ──
    case("web.svc.cluster A", "5 IN A 10.96.0.7"),
    nodata("web.svc.cluster AAAA"),
    nodata("web.svc.cluster HTTPS"),
    nodata("web.svc.cluster SVCB"),
    nodata("web.svc.cluster SRV"),
    nodata("web.svc.cluster MX"),
    case("web.svc.cluster ANY", '8482 IN HINFO "RFC8482" ""'),
    case("web.svc.cluster TXT", '5 IN TXT "release=3" "tags=v2,blue"', '5 IN TXT "release=2"'),
    nxdomain("nothing.svc.cluster A"),
    nxdomain("ready.nothing.svc.cluster A"),
    nxdomain("_http._tcp.nothing.svc.cluster SRV"),
    # ── its instances ──
    case("ready.web.svc.cluster A", "5 IN A 10.77.0.11", "5 IN A 10.77.0.12"),
    case("all.web.svc.cluster A", "5 IN A 10.77.0.11", "5 IN A 10.77.0.12", "5 IN A 10.77.0.13"),
    case("1.web.svc.cluster A", "5 IN A 10.77.0.11"),
    case("3.web.svc.cluster A", "5 IN A 10.77.0.13"),
    nodata("4.web.svc.cluster A"),
    nxdomain("5.web.svc.cluster A"),
    nxdomain("0.web.svc.cluster A"),
    nxdomain("01.web.svc.cluster A"),
    nxdomain("99999999999999999999.web.svc.cluster A"),
    case("web-3-aaaa.web.svc.cluster A", "5 IN A 10.77.0.13"),
    case("web-1-aaaa.web.svc.cluster TXT", '5 IN TXT "release=3" "tags=v2,blue"'),
    nxdomain("web-3-bbbb.web.svc.cluster A"),
    nxdomain("web-3-aaaa.redis.svc.cluster A"),
    case("v2.web.svc.cluster A", "5 IN A 10.77.0.11"),
    nodata("v3.web.svc.cluster A"),
    nxdomain("v4.web.svc.cluster A"),
    nxdomain("x.ready.web.svc.cluster A"),
    # ── its ports ──
    case("_http._tcp.web.svc.cluster SRV",
         "5 IN SRV 0 10 31001 web-1-aaaa.web.svc.cluster.", "5 IN SRV 0 100 31002 web-2-aaaa.web.svc.cluster.",
         additional=["web-1-aaaa.web.svc.cluster. 5 IN A 10.77.0.11", "web-2-aaaa.web.svc.cluster. 5 IN A 10.77.0.12"]),
    case("_dns._udp.web.svc.cluster SRV", "5 IN SRV 0 100 31003 web-2-aaaa.web.svc.cluster.",
         additional=["web-2-aaaa.web.svc.cluster. 5 IN A 10.77.0.12"]),
    nodata("_http._tcp.web.svc.cluster A"),
    nodata("_tcp.web.svc.cluster SRV"),
    nodata("_udp.web.svc.cluster A"),
    nodata("_tcp.redis.svc.cluster A", SHORT_SOA),
    nxdomain("_udp.redis.svc.cluster A"),
    nxdomain("_http._udp.web.svc.cluster SRV"),
    nxdomain("_https._tcp.web.svc.cluster SRV"),
    nxdomain("_http._sctp.web.svc.cluster SRV"),
    nxdomain("http._tcp.web.svc.cluster SRV"),
    # ── discovery: direct ──
    case("redis.svc.cluster A", "2 IN A 10.1.0.1"),
    case("redis.svc.cluster AAAA", "2 IN AAAA fd00::7"),
    nodata("redis.svc.cluster HTTPS", SHORT_SOA),
    case("peers.svc.cluster A", "5 IN A 10.2.0.1", "5 IN A 10.2.0.2"),  # all unready: better a try than an outage
    nodata("ready.peers.svc.cluster A"),
    nodata("peers.svc.cluster TXT"),
    nodata("web-3-aaaa.web.svc.cluster TXT"),
    nodata("strict.svc.cluster A"),
    case("all.strict.svc.cluster A", "5 IN A 10.3.0.1"),
    nodata("asleep.svc.cluster A"),
    nodata("all.asleep.svc.cluster A"),
    nxdomain("1.asleep.svc.cluster A"),
    case("lost.svc.cluster A", "5 IN A 10.4.0.1"),  # its node is silent, and there is no other
    case("ready.lost.svc.cluster A", "5 IN A 10.4.0.1"),
    # ── one per node ──
    case("n1.exporter.svc.cluster A", "5 IN A 10.5.0.1"),
    nodata("n2.exporter.svc.cluster A"),
    nxdomain("n3.exporter.svc.cluster A"),
    nxdomain("n1.web.svc.cluster A"),
    # ── nodes ──
    case("n1.node.cluster A", "5 IN A 10.77.0.11"),
    case("n2.node.cluster A", "5 IN A 10.77.0.12"),
    nodata("n1.node.cluster AAAA"),
    nxdomain("n3.node.cluster A"),
    nxdomain("x.n1.node.cluster A"),
    # ── backwards ──
    case("7.0.96.10.in-addr.arpa PTR", "5 IN PTR web.svc.cluster."),
    case("11.0.77.10.in-addr.arpa PTR", "5 IN PTR web-1-aaaa.web.svc.cluster.", "5 IN PTR n1.node.cluster."),
    case("12.0.77.10.in-addr.arpa PTR", "5 IN PTR web-2-aaaa.web.svc.cluster.", "5 IN PTR N2.node.cluster."),
    case("1.0.1.10.in-addr.arpa PTR", "2 IN PTR redis-1-aaaa.redis.svc.cluster."),
    case("7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa PTR",
         "2 IN PTR redis-3-aaaa.redis.svc.cluster."),
    nodata("7.0.96.10.in-addr.arpa A", VIP_SOA),
    nodata("0.96.10.in-addr.arpa PTR", VIP_SOA),
    nxdomain("2.96.10.in-addr.arpa PTR", VIP_SOA),
    nxdomain("8.0.96.10.in-addr.arpa PTR", VIP_SOA),
    Case("96.10.in-addr.arpa SOA", 0, [VIP_SOA]),
    case("96.10.in-addr.arpa NS", "5 IN NS ns.cluster.", additional=NS_GLUE),
    nodata("11.0.77.10.in-addr.arpa A", SOA.replace("cluster.", "11.0.77.10.in-addr.arpa.", 1)),
]  # fmt: skip


@pytest.mark.parametrize("asked", CASES, ids=str)
def test_answers(asked: Case) -> None:
    asked.check(Zone(guestbook()))


@pytest.mark.parametrize("asked", CASES, ids=str)
def test_answers_after_the_table_came_in_pieces(asked: Case) -> None:
    table = Table(index=1)
    zone = Zone(table)
    whole = guestbook()
    for name in reversed(list(whole.services)):
        piece = Table(index=2, nodes=table.nodes, services={**table.services, name: whole.services[name]})
        zone.update(piece, table_diff(table, piece))
        table = piece
    zone.update(whole, table_diff(table, whole))
    asked.check(zone)


@pytest.mark.parametrize("name", ["example.com", "svc", "cluster.example", "xcluster", "", "9.0.77.10.in-addr.arpa",
                                  "in-addr.arpa", "10.in-addr.arpa", "256.0.96.10.in-addr.arpa",
                                  "07.0.96.10.in-addr.arpa", "x.7.0.96.10.in-addr.arpa", "g.ip6.arpa"])  # fmt: skip
def test_other_names_are_not_ours(name: str) -> None:
    assert Zone(guestbook()).answer(labels_of(name), QTYPE.A) is None


def test_a_domain_of_several_labels() -> None:
    zone = Zone(Table(index=42, domain="Mesh.Example", services={"web": TableService(vip="10.96.0.7")}))
    case("web.svc.mesh.example A", "5 IN A 10.96.0.7").check(zone)
    assert zone.answer(labels_of("web.svc.cluster"), QTYPE.A) is None
    assert zone.answer(labels_of("example"), QTYPE.A) is None


def test_the_name_server_is_this_servers_node() -> None:
    case("ns.cluster A", "5 IN A 10.77.0.12").check(Zone(guestbook(), node="N2"))


def test_a_slot_exists_without_an_instance_where_the_service_has_it() -> None:
    endpoints = [instance("web", 1, "10.77.0.11")]
    zone = Zone(Table(index=42, services={"web": TableService(desired=3, seats=[(1, 1), (3, 4)], endpoints=endpoints)}))
    case("1.web.svc.cluster A", "5 IN A 10.77.0.11").check(zone)
    for slot in (3, 4):
        nodata(f"{slot}.web.svc.cluster A").check(zone)
    for slot in (2, 5):
        nxdomain(f"{slot}.web.svc.cluster A").check(zone)


def test_a_slot_in_replacement_is_the_ready_instance() -> None:
    endpoints = [instance("a", 1, "10.0.0.1", release=1), instance("b", 1, "10.0.0.2", "running", release=2)]
    zone = Zone(Table(services={"web": TableService(desired=1, endpoints=endpoints)}))
    case("1.web.svc.cluster A", "5 IN A 10.0.0.1").check(zone)


def test_instances_that_share_an_address_are_one_record() -> None:
    endpoints = [instance("web", slot, "10.77.0.11") for slot in (1, 2)]
    zone = Zone(Table(services={"web": TableService(endpoints=endpoints)}))
    case("all.web.svc.cluster A", "5 IN A 10.77.0.11").check(zone)


@pytest.mark.parametrize(("vip_range", "vip", "apex"), [
    ("10.96.0.0/12", "10.97.0.1", "97.10.in-addr.arpa"),
    ("10.96.0.0/20", "10.96.3.1", "3.96.10.in-addr.arpa"),
    ("10.0.0.0/8", "10.1.2.3", "10.in-addr.arpa"),
    ("fd00:9600::/32", "fd00:9600::1", "0.0.6.9.0.0.d.f.ip6.arpa"),
])  # fmt: skip
def test_vip_ranges_of_any_size(vip_range: str, vip: str, apex: str) -> None:
    zone = Zone(Table(vip_range=vip_range, services={"web": TableService(vip=vip)}))
    soa = zone.answer(labels_of(apex), QTYPE.SOA)
    assert soa
    assert str(soa.answer[0].owner) == f"{apex}."
    above = labels_of(apex)[1:]
    assert zone.answer(above, QTYPE.SOA) is None


def test_an_ipv6_address_is_found_however_it_is_spelled() -> None:
    zone = Zone(Table(services={"web": TableService(vip="FD00::0:7")}))
    case("web.svc.cluster AAAA", "5 IN AAAA fd00::7").check(zone)
    case(".".join(reverse_name("fd00::7")) + " PTR", "5 IN PTR web.svc.cluster.").check(zone)


def test_what_an_update_says_has_changed() -> None:
    old = guestbook()
    zone = Zone(old)
    web = old.services["web"]
    moved = instance("web", 1, "10.77.0.99")
    services = {**old.services, "web": TableService(vip=web.vip, desired=4, endpoints=[moved, *web.endpoints[1:]])}
    new = Table(index=43, nodes=old.nodes, services=services)
    delta = table_diff(old, new)
    assert delta
    assert zone.update(apply_delta(old, delta), delta) == {
        APEX, ("service", "web"), ("address", address_key("10.77.0.11")), ("address", address_key("10.77.0.99"))
    }  # fmt: skip
    case("99.0.77.10.in-addr.arpa PTR", "5 IN PTR web-1-aaaa.web.svc.cluster.").check(zone)
    case("11.0.77.10.in-addr.arpa PTR", "5 IN PTR n1.node.cluster.").check(zone)


def test_a_node_that_comes_goes_and_moves() -> None:
    old = guestbook()
    zone = Zone(old)
    new = Table(index=43, nodes={"n1": TableNode(address="10.77.0.50"), "n3": TableNode(address="10.77.0.13")})
    new = Table(index=43, nodes=new.nodes, services=old.services)
    assert zone.update(new, table_diff(old, new)) is None  # everything may have changed
    assert zone.answer(labels_of("n2.node.cluster"), QTYPE.A).rcode == 3  # type: ignore[union-attr]
    case("50.0.77.10.in-addr.arpa PTR", "5 IN PTR n1.node.cluster.").check(zone)


def test_a_new_domain_changes_everything() -> None:
    zone = Zone(guestbook())
    new = Table(index=43, domain="other")
    assert zone.update(new, table_diff(guestbook(), new)) is None
    assert zone.answer(labels_of("web.svc.cluster"), QTYPE.A) is None
