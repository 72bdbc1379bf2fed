"""The server on real sockets, asked by real clients."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import dns.asyncquery
import dns.rcode
import pytest

import dns.message
from mesh.dns import tcp
from mesh.dns.server import DnsServer
from mesh.metrics import render
from mesh.table import Endpoint, Table, TablePort, TableService, apply_delta, table_diff
from tests.dns_server.zones import guestbook


@contextlib.asynccontextmanager
async def serving(*listen: str, table: Table | None = None, **others: object) -> AsyncIterator[DnsServer]:
    server = DnsServer(listen or ("127.0.0.1:0",), forward=False, **others)  # type: ignore[arg-type]
    await server.start()
    await server.update(table or guestbook(), None)
    try:
        yield server
    finally:
        await server.close()


async def ask(server: DnsServer, name: str, qtype: str = "A", *, stream: bool = False) -> dns.message.Message:
    host, port = server.addresses[0]
    query = dns.message.make_query(name, qtype)
    if stream:
        return await dns.asyncquery.tcp(query, host, port=port, timeout=5)
    return await dns.asyncquery.udp(query, host, port=port, timeout=5)


async def dig(server: DnsServer, *words: str) -> str:
    host, port = server.addresses[0]
    process = await asyncio.create_subprocess_exec(
        "dig", f"@{host}", "-p", str(port), "+time=2", "+tries=1", *words, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode()


def frame(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def query(name: str, query_id: int = 1, qtype: str = "A") -> bytes:
    return dns.message.make_query(name, qtype, id=query_id).to_wire()


async def read_frame(reader: asyncio.StreamReader) -> dns.message.Message:
    length = int.from_bytes(await reader.readexactly(2), "big")
    return dns.message.from_wire(await reader.readexactly(length))


# ── Stock clients ────────────────────────────────────────────────────────────────────────────────


async def test_dig() -> None:
    async with serving() as server:
        assert await dig(server, "+short", "web.svc.cluster") == "10.96.0.7\n"
        assert await dig(server, "+short", "+tcp", "web.svc.cluster") == "10.96.0.7\n"
        assert await dig(server, "+short", "+norec", "-x", "10.96.0.7") == "web.svc.cluster.\n"
        assert await dig(server, "+short", "+bufsize=512", "+nocookie", "n1.node.cluster") == "10.77.0.11\n"
        assert await dig(server, "+short", "ANY", "web.svc.cluster") == '"RFC8482" ""\n'
        srv = await dig(server, "+short", "SRV", "_http._tcp.web.svc.cluster")
        assert sorted(srv.splitlines()) == [
            "0 10 31001 web-1-aaaa.web.svc.cluster.", "0 100 31002 web-2-aaaa.web.svc.cluster."
        ]  # fmt: skip
        assert "status: BADVERS" in await dig(server, "+edns=1", "+noednsneg", "web.svc.cluster")
        assert "status: NOERROR" in await dig(server, "+ednsopt=65001:dead", "+subnet=192.0.2.0/24", "web.svc.cluster")
        assert "status: NXDOMAIN" in await dig(server, "nothing.svc.cluster")
        assert "status: REFUSED" in await dig(server, "example.com")
        assert "status: NOTIMP" in await dig(server, "+opcode=notify", "web.svc.cluster")
        warned = await dig(server, "web.svc.cluster")
        assert "WARNING" not in warned.replace(";; WARNING: recursion requested but not available", "")


async def test_a_host_that_resolves_through_us() -> None:
    """A+AAAA pairs on one socket, as stub resolvers send them."""
    async with serving() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect(server.addresses[0])
            sock.send(query("web.svc.cluster", 1, "A"))
            sock.send(query("web.svc.cluster", 2, "AAAA"))
            answers = [dns.message.from_wire(await asyncio.to_thread(sock.recv, 4096)) for _ in range(2)]
        assert {answer.id for answer in answers} == {1, 2}


@pytest.mark.root
async def test_glibc_with_search_domains_and_ndots(tmp_path: Path) -> None:
    """This host's own resolver, made to ask us in a mount namespace of its own."""
    address = f"127.{random.randrange(1, 254)}.{random.randrange(1, 254)}.{random.randrange(1, 254)}"
    conf, switch = tmp_path / "resolv.conf", tmp_path / "nsswitch.conf"
    conf.write_text(f"nameserver {address}\nsearch nowhere.cluster svc.cluster\noptions ndots:2 timeout:2 attempts:1\n")
    switch.write_text("hosts: dns\n")
    script = f"mount --bind {conf} /etc/resolv.conf && mount --bind {switch} /etc/nsswitch.conf && getent "

    async def getent(words: str) -> list[str]:
        process = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "sh", "-c", script + words, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
        return [line.split()[0] for line in out.decode().splitlines() if "STREAM" in line or "ahosts" not in words]

    async with serving(f"{address}:53"):
        assert await getent("ahosts web") == ["10.96.0.7"]
        assert await getent("ahosts web.svc.cluster") == ["10.96.0.7"]
        assert await getent("ahosts n1.node.cluster.") == ["10.77.0.11"]
        assert sorted(await getent("ahosts redis.svc.cluster")) == ["10.1.0.1", "fd00::7"]
        assert await getent("hosts 10.96.0.7") == ["10.96.0.7"]
        assert await getent("ahosts nothing") == []


# ── Addresses ────────────────────────────────────────────────────────────────────────────────────


async def test_several_addresses_and_wildcards_reply_from_where_they_were_asked() -> None:
    async with serving("127.0.0.2:0", "0.0.0.0:0", "[::]:0") as server:
        everywhere, six = server.addresses[1][1], server.addresses[2][1]
        for host, port in (server.addresses[0], ("127.0.0.3", everywhere), ("127.0.0.4", everywhere), ("::1", six)):
            answer = await dns.asyncquery.udp(
                dns.message.make_query("web.svc.cluster", "A"), host, port=port, timeout=5
            )
            assert answer.answer  # dnspython takes a reply from no other address


async def test_what_cannot_be_listened_on_is_said_plainly() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: another server has this port"):
            await DnsServer([f"127.0.0.1:{port}"]).start()
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.99:0: this host has no such address"):
        await DnsServer(["192.0.2.99:0"]).start()
    with pytest.raises(ValueError, match="not an address: 'localhost:53'"):
        DnsServer(["localhost:53"])


async def test_two_processes_share_a_port() -> None:
    async with serving() as server:
        host, port = server.addresses[0]
        program = (
            "import asyncio, uvloop\n"
            "from mesh.dns.server import DnsServer\n"
            "from mesh.table import Table, TableService\n"
            "async def main():\n"
            f"    server = DnsServer(['{host}:{port}'], forward=False)\n"
            "    await server.start()\n"
            "    await server.update(Table(services={'web': TableService(vip='10.96.0.8')}), None)\n"
            "    print('up', flush=True)\n"
            "    await asyncio.sleep(60)\n"
            "uvloop.run(main())\n"
        )
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
        try:
            assert other.stdout
            assert await other.stdout.readline() == b"up\n"
            for stream in (False, True):
                seen: set[str] = set()
                async with asyncio.timeout(30):
                    while len(seen) < 2:
                        answer = await ask(server, "web.svc.cluster", stream=stream)
                        seen.update(str(record) for record in answer.answer[0])
                assert seen == {"10.96.0.7", "10.96.0.8"}
        finally:
            other.kill()
            await other.wait()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"])
async def test_a_burst_with_silence_among_it_is_answered_each_to_its_sender(listen: str) -> None:
    async with serving(listen) as server:
        port = server.addresses[0][1]
        six = listen.startswith("[")
        clients = [socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        for client in clients:
            client.settimeout(5)
            client.connect(("::1" if six else "127.0.0.1", port))
        for number in range(150):
            clients[number % 3].send(query("web.svc.cluster", number) if number % 4 else b"no query")
        for place, client in enumerate(clients):
            expected = {number for number in range(150) if number % 4 and number % 3 == place}
            answers = [dns.message.from_wire(await asyncio.to_thread(client.recv, 4096)) for _ in expected]
            assert {answer.id for answer in answers} == expected
            assert all(answer.answer for answer in answers)
            client.close()


# ── The Table ────────────────────────────────────────────────────────────────────────────────────


async def test_a_delta_is_answered_from_at_once() -> None:
    async with serving() as server:
        assert (await ask(server, "new.svc.cluster")).rcode() == dns.rcode.NXDOMAIN
        old = guestbook()
        for vip in ("10.96.5.5", "10.96.5.6"):
            new = Table(index=43, nodes=old.nodes, services={**old.services, "new": TableService(vip=vip)})
            delta = table_diff(old, new)
            assert delta
            old = apply_delta(old, delta)
            await server.update(old, delta)
            assert str((await ask(server, "new.svc.cluster")).answer[0][0]) == vip
            assert str((await ask(server, "web.svc.cluster")).answer[0][0]) == "10.96.0.7"


async def test_before_the_first_table_servfail() -> None:
    server = DnsServer(["127.0.0.1:0"], forward=False)
    await server.start()
    try:
        assert (await ask(server, "web.svc.cluster")).rcode() == dns.rcode.SERVFAIL
        await server.update(guestbook(), None)
        assert (await ask(server, "web.svc.cluster")).rcode() == dns.rcode.NOERROR
    finally:
        await server.close()


async def test_an_impossible_table_leaves_the_last_good_one() -> None:
    async with serving() as server:
        await server.update(Table(index=50, vip_range="10.96.0.0/99"), None)
        assert server.problems() == [
            "dns: table 50 is not in use: vip_range: '10.96.0.0/99' does not appear to be an IPv4 or IPv6 network"
        ]
        assert (await ask(server, "web.svc.cluster")).answer
        new = Table(index=51, services={"web": TableService(vip="10.96.0.9")})
        await server.update(new, table_diff(Table(index=50), new))
        assert server.problems() == []
        assert (await ask(server, "redis.svc.cluster")).rcode() == dns.rcode.NXDOMAIN


async def test_a_name_that_cannot_be_written_is_servfail_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    bad = Endpoint(id="x" * 64, slot=1, node="n1", address="10.0.0.1", ports={"http": 1})
    ports = {"http": TablePort(port=80)}
    table = Table(services={"bad": TableService(ports=ports, endpoints=[bad]), "web": TableService(vip="10.96.0.7")})
    async with serving(table=table) as server:
        for _ in range(5):
            assert (await ask(server, "_http._tcp.bad.svc.cluster", "SRV")).rcode() == dns.rcode.SERVFAIL
        assert (await ask(server, "web.svc.cluster")).answer
    assert len(caplog.records) == 1


async def test_metrics() -> None:
    async with serving() as server:
        for name in ("web.svc.cluster", "web.svc.cluster", "nothing.svc.cluster"):
            await ask(server, name)
        text = render(server.metrics()).decode()
        assert 'mesh_dns_queries_total{rcode="NOERROR",transport="udp",type="A"} 2.0' in text
        assert 'mesh_dns_queries_total{rcode="NXDOMAIN",transport="udp",type="A"} 1.0' in text
        assert "mesh_dns_kept_answers_total 1.0" in text
        assert "mesh_dns_latency_seconds_count 3.0" in text
        assert "mesh_dns_table_index{" in text


# ── TCP ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
async def test_pipelined_queries_split_any_way(piece: int) -> None:
    names = ["web.svc.cluster", "n1.node.cluster", "nothing.cluster", "cluster"]
    async with serving() as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        data = frame(*(query(name, number) for number, name in enumerate(names)))
        for at in range(0, len(data), piece):
            writer.write(data[at : at + piece])
            await writer.drain()
            await asyncio.sleep(0)
        answers = [await read_frame(reader) for _ in names]
        assert sorted(answer.id for answer in answers) == [0, 1, 2, 3]
        assert [str(a.question[0].name) for a in sorted(answers, key=lambda a: a.id)] == [f"{name}." for name in names]
        writer.close()


async def test_a_client_that_closes_its_side_still_gets_its_answers() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(frame(query("web.svc.cluster")))
        writer.write_eof()
        assert (await read_frame(reader)).answer
        assert await reader.read() == b""


async def test_idle_connections_are_closed_and_a_dripping_client_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "IDLE", 0.5)
    async with serving() as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while not reader.at_eof():
                    writer.write(b"\xff")  # a message that never comes whole
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 0.05)
        writer.close()


async def test_a_client_that_does_not_read_is_dropped_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "IDLE", 1.0)
    async with serving() as server:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, server.addresses[0])
        flood = frame(*[query("_http._tcp.web.svc.cluster", qtype="SRV")] * 100)

        async def send_for_ever() -> None:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(loop.sock_sendall(slow, flood), 0.2)
                assert (await ask(server, "web.svc.cluster", stream=True)).answer

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_for_ever(), 20)
        slow.close()


async def test_a_stream_that_carries_no_queries_is_closed() -> None:
    async with serving() as server:
        for message in (b"", b"hello", b"\0\1\x81\x80" + b"\0" * 8):
            reader, writer = await asyncio.open_connection(*server.addresses[0])
            writer.write(frame(message, query("web.svc.cluster")))
            assert await reader.read() == b""
            writer.close()


async def test_connections_are_bounded_and_the_longest_idle_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        server._connections._limit = 3
        first, *others = [await asyncio.open_connection(*server.addresses[0]) for _ in range(3)]
        for reader, writer in others:
            writer.write(frame(query("web.svc.cluster")))
            await read_frame(reader)
        newest = await asyncio.open_connection(*server.addresses[0])
        newest[1].write(frame(query("web.svc.cluster")))
        assert (await read_frame(newest[0])).answer
        with contextlib.suppress(ConnectionError):
            assert await first[0].read() == b""
        for reader, writer in others:
            writer.write(frame(query("web.svc.cluster")))
            assert (await read_frame(reader)).answer
        for _, writer in (first, *others, newest):
            writer.close()
