"""Other names: forwarded to real sockets that behave well, badly, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import dns.asyncquery
import dns.flags
import dns.rcode
import dns.rrset
import pytest

import dns.message
from mesh.dns import cache as caching
from mesh.dns import sockets
from mesh.dns.cache import Cache, Key, read_answer
from mesh.dns.message import Malformed
from mesh.dns.server import DnsServer
from mesh.dns.upstream import ResolvConf
from tests.dns_server.zones import guestbook

Behave = Callable[[dns.message.QueryMessage, str], dns.message.Message | bytes | None]


class FakeUpstream(asyncio.DatagramProtocol):
    """A DNS server that does what `behave(query, "udp" | "tcp")` says."""

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.asked: list[tuple[str, dns.message.QueryMessage, object]] = []
        self.was_asked = asyncio.Event()

    async def start(self) -> FakeUpstream:
        loop = asyncio.get_running_loop()
        udp, tcp = sockets.open_pair("127.0.0.1", 0)
        self.port: int = udp.getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, sock=udp)
        self._tcp = await asyncio.start_server(self._stream, sock=tcp)
        return self

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._udp.close()
        self._tcp.close()

    def _answer(self, data: bytes, transport: str, client: object) -> bytes | None:
        query = dns.message.from_wire(data)
        assert isinstance(query, dns.message.QueryMessage)
        self.was_asked.set()
        self.asked.append((transport, query, client))
        answer = self.behave(query, transport)
        return answer.to_wire(max_size=65535) if isinstance(answer, dns.message.Message) else answer

    def datagram_received(self, data: bytes, client: tuple[str | object, int]) -> None:
        if answer := self._answer(data, "udp", client):
            self._udp.sendto(answer, client)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        if answer := self._answer(data, "tcp", None):
            writer.write(len(answer).to_bytes(2, "big") + answer)
        writer.close()


def says(*records: str, rcode: int = 0, authority: tuple[str, ...] = (), flags: int = 0) -> Behave:
    def behave(query: dns.message.QueryMessage, transport: str) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA | flags
        answer.set_rcode(dns.rcode.Rcode(rcode))
        for section, lines in ((answer.answer, records), (answer.authority, authority)):
            for line in lines:
                name, ttl, rclass, rtype, data = line.split(maxsplit=4)
                section.append(dns.rrset.from_text(name, int(ttl), rclass, rtype, data))
        return answer

    return behave


def silent(query: dns.message.QueryMessage, transport: str) -> None:
    return None


@contextlib.asynccontextmanager
async def forwarding(*behaviours: Behave, **others: object) -> AsyncIterator[tuple[DnsServer, list[FakeUpstream]]]:
    upstreams = [await FakeUpstream(behave).start() for behave in behaviours]
    server = DnsServer(["127.0.0.1:0"], upstreams=[fake.address for fake in upstreams], **others)  # type: ignore[arg-type]
    await server.start()
    await server.update(guestbook(), None)
    try:
        yield server, upstreams
    finally:
        await server.close()
        for fake in upstreams:
            fake.close()


async def ask(server: DnsServer, name: str = "example.com", qtype: str = "A", *, stream: bool = False,
              **others: object) -> dns.message.Message:  # fmt: skip
    host, port = server.addresses[0]
    query = dns.message.make_query(name, qtype, **others)  # type: ignore[arg-type]
    send = dns.asyncquery.tcp if stream else dns.asyncquery.udp
    return await send(query, host, port=port, timeout=10)


A = "example.com. 300 IN A 192.0.2.1"
SOA = "example.com. 300 IN SOA ns.example.com. admin.example.com. 1 2 3 4 60"


async def test_forwarded_and_kept() -> None:
    async with forwarding(says(A)) as (server, [upstream]):
        answer = await ask(server, "ExAmple.com")
        assert answer.question[0].name.to_text() == "ExAmple.com."
        assert [str(rrset) for rrset in answer.answer] == ["ExAmple.com. 300 IN A 192.0.2.1"]
        assert answer.flags & dns.flags.RA
        assert not answer.flags & (dns.flags.AA | dns.flags.AD)
        assert (await ask(server)).answer[0].ttl in (299, 300)
        assert (await ask(server, stream=True)).answer
        assert (await ask(server, use_edns=False)).edns == -1
        assert len(upstream.asked) == 1
        assert (await ask(server, "web.svc.cluster")).flags & dns.flags.RA


async def test_ids_and_ports_are_random() -> None:
    async with forwarding(says(SOA)) as (server, [upstream]):
        for n in range(20):
            await ask(server, f"{n}.example.com", "SOA")
        assert len({query.id for _, query, _ in upstream.asked}) > 15
        assert len({client for *_, client in upstream.asked}) > 15


async def test_negative_answers_are_kept_by_their_soa() -> None:
    async with forwarding(says(rcode=3, authority=(SOA,))) as (server, [upstream]):
        for _ in range(3):
            answer = await ask(server)
            assert answer.rcode() == dns.rcode.NXDOMAIN
            assert answer.authority
        assert len(upstream.asked) == 1


async def test_negative_answers_without_soa_are_not_kept() -> None:
    async with forwarding(says(rcode=3)) as (server, [upstream]):
        for _ in range(3):
            assert (await ask(server)).rcode() == dns.rcode.NXDOMAIN
        assert len(upstream.asked) == 3


async def test_one_question_is_asked_once_for_all_who_wait() -> None:
    async with forwarding(silent) as (server, [upstream]):
        asking = [asyncio.create_task(ask(server)) for _ in range(20)]
        await upstream.was_asked.wait()
        upstream.behave = says(A)  # the next try is answered
        answers = await asyncio.gather(*asking)
        assert all(answer.answer for answer in answers)
        assert len(upstream.asked) == 2


@pytest.mark.parametrize("bad", [silent, says(rcode=2), says(rcode=5)], ids=["silent", "servfail", "refused"])
async def test_the_next_upstream_is_asked_when_one_does_not_serve(bad: Behave) -> None:
    async with forwarding(bad, says(A)) as (server, [_, good]):
        assert (await ask(server)).answer
        assert (await ask(server, "b.example.com")).rcode() == dns.rcode.NOERROR
        assert len(good.asked) == 2


async def test_an_upstream_that_was_silent_is_not_asked_first_again() -> None:
    async with forwarding(silent, says(A)) as (server, [bad, _]):
        await ask(server)
        await ask(server, "b.example.com")
        assert len(bad.asked) == 1


async def test_a_closed_port_is_noticed_at_once_and_all_failing_is_servfail() -> None:
    async with forwarding(says(A)) as (server, [upstream]):
        upstream.close()
        answer = await ask(server)
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert (await ask(server, "web.svc.cluster")).answer


async def test_what_does_not_match_the_question_is_passed_over() -> None:
    def forge(query: dns.message.QueryMessage, transport: str) -> bytes:
        other = dns.message.make_query("forged.example", "A", id=query.id)
        return says("forged.example. 300 IN A 192.0.2.66")(other, transport).to_wire()  # type: ignore[union-attr]

    def wrong_id(query: dns.message.QueryMessage, transport: str) -> bytes:
        answer = says("example.com. 300 IN A 192.0.2.66")(query, transport).to_wire()  # type: ignore[union-attr]
        return (query.id ^ 1).to_bytes(2, "big") + answer[2:]

    async with forwarding(forge, wrong_id, says(A)) as (server, _):
        assert [str(record) for record in (await ask(server)).answer[0]] == ["192.0.2.1"]


async def test_cut_answers_are_fetched_whole_over_tcp() -> None:
    records = [f"example.com. 300 IN A 192.0.2.{n}" for n in range(1, 200)]

    def cut_over_udp(query: dns.message.QueryMessage, transport: str) -> dns.message.Message | bytes | None:
        return says(flags=dns.flags.TC)(query, "") if transport == "udp" else says(*records)(query, "")

    async with forwarding(cut_over_udp) as (server, [upstream]):
        answer = await ask(server)
        assert answer.flags & dns.flags.TC
        assert (answer.answer, len(answer.question)) == ([], 1)
        assert sum(map(len, (await ask(server, stream=True)).answer)) == 199
        assert [transport for transport, *_ in upstream.asked] == ["udp", "tcp"]


async def test_only_for_the_allowed() -> None:
    async with forwarding(says(A), allow=["192.0.2.0/24"]) as (server, [upstream]):
        assert (await ask(server)).rcode() == dns.rcode.REFUSED
        assert (await ask(server, "web.svc.cluster")).answer
        assert not upstream.asked


async def test_not_without_recursion_desired() -> None:
    async with forwarding(says(A)) as (server, [upstream]):
        assert (await ask(server, flags=0)).rcode() == dns.rcode.REFUSED
        assert not upstream.asked


async def test_never_to_ourselves() -> None:
    server = DnsServer(["127.0.0.1:0"], upstreams=["127.0.0.1:1"])
    await server.start()
    await server.update(guestbook(), None)
    other = DnsServer(["0.0.0.0:0"], upstreams=["127.0.0.1:1"])
    await other.start()
    await other.update(guestbook(), None)
    for ours in (server, other):
        assert ours._forwarder
        ours._forwarder._configured[0].port = ours.addresses[0][1]
        query = dns.message.make_query("example.com", "A")
        reply = await dns.asyncquery.udp(query, "127.0.0.1", port=ours.addresses[0][1], timeout=5)
        assert reply.rcode() == dns.rcode.REFUSED
        await ours.close()


async def test_stale_answers_stand_in_while_upstreams_are_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "_LONGEST", 0.2)
    async with forwarding(says(A)) as (server, [upstream]):
        assert (await ask(server)).answer
        upstream.close()
        while True:
            answer = await ask(server)
            assert answer.answer
            if answer.answer[0].ttl == 30:
                break


# ── The cache ────────────────────────────────────────────────────────────────────────────────────


def packet(*records: str, **others: object) -> bytes:
    query = dns.message.make_query("example.com", "A", use_edns=0)
    return says(*records, **others)(query, "udp").to_wire()  # type: ignore[arg-type, union-attr]


KEY = Key(("example", "com"), 1, (0, 0))


def test_the_shortest_ttl_counts_and_the_others_shrink_along() -> None:
    answer = read_answer(packet("example.com. 300 IN CNAME b.example.com.", "b.example.com. 20 IN A 192.0.2.1"))
    assert (answer.counts, answer.ttl) == ((2, 0, 0), 20)
    aged = answer.aged(7.9)
    ttls = [int.from_bytes(aged.body[at : at + 4], "big") for at in aged.ttls_at]
    assert ttls == [293, 13]


def test_negative_ttl_is_the_lesser_of_the_soas_two() -> None:
    assert read_answer(packet(rcode=3, authority=(SOA,))).ttl == 60
    assert read_answer(packet(authority=(SOA.replace(" 300 ", " 7 "),))).ttl == 7
    assert read_answer(packet(rcode=2)).ttl == 0


def test_a_malformed_answer_is_none() -> None:
    whole = packet(A)
    for length in range(12, len(whole) - 11):
        with pytest.raises(Malformed):
            read_answer(whole[:length])


def test_the_cache_is_bounded_and_forgets_what_expired() -> None:
    answer = read_answer(packet(A))
    cache = Cache(entries=10, size=10_000)
    for n in range(100):
        cache.put(Key((str(n),), 1, (0, 0)), answer, 0.0)
    assert len(cache) == 10
    cache.put(KEY, answer, 0.0)
    assert cache.get(KEY, 299.0)
    assert cache.get(KEY, 301.0) is None
    assert cache.get(KEY, 301.0, stale=True)
    assert cache.get(KEY, 4000.0, stale=True) is None
    small = Cache(size=3 * len(answer.body))
    for n in range(100):
        small.put(Key((str(n),), 1, (0, 0)), answer, 0.0)
    assert len(small) == 3


def test_resolv_conf_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    conf = ResolvConf(path)
    assert conf.upstreams() == []
    path.write_text("# comment\nsearch x\nnameserver 192.0.2.1\nnameserver fd00::1\nnameserver what\nnameserver\n")
    assert [str(upstream) for upstream in conf.upstreams()] == ["192.0.2.1:53", "[fd00::1]:53"]
    replacement = tmp_path / "new"
    replacement.write_text("nameserver 192.0.2.2\n")
    replacement.rename(path)
    assert [str(upstream) for upstream in conf.upstreams()] == ["192.0.2.2:53"]
    path.unlink()
    assert [str(upstream) for upstream in conf.upstreams()] == ["192.0.2.2:53"]
