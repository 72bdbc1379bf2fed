"""The Table as a node without privileges needs it."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from mesh.agent.localise import Localiser, loopback_range, loopback_vip
from mesh.table import Table, TablePort, TableRoute, TableService, table_diff


def table(**ports: TablePort) -> Table:
    return Table(
        services={"web": TableService(vip="10.96.0.7", ports=ports)},
        routes={"shop": TableRoute(listen="0.0.0.0:80")},
    )


def test_with_the_route_the_table_is_used_as_it_is() -> None:
    given = table(http=TablePort(port=80))
    assert Localiser("route", 1)(given) is given


def test_without_root_low_ports_move_on_real_vips_too() -> None:
    local = Localiser("route", 1024)(table(http=TablePort(port=80)))
    assert local.services["web"].vip == "10.96.0.7"
    assert local.services["web"].ports["http"].listen == "10.96.0.7:8080"
    assert local.vip_range == "10.96.0.0/16"


def test_a_vip_becomes_an_address_of_this_machine_and_low_ports_move() -> None:
    local = Localiser("loopback", 1024)(
        table(http=TablePort(port=80, protocol="http"), db=TablePort(port=5432), given=TablePort(port=22, listen="x:1"))
    )
    assert local.services["web"].vip == "127.96.0.7"
    assert local.services["web"].ports == {
        "http": TablePort(port=80, protocol="http", listen="127.96.0.7:8080"),
        "db": TablePort(port=5432),
        "given": TablePort(port=22, listen="x:1"),
    }
    assert local.vip_range == "127.96.0.0/16"
    assert local.routes["shop"].listen == "0.0.0.0:8080"


def test_a_moved_port_takes_no_other_ports_place() -> None:
    local = Localiser("loopback", 1024)(table(http=TablePort(port=80), alt=TablePort(port=8080)))
    assert local.services["web"].ports["http"].listen == "127.96.0.7:8081"


def test_root_moves_no_ports() -> None:
    local = Localiser("loopback", 1)(table(http=TablePort(port=80)))
    assert local.services["web"].ports["http"].listen is None
    assert local.routes["shop"].listen == "0.0.0.0:80"


def test_a_service_without_a_vip_keeps_its_ports() -> None:
    given = Table(services={"web": TableService(ports={"http": TablePort(port=80)})})
    assert Localiser("loopback", 1024)(given).services == given.services


@pytest.mark.parametrize(
    ("vip_range", "vip", "expected", "loopback"),
    [
        ("10.96.0.0/16", "10.96.0.7", "127.96.0.7", "127.96.0.0/16"),
        ("10.97.0.0/16", "10.97.255.254", "127.97.255.254", "127.97.0.0/16"),
        ("192.168.77.0/24", "192.168.77.9", "127.168.77.9", "127.168.77.0/24"),
    ],
)
def test_each_range_has_its_own_part_of_loopback(vip_range: str, vip: str, expected: str, loopback: str) -> None:
    network = ipaddress.ip_network(vip_range)
    assert (loopback_vip(vip, network), str(loopback_range(network))) == (expected, loopback)


def test_what_did_not_change_stays_the_same_object() -> None:
    localiser = Localiser("loopback", 1024)
    web = TableService(vip="10.96.0.1", ports={"http": TablePort(port=80)})
    before = localiser(Table(index=1, services={"web": web}))
    after = localiser(Table(index=2, services={"web": web, "shop": TableService(vip="10.96.0.2")}))
    assert after.services["web"] is before.services["web"]
    delta = table_diff(before, after)
    assert delta
    assert delta.services.keys() == {"shop"}
    changed = msgspec.structs.replace(web, ttl=9)
    assert localiser(Table(services={"web": changed})).services["web"].ttl == 9
