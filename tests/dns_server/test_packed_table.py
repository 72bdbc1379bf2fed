"""A worker that keeps services packed has the same Table as one that does not, and the same changes."""

from __future__ import annotations

import msgspec
from hypothesis import given

from mesh.table import PackedServices, RawTable, Table, apply_delta, table_diff
from tests.dns_server.test_dns_properties import tables


def packed(table: Table) -> Table:
    """As it comes to a DNS worker."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(table), type=RawTable).packed()


def unpacked(table: Table) -> Table:
    assert isinstance(table.services, PackedServices)
    return msgspec.structs.replace(table, services=dict(table.services))


@given(tables)
def test_it_reads_the_same(table: Table) -> None:
    assert unpacked(packed(table)) == table


@given(tables, tables)
def test_changes_lead_to_the_same(old: Table, new: Table) -> None:
    if delta := table_diff(old, new):
        assert unpacked(apply_delta(packed(old), delta)) == apply_delta(old, delta)


@given(tables, tables)
def test_a_second_snapshot_differs_from_the_first_by_the_same(old: Table, new: Table) -> None:
    assert table_diff(packed(old), packed(new)) == table_diff(old, new)
    assert table_diff(packed(old), packed(old)) is None
