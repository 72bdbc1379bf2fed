"""What `mesh resolve` says."""

from __future__ import annotations

import pytest

from mesh.dns.explain import explain
from mesh.table import Table
from tests.dns_server.test_zone import CASES
from tests.dns_server.zones import guestbook


def said(name: str, qtype: str = "A") -> list[str]:
    return explain(guestbook(), name, qtype).lines()


def test_a_service_behind_its_virtual_ip() -> None:
    assert said("web.svc.cluster") == [
        "web.svc.cluster A: NOERROR",
        "  web.svc.cluster. 5 IN A 10.96.0.7",
        "  why: service web has the virtual IP 10.96.0.7; the proxy behind it chooses among 2 of 3 instances",
        "  left out: web-3-aaaa on n1 (10.77.0.13): running, not ready",
    ]
    assert said("web") == said("web.svc.cluster") == said("WEB.svc.cluster.")


def test_a_direct_service() -> None:
    assert said("redis") == [
        "redis.svc.cluster A: NOERROR",
        "  redis.svc.cluster. 2 IN A 10.1.0.1",
        "  why: service redis: its ready instances (discovery: direct)",
        "  left out: redis-2-aaaa on n1 (10.1.0.2): node n1 is silent, and others are ready",
    ]
    assert "since none is ready" in explain(guestbook(), "peers").why
    assert explain(guestbook(), "strict").outcome == "NODATA"


def test_ports_slots_and_tags() -> None:
    ports = explain(guestbook(), "_dns._udp.web.svc.cluster", "srv")
    assert ports.left_out[0] == "web-1-aaaa on n1 (10.77.0.11): without the port dns"
    assert ports.additional == ["web-2-aaaa.web.svc.cluster. 5 IN A 10.77.0.12"]
    assert explain(guestbook(), "9.web.svc.cluster").why == "service web has no slot 9: 4 are wanted"
    assert explain(guestbook(), "v2.web.svc.cluster").why == "service web: its ready instances tagged v2"
    assert explain(guestbook(), "v9.web.svc.cluster").why == "service web has no instance v9, and none tagged so"


def test_addresses_are_asked_backwards_and_foreign_names_are_named_so() -> None:
    backwards = explain(guestbook(), "10.96.0.7")
    assert (backwards.type, backwards.answer) == ("PTR", ["7.0.96.10.in-addr.arpa. 5 IN PTR web.svc.cluster."])
    assert explain(guestbook(), "example.com").outcome == "FOREIGN"
    assert explain(guestbook(), "nope").why == "there is no service nope"
    assert explain(Table(), "cluster", "SOA").outcome == "NOERROR"
    with pytest.raises(ValueError, match="no type of record: 'FOO'"):
        explain(guestbook(), "web", "FOO")


@pytest.mark.parametrize("question", [str(case) for case in CASES])
def test_everything_can_be_explained(question: str) -> None:
    assert explain(guestbook(), *question.split()).why
