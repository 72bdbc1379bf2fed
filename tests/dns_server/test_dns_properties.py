"""What must hold for any Table, any question and any bytes."""

from __future__ import annotations

import asyncio
import random
import socket

import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dns.message
from mesh.dns.message import Malformed, read_query
from mesh.dns.names import labels_of
from mesh.dns.packets import Packets
from mesh.dns.server import DnsServer
from mesh.dns.wire import Forward, Reply, Transport, respond
from mesh.dns.zone import Zone
from mesh.table import Endpoint, Table, TableNode, TablePort, TableService, table_diff
from tests.dns_server.hostile import corpus, meet
from tests.dns_server.zones import guestbook

NAMES = ["web", "redis", "v2", "ready", "n1"]
WORDS = st.sampled_from([*NAMES, "all", "1", "2", "3", "_http", "_tcp", "_udp", "svc", "node", "ns", "cluster",
                         "web-1-a", "10", "96", "0", "7", "in-addr", "arpa"])  # fmt: skip
ADDRESSES = st.sampled_from(["10.96.0.7", "10.96.0.8", "10.0.0.1", "10.0.0.2", "fd00::1", "not-an-address"])
PROTOCOLS = st.sampled_from(["http", "udp"])
TYPES = st.sampled_from(["A", "AAAA", "SRV", "PTR", "TXT", "SOA", "NS", "HTTPS", "ANY", "MX"])

endpoints = st.builds(
    Endpoint,
    id=st.sampled_from(["web-1-a", "web-1-b", "web-2-a", "redis-n1-a"]),
    slot=st.one_of(st.integers(1, 3), st.just("n1")),
    node=st.just("n1"),
    release=st.integers(1, 3),
    tags=st.lists(st.sampled_from(["v2", "canary"]), unique=True),
    weight=st.integers(0, 100),
    state=st.sampled_from(["ready", "running", "suspect"]),
    address=ADDRESSES,
    ports=st.dictionaries(st.just("http"), st.integers(1, 65535)),
)
services = st.builds(
    TableService,
    vip=st.sampled_from(["", "10.96.0.7", "10.96.0.8"]),
    ttl=st.integers(0, 10),
    discovery=st.sampled_from(["vip", "direct"]),
    all_unready=st.sampled_from(["any", "nodata"]),
    desired=st.integers(0, 3),
    ports=st.dictionaries(st.just("http"), st.builds(TablePort, port=st.just(80), protocol=PROTOCOLS)),
    endpoints=st.lists(endpoints, max_size=5, unique_by=lambda endpoint: endpoint.id),
)
tables = st.builds(
    Table,
    index=st.integers(0, 1 << 40),
    nodes=st.dictionaries(st.sampled_from(["n1", "N2"]), st.builds(TableNode, address=ADDRESSES)),
    services=st.dictionaries(st.sampled_from(NAMES), services),
)
questions = st.lists(WORDS, max_size=4).map(lambda words: ".".join([*words, "svc.cluster"])) | st.lists(
    WORDS, max_size=7
).map(lambda words: ".".join(words) or ".")


def cased(name: str, upper: list[bool]) -> str:
    return "".join(c.upper() if up else c for c, up in zip(name, upper + [False] * len(name), strict=False))


@given(tables, questions, TYPES, st.lists(st.booleans(), max_size=40), st.sampled_from([None, 512, 1232, 4096]))
def test_every_answer_is_well_formed_and_true(
    table: Table, name: str, qtype: str, upper: list[bool], size: int | None
) -> None:
    asked = dns.message.make_query(cased(name, upper), qtype, use_edns=False if size is None else 0, payload=size or 0)
    data = asked.to_wire()
    reply = respond(data, Transport.UDP, Zone(table))
    if isinstance(reply, Forward):
        assert not name.endswith("cluster") or name.endswith(".arpa")
        return
    assert reply
    assert len(reply.packet) <= min(size or 512, 1232)
    answer = dns.message.from_wire(reply.packet)
    end = reply.question_end
    assert reply.packet[12:end] == data[12:end]
    assert answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
    if answer.rcode() == dns.rcode.NXDOMAIN:
        assert not answer.answer
    if not answer.answer:
        [soa] = answer.authority
        assert soa.rdtype == dns.rdatatype.SOA
        assert soa.ttl <= 5
    else:
        assert {rrset.rdtype for rrset in answer.answer} <= {asked.question[0].rdtype, dns.rdatatype.HINFO}
    known = {endpoint.address for service in table.services.values() for endpoint in service.endpoints}
    known |= {service.vip for service in table.services.values()} | {node.address for node in table.nodes.values()}
    for rrset in (*answer.answer, *answer.additional):
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            assert {str(record) for record in rrset} <= known


@given(tables, st.sampled_from(["", "ready.", "all.", "v2."]), st.sampled_from(["A", "AAAA"]))
def test_addresses_are_those_of_the_table_record_by_record(table: Table, prefix: str, qtype: str) -> None:
    """Against the rules of the names, written down a second time."""
    for name, service in table.services.items():
        by_state: dict[str, set[str]] = {"ready": set(), "suspect": set(), "running": set()}
        for endpoint in service.endpoints:
            if prefix != "v2." or "v2" in endpoint.tags:
                by_state[endpoint.state].add(endpoint.address)
        everyone = set().union(*by_state.values())
        expected = by_state["ready"] or by_state["suspect"]
        if prefix == "all.":
            expected = everyone
        elif prefix == "" and service.discovery == "vip":
            expected = {service.vip}
        elif prefix == "" and not expected and service.all_unready == "any" and service.desired:
            expected = everyone
        family = {address for address in expected if (":" in address) == (qtype == "AAAA")}
        asked = dns.message.make_query(f"{prefix}{name}.svc.cluster", qtype)
        reply = respond(asked.to_wire(), Transport.TCP, Zone(table))
        assert isinstance(reply, Reply)
        answer = dns.message.from_wire(reply.packet)
        assert {str(record) for rrset in answer.answer for record in rrset} == family - {"not-an-address", ""}
        exists = prefix != "v2." or everyone
        assert answer.rcode() == (dns.rcode.NOERROR if exists else dns.rcode.NXDOMAIN)


@given(tables, questions)
def test_a_name_exists_for_all_types_or_for_none(table: Table, name: str) -> None:
    zone = Zone(table)
    found = [zone.answer(labels_of(name), qtype) for qtype in (1, 28, 33, 12, 16, 6, 2, 65, 255)]
    assert len({answer and answer.rcode for answer in found}) == 1


@given(tables, questions)
def test_nothing_exists_below_what_does_not(table: Table, name: str) -> None:
    zone = Zone(table)
    labels = labels_of(name)
    if len(labels) < 2:
        return
    parent, child = zone.answer(labels[1:], 1), zone.answer(labels, 1)
    if parent and child and parent.rcode:
        assert child.rcode


@given(tables, tables, st.lists(st.tuples(questions, TYPES), min_size=1, max_size=8))
def test_after_a_delta_all_is_as_if_made_anew_and_kept_answers_are_as_fresh_ones(
    old: Table, new: Table, asked: list[tuple[str, str]]
) -> None:
    """But for the serial in a kept SOA: nobody transfers our zone."""
    zone, packets = Zone(old), Packets()

    def ask(name: str, qtype: str, zone: Zone, packets: Packets | None) -> dns.message.Message | None:
        data = dns.message.make_query(name, qtype, id=1).to_wire()
        if packets and (known := packets.answer(data)):
            return dns.message.from_wire(known[0])
        reply = respond(data, Transport.UDP, zone)
        if not isinstance(reply, Reply):
            return None
        if packets is not None:
            packets.keep(data, reply, [0])
        return dns.message.from_wire(reply.packet)

    for question in asked:
        ask(*question, zone, packets)
    new = Table(index=old.index, nodes=new.nodes, services=new.services)
    packets.drop(zone.update(new, table_diff(old, new)))
    for question in asked:
        assert ask(*question, zone, packets) == ask(*question, Zone(new), None)


HOSTILE = st.binary(max_size=600) | st.builds(
    lambda flags, counts, tail: b"\0\1" + flags + bytes(counts) + tail,
    st.binary(min_size=2, max_size=2),
    st.lists(st.sampled_from([0, 0, 1, 2]), min_size=8, max_size=8),
    st.binary(max_size=300) | st.just(b"\3web\3svc\7cluster\0\0\1\0\1"),
)


@settings(max_examples=500)
@given(HOSTILE)
@example(b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1")
def test_no_bytes_stop_the_readers(data: bytes) -> None:
    meet(data)


def test_what_the_fuzzer_found_interesting() -> None:
    """See bench/dns/fuzz.py, which found these by coverage and finds more."""
    for data in corpus():
        meet(data)


@given(st.binary(min_size=12, max_size=300))
def test_reading_says_malformed_and_nothing_else(data: bytes) -> None:
    try:
        read_query(data)
    except Malformed:
        pass


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_no_bytes_stop_the_server(transport: str) -> None:
    source = random.Random(1)
    server = DnsServer(["127.0.0.1:0"], forward=False)
    await server.start()
    await server.update(guestbook(), None)
    query = dns.message.make_query("web.svc.cluster", "A").to_wire()
    mutants = []
    for _ in range(300):
        mutant = bytearray(query + source.randbytes(source.randrange(20)))
        for _ in range(source.randrange(1, 8)):
            mutant[source.randrange(len(mutant))] = source.randrange(256)
        mutants.append(bytes(mutant))
    try:
        for junk in [*mutants, *corpus()]:
            if transport == "udp":
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(junk, server.addresses[0])
            else:
                _, writer = await asyncio.open_connection(*server.addresses[0])
                writer.write(source.choice([len(junk).to_bytes(2, "big"), b""]) + junk)
                writer.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect(server.addresses[0])
            sock.send(query)
            assert (await asyncio.to_thread(sock.recv, 512))[:2] == query[:2]
    finally:
        await server.close()
