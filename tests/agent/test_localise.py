"""The Table as a node's own workers need it."""

from __future__ import annotations

from mesh.localise import Localiser
from mesh.table import Table, TablePort, TableRoute, TableService

TABLE = Table(
    services={
        "web": TableService(
            vip="10.96.0.7", ports={"http": TablePort(port=80, protocol="http"), "db": TablePort(port=5432)}
        )
    },
    routes={"shop": TableRoute(listen="0.0.0.0:80"), "api": TableRoute(listen="0.0.0.0:9000")},
)


def test_root_with_a_route_takes_the_table_as_it_is() -> None:
    assert Localiser("route", first_port=1)(TABLE) is TABLE


def test_without_root_a_route_of_somebody_else_still_leaves_low_ports_out_of_reach() -> None:
    local = Localiser("route", first_port=1024)(TABLE)
    assert local.vip_range == TABLE.vip_range
    assert local.services["web"].vip == "10.96.0.7"
    assert local.services["web"].ports["http"].listen == "10.96.0.7:8080"
    assert local.services["web"].ports["db"].listen is None
    assert (local.routes["shop"].listen, local.routes["api"].listen) == ("0.0.0.0:8080", "0.0.0.0:9000")


def test_loopback_addresses_stand_in_for_virtual_ones() -> None:
    local = Localiser("loopback", first_port=1024)(TABLE)
    assert local.vip_range == "127.96.0.0/16"
    assert local.services["web"].vip == "127.96.0.7"
    assert local.services["web"].ports["http"].listen == "127.96.0.7:8080"


def test_a_moved_port_makes_way_for_one_that_is_there() -> None:
    ports = {"http": TablePort(port=80), "alt": TablePort(port=8080)}
    table = Table(services={"web": TableService(vip="10.96.0.7", ports=ports)})
    assert Localiser("loopback", first_port=1024)(table).services["web"].ports["http"].listen == "127.96.0.7:8081"


def test_what_did_not_change_stays_the_same_object() -> None:
    localise = Localiser("loopback", first_port=1024)
    assert localise(TABLE).services["web"] is localise(TABLE).services["web"]
