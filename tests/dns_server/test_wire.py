"""The rules of the wire, read back by an independent client library (dnspython)."""

from __future__ import annotations

from collections import Counter

import dns.edns
import dns.flags
import dns.opcode
import dns.rcode
import dns.rdataclass
import pytest

import dns.message
from mesh.dns.wire import Forward, Reply, Transport, respond
from mesh.dns.zone import Zone
from mesh.table import Table, TablePort, TableService
from tests.dns_server.zones import guestbook, instance

ZONE = Zone(guestbook())
UDP, TCP = Transport.UDP, Transport.TCP


def many(count: int) -> Zone:
    endpoints = [instance("web", n, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(1, count + 1)]
    return Zone(Table(services={"web": TableService(discovery="direct", desired=count, endpoints=endpoints)}))


def ask(
    query: dns.message.Message, transport: Transport = UDP, zone: Zone | None = ZONE, *, recursion: bool = False
) -> dns.message.Message:
    reply = respond(query.to_wire(), transport, zone, recursion=recursion)
    assert isinstance(reply, Reply)
    answer = dns.message.from_wire(reply.packet)
    assert answer.id == query.id
    assert answer.flags & dns.flags.QR
    assert not answer.flags & (dns.flags.AD | dns.flags.CD | 0x0040)
    assert answer.flags & dns.flags.RD == query.flags & dns.flags.RD
    assert reply.rcode == answer.rcode()
    return answer


def query(name: str, qtype: str = "A", **others: object) -> dns.message.QueryMessage:
    return dns.message.make_query(name, qtype, **others)  # type: ignore[arg-type]


def packet(data: bytes, zone: Zone | None = ZONE) -> bytes | None:
    reply = respond(data, UDP, zone)
    assert not isinstance(reply, Forward)
    return reply.packet if reply else None


# ── Headers ──────────────────────────────────────────────────────────────────────────────────────


def test_authoritative_and_recursion_as_configured() -> None:
    answer = ask(query("web.svc.cluster"))
    assert answer.flags & dns.flags.AA
    assert not answer.flags & dns.flags.RA
    assert ask(query("web.svc.cluster"), recursion=True).flags & dns.flags.RA
    assert ask(query("nothing.svc.cluster")).flags & dns.flags.AA


def test_flags_of_the_query_do_not_come_back() -> None:
    asked = query("web.svc.cluster", flags=dns.flags.RD | dns.flags.AD | dns.flags.CD | dns.flags.TC | 0x0040)
    assert not ask(asked).flags & dns.flags.TC
    ask(query("web.svc.cluster", flags=0))


def test_letter_case_comes_back_byte_for_byte() -> None:
    asked = query("wEb.SVC.cLuSTER")
    answer = ask(asked)
    assert answer.to_wire()[12:30] == asked.to_wire()[12:30]
    assert str(answer.answer[0].name) == "wEb.SVC.cLuSTER."


def test_names_are_compressed() -> None:
    reply = packet(query("_http._tcp.web.svc.cluster", "SRV").to_wire())
    assert reply
    assert reply.lower().count(b"\x03svc\x07cluster\x00") == 3  # the question, and two targets (RFC 2782)
    plain = packet(query("web.svc.cluster").to_wire())
    assert plain
    assert plain.count(b"\xc0\x0c") == 1


def test_pointers_never_reach_beyond_16_kib() -> None:
    zone = Zone(Table(services={
        f"service-{n}": TableService(endpoints=[instance(f"service-{n}", 1, "10.0.0.1")]) for n in range(900)
    }))  # fmt: skip
    answer = ask(query("1.0.0.10.in-addr.arpa", "PTR"), TCP, zone)
    names = {str(record.target) for record in answer.answer[0]}
    assert names == {f"service-{n}-1-aaaa.service-{n}.svc.cluster." for n in range(900)}


# ── EDNS ─────────────────────────────────────────────────────────────────────────────────────────


def test_edns_is_echoed_with_our_size_and_no_options() -> None:
    options = [dns.edns.GenericOption(dns.edns.OptionType.make(65001), b"what"), dns.edns.ECSOption("192.0.2.0", 24)]
    answer = ask(query("web.svc.cluster", use_edns=0, payload=4096, options=options))
    assert (answer.edns, answer.payload, answer.options) == (0, 1232, ())
    assert ask(query("web.svc.cluster", use_edns=False)).edns == -1


def test_edns_above_version_0_is_badvers() -> None:
    answer = ask(query("web.svc.cluster", use_edns=1))
    assert answer.rcode() == dns.rcode.BADVERS
    assert (answer.edns, answer.answer, len(answer.question)) == (0, [], 1)


def test_unknown_edns_flags_are_dropped() -> None:
    answer = ask(query("web.svc.cluster", use_edns=0, ednsflags=0x80FF))
    assert answer.ednsflags & 0xFFFF == dns.flags.DO


# ── Sizes ────────────────────────────────────────────────────────────────────────────────────────


def test_eight_addresses_without_edns_and_what_fits_with_it() -> None:
    zone = many(200)
    few = ask(query("web.svc.cluster", use_edns=False), zone=zone)
    assert (len(few.answer[0]), bool(few.flags & dns.flags.TC)) == (8, False)
    for size in (512, 800, 1232, 4096):
        asked = query("web.svc.cluster", use_edns=0, payload=size)
        answer = ask(asked, zone=zone)
        assert not answer.flags & dns.flags.TC
        room = min(size, 1232) - len(answer.to_wire())
        assert 0 <= room < 16
        assert len(answer.answer[0]) > 8
    assert len(ask(query("web.svc.cluster"), TCP, zone).answer[0]) == 200


def test_each_address_is_as_often_the_first_and_as_often_there() -> None:
    zone = many(20)
    first: Counter[str] = Counter()
    present: Counter[str] = Counter()
    rounds = 4000
    asked = query("web.svc.cluster", use_edns=False).to_wire()
    for _ in range(rounds):
        reply = packet(asked, zone)
        assert reply
        addresses = [reply[at : at + 4].hex() for at in range(len(reply) - 16 * 7 - 4, len(reply), 16)]
        first[addresses[0]] += 1
        present.update(addresses)
    assert len(first) == 20
    assert all(abs(count - rounds / 20) < rounds / 20 * 0.5 for count in first.values())
    assert all(abs(count - rounds * 8 / 20) < rounds * 8 / 20 * 0.2 for count in present.values())


@pytest.mark.parametrize("asked", [("all.web.svc.cluster", "A"), ("_x._tcp.web.svc.cluster", "SRV")])
def test_sets_that_must_be_whole_are_whole_or_truncated(asked: tuple[str, str]) -> None:
    table = many(100).table
    service = table.services["web"]
    endpoints = [instance("web", e.slot, e.address, ports={"x": 1}) for e in service.endpoints]
    zone = Zone(Table(services={"web": TableService(ports={"x": TablePort(port=1)}, endpoints=endpoints)}))
    for edns in (False, 0):
        cut = ask(query(*asked, use_edns=edns), zone=zone)
        assert cut.flags & dns.flags.TC
        assert (cut.answer, cut.additional, len(cut.question)) == ([], [], 1)
    whole = ask(query(*asked), TCP, zone)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 100


def test_glue_that_does_not_fit_is_left_out_in_silence() -> None:
    endpoints = [instance("web", n, f"10.0.0.{n}", ports={"x": 1}) for n in range(1, 10)]
    zone = Zone(Table(services={"web": TableService(ports={"x": TablePort(port=1)}, endpoints=endpoints)}))
    answer = ask(query("_x._tcp.web.svc.cluster", "SRV", use_edns=0, payload=600), zone=zone)
    assert not answer.flags & dns.flags.TC
    assert len(answer.answer[0]) == 9
    assert 0 < len(answer.additional) < 9


def test_beyond_64_kib_tcp_gives_a_subset() -> None:
    reply = respond(query("all.web.svc.cluster").to_wire(), TCP, many(5000))
    assert isinstance(reply, Reply)
    assert len(reply.packet) <= 65535
    answer = dns.message.from_wire(reply.packet)
    assert not answer.flags & dns.flags.TC
    assert len(answer.answer[0]) > 4000


# ── What is no proper query ──────────────────────────────────────────────────────────────────────

HEADER = bytes.fromhex("abcd 0100 0001 0000 0000 0000")
QUESTION = b"\3web\3svc\7cluster\0\0\1\0\1"
OPT = bytes.fromhex("00 0029 1000 00000000 0000")


@pytest.mark.parametrize("data", [b"", b"x", HEADER[:11], HEADER[:2] + b"\x81" + HEADER[3:] + QUESTION])
def test_silence(data: bytes) -> None:
    assert packet(data) is None


@pytest.mark.parametrize("data", [
    HEADER,  # a header alone
    HEADER[:4] + b"\0\0" + HEADER[6:],
    HEADER[:4] + b"\0\2" + HEADER[6:] + QUESTION + QUESTION,
    HEADER + QUESTION[:-1],
    HEADER + QUESTION[:9],
    HEADER + b"\x40" + QUESTION,
    HEADER + b"\xc0\x0c\0\1\0\1",  # a name that is itself
    HEADER + b"\xc0\x00\0\1\0\1",
    HEADER + b"\3web\xc0\x0c\0\1\0\1",
    HEADER + b"\x3f" + b"a" * 63 + b"\x3f" + b"a" * 63 + b"\x3f" + b"a" * 63 + b"\x3f" + b"a" * 63 + b"\0\0\1\0\1",
    HEADER + QUESTION + b"more",
    HEADER[:7] + b"\1" + HEADER[8:] + QUESTION + b"\0\0\1\0\1\0\0\0\0\0\0",  # with an answer
    HEADER[:11] + b"\1" + QUESTION,  # its OPT is missing
    HEADER[:11] + b"\2" + QUESTION + OPT + OPT,
    HEADER[:11] + b"\1" + QUESTION + b"\1a" + OPT,  # an OPT that is not the root's
    HEADER[:11] + b"\1" + QUESTION + OPT[:-1] + b"\3\0\x0a\0",  # a cut option
    HEADER[:11] + b"\1" + QUESTION + OPT[:-2] + b"\0\7" + b"\0\x0a\0\3abc",  # a cookie of 3 bytes
    HEADER[:11] + b"\3" + QUESTION + b"\0\0\1\0\1\0\0\0\0\0\0" * 3,
])  # fmt: skip
def test_formerr_with_the_same_id(data: bytes) -> None:
    reply = packet(data)
    assert reply
    assert reply[:2] == data[:2]
    assert reply[2:4] == b"\x81\x01"
    dns.message.from_wire(reply)


@pytest.mark.parametrize("opcode", ["IQUERY", "STATUS", "NOTIFY", "UPDATE"])
def test_other_opcodes_are_not_implemented(opcode: str) -> None:
    asked = query("web.svc.cluster")
    asked.set_opcode(dns.opcode.from_text(opcode))
    data = asked.to_wire()
    reply = packet(data)
    assert reply
    assert reply[:2] == data[:2]
    assert (reply[2] & 0x78, reply[3] & 15) == (data[2] & 0x78, dns.rcode.NOTIMP)


def test_other_classes_and_transfers_are_refused() -> None:
    chaos = query("version.bind", "TXT", rdclass=dns.rdataclass.CH)
    assert ask(chaos).rcode() == dns.rcode.REFUSED
    assert ask(query("web.svc.cluster", rdclass=dns.rdataclass.ANY)).rcode() == dns.rcode.REFUSED
    assert ask(query("cluster", "AXFR")).rcode() == dns.rcode.REFUSED
    ixfr = HEADER[:8] + b"\0\1\0\0\7cluster\0\0\xfb\0\1" + b"\xc0\x0c\0\6\0\1" + b"\0" * 4 + b"\0\x16" + b"\0" * 22
    reply = packet(ixfr)
    assert reply
    assert reply[3] & 15 == dns.rcode.REFUSED


def test_before_the_first_table_nothing_is_denied() -> None:
    for name in ("web.svc.cluster", "example.com"):
        answer = ask(query(name), zone=None)
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert not answer.flags & dns.flags.AA


def test_other_names_are_to_be_forwarded() -> None:
    reply = respond(query("Example.com", "MX").to_wire(), UDP, ZONE)
    assert isinstance(reply, Forward)
    assert reply.query.question.labels == ("example", "com")
