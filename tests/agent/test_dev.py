"""How `mesh dev` finds its place on a machine that others use too."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh import dev
from mesh.keys import Keys
from mesh.model import ClusterConfig
from mesh.settings import DevSettings, StoreSettings
from mesh.settings.sources import dev_state
from mesh.startup import StartError, locked
from mesh.view import decode_document
from tests.fakes.store import FakeStore


def test_ports_that_are_taken_are_replaced() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        host, _, number = dev._free("", "127.0.0.1", port).rpartition(":")
        assert host == "127.0.0.1"
        assert port < int(number) < port + 100
        other = dev._free(f"http://127.0.0.1:{port}", "127.0.0.1", port)
        assert other != f"127.0.0.1:{port}"
    assert dev._free(f"http://127.0.0.1:{port}", "127.0.0.1", 1) == f"127.0.0.1:{port}", "that of last time"


def test_every_state_folder_is_a_node_of_its_own(tmp_path: Path) -> None:
    first, second = dev._node_name(tmp_path / "a"), dev._node_name(tmp_path / "b")
    usual = dev._node_name(dev_state(os.environ))
    assert len({first, second, usual}) == 3
    assert first.startswith(f"{usual}-")
    assert dev._node_name(tmp_path / "a") == first


@pytest.mark.parametrize("content", [None, "{", "[]", '{"pid": 1, "unknown": 2}'])
def test_an_unreadable_word_of_last_time_is_ignored(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dev.json").write_text(content)
    assert dev._previous(tmp_path) is None


def test_the_word_of_last_time(tmp_path: Path) -> None:
    told = {"pid": 1, "store": "http://127.0.0.1:8500", "dns": "127.0.0.1:53", "admin": "http://127.0.0.1:7070"}
    (tmp_path / "dev.json").write_text(json.dumps(told))
    before = dev._previous(tmp_path)
    assert before
    assert before.dns == "127.0.0.1:53"


def test_one_process_for_each_state_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path, "use another"),
        pytest.raises(StartError, match=rf"is in use by process {os.getpid()}: use another"),
        locked(tmp_path, "use another"),
    ):
        pass
    with locked(tmp_path, "use another"):
        pass


def test_a_range_that_somebody_serves_is_seen() -> None:
    network = ipaddress.ip_network("10.127.0.0/16")
    assert not dev._served(network)
    with socket.socket() as server:
        server.bind(("127.127.3.4", 0))
        assert not dev._served(network)
        server.listen()
        assert dev._served(network)


class TestClaims:
    @pytest.fixture
    async def store(self) -> AsyncIterator[FakeStore]:
        store = FakeStore()
        yield store
        await store.close()

    @staticmethod
    async def vip_range(store: FakeStore) -> str:
        entry = await store.get(Keys().config)
        return decode_document(entry.value, ClusterConfig).vip_range if entry else ClusterConfig().vip_range

    async def test_two_at_once_have_two_ranges(self, store: FakeStore, tmp_path: Path) -> None:
        other = FakeStore()
        first = await dev._claim_vips(DevSettings(tmp_path / "a"), store, Keys())
        second = await dev._claim_vips(DevSettings(tmp_path / "b"), other, Keys())
        assert first
        assert second
        with first, second:
            assert await self.vip_range(store) != await self.vip_range(other)
        await other.close()

    async def test_the_range_of_last_time_is_kept(self, store: FakeStore, tmp_path: Path) -> None:
        await store.put(Keys().config, b'{"vip_range": "10.120.0.0/16"}')
        claim = await dev._claim_vips(DevSettings(tmp_path), store, Keys())
        assert claim
        with claim:
            assert await self.vip_range(store) == "10.120.0.0/16"

    @pytest.mark.parametrize(
        ("vip_range", "shared"), [("172.20.0.0/16", None), ("10.96.0.0/16", StoreSettings())]
    )  # fmt: skip
    async def test_what_operators_chose_is_left_alone(
        self, store: FakeStore, tmp_path: Path, vip_range: str, shared: StoreSettings | None
    ) -> None:
        await store.put(Keys().config, json.dumps({"vip_range": vip_range}).encode())
        assert await dev._claim_vips(DevSettings(tmp_path, store=shared), store, Keys()) is None
        assert await self.vip_range(store) == vip_range
