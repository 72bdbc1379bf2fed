"""Rate limit and cookies: what we do for whom."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import dns.asyncquery
import dns.edns
import dns.exception
import dns.flags
import dns.rcode
import pytest

import dns.message
from mesh.dataplane.worker import read_secret, write_secret
from mesh.dns import clients
from mesh.dns.clients import Networks, RateLimit
from mesh.dns.cookies import Cookies
from mesh.dns.server import DEFAULT_ALLOW, DnsServer
from tests.dns_server.zones import guestbook


def spend(limit: RateLimit, client: str, count: int, now: float) -> Counter[str]:
    """What becomes of so many queries."""
    return Counter(
        "answer" if limit.admits(client, now) else "cut" if limit.slips(client) else "drop" for _ in range(count)
    )


def test_networks() -> None:
    networks = Networks(DEFAULT_ALLOW)
    for client in ("127.0.0.1", "10.1.2.3", "172.17.0.2", "192.168.1.1", "::1", "fd00::1", "fe80::1%eth0"):
        assert networks.include(client)
    for client in ("192.0.2.1", "8.8.8.8", "172.32.0.1", "2001:db8::1"):
        assert not networks.include(client)
    with pytest.raises(ValueError, match="what"):
        Networks(["what"])


def test_a_network_shares_its_rate_and_half_of_what_is_beyond_is_told_to_use_tcp() -> None:
    limit = RateLimit(Networks(DEFAULT_ALLOW))
    first = spend(limit, "192.0.2.1", 150, now=0.0)
    second = spend(limit, "192.0.2.2", 150, now=0.0)
    assert first["answer"] + second["answer"] == 200
    assert (second["cut"], second["drop"]) == (50, 50)
    assert spend(limit, "192.0.3.1", 100, now=0.0)["answer"] == 100
    assert spend(limit, "192.0.2.1", 300, now=1.0)["answer"] == 100
    assert spend(limit, "192.0.2.1", 300, now=100.0)["answer"] == 200


def test_this_host_is_not_limited_and_ours_have_room() -> None:
    limit = RateLimit(Networks(DEFAULT_ALLOW))
    for client in ("127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "2001:db8::1"):
        expected = 200 if client == "2001:db8::1" else 10_000
        assert spend(limit, client, 10_000, now=0.0)["answer"] == expected


def test_what_is_remembered_of_clients_is_bounded() -> None:
    limit = RateLimit(Networks([]))
    for number in range(30_000):
        limit.admits(f"198.51.{number >> 8}.{number & 255}", 0.0)
        assert len(limit) <= 10_000


def test_cookies_are_good_for_an_hour_and_for_one_address() -> None:
    cookies = Cookies()
    cookie = cookies.give(b"12345678", "192.0.2.1", 1000.0)
    assert (len(cookie), cookie[:8]) == (24, b"12345678")
    assert cookies.is_good(cookie, "192.0.2.1", 1000.0)
    assert cookies.is_good(cookie, "192.0.2.1", 4600.0)
    assert not cookies.is_good(cookie, "192.0.2.1", 4601.0)
    assert not cookies.is_good(cookie, "192.0.2.1", 699.0)
    assert not cookies.is_good(cookie, "192.0.2.2", 1000.0)
    assert not cookies.is_good(cookie[:-1] + b"x", "192.0.2.1", 1000.0)
    assert not cookies.is_good(b"12345678", "192.0.2.1", 1000.0)
    assert not Cookies().is_good(cookie, "192.0.2.1", 1000.0)


def test_workers_of_one_server_know_each_others_cookies(tmp_path: Path) -> None:
    write_secret(tmp_path)
    secret = read_secret(tmp_path)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    cookie = Cookies(secret).give(b"12345678", "127.0.0.1", 1000.0)
    assert Cookies(secret).is_good(cookie, "127.0.0.1", 1000.0)
    write_secret(tmp_path)
    assert not Cookies(read_secret(tmp_path)).is_good(cookie, "127.0.0.1", 1000.0)
    assert read_secret(tmp_path / "elsewhere") is None


async def test_over_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_SERVED_RATE", 1.0)
    monkeypatch.setattr("ipaddress.IPv4Address.is_loopback", False)  # or we would not be limited
    server = DnsServer(["127.0.0.1:0"], forward=False)
    await server.start()
    await server.update(guestbook(), None)
    host, port = server.addresses[0]

    async def ask(cookie: bytes) -> dns.message.Message:
        option = dns.edns.CookieOption(cookie[:8], cookie[8:])
        query = dns.message.make_query("web.svc.cluster", "A", use_edns=0, options=[option])
        return await dns.asyncquery.udp(query, host, port=port, timeout=5)

    def given(answer: dns.message.Message) -> bytes:
        [option] = answer.options
        assert isinstance(option, dns.edns.CookieOption)
        return option.client + option.server

    try:
        cookie = given(await ask(b"12345678"))
        for _ in range(10):
            answer = await ask(cookie)
            assert answer.answer
            assert given(answer)[:8] == b"12345678"
        plain = dns.message.make_query("web.svc.cluster", "A", use_edns=0)
        cut = await first_cut_answer(plain, host, port)
        assert cut.flags & dns.flags.TC
        assert (await dns.asyncquery.tcp(plain, host, port=port, timeout=5)).answer
    finally:
        await server.close()


async def first_cut_answer(query: dns.message.Message, host: str, port: int) -> dns.message.Message:
    """The first cut answer: every second one is dropped, as is right."""
    while True:
        try:
            answer = await dns.asyncquery.udp(query, host, port=port, timeout=0.2)
        except dns.exception.Timeout:
            continue
        if not answer.answer:
            return answer
