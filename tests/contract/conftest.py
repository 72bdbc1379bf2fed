"""The stores that one suite holds to one contract: the fake of the unit tests, the embedded store, a real Consul."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mesh.settings import EmbeddedStoreSettings, StoreSettings
from mesh.store import Store
from mesh.store.consul import ConsulStore
from mesh.store.embedded import EmbeddedStore
from tests.fakes.store import FakeStore
from tests.parts.consul import ConsulServer


@pytest.fixture(scope="session")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    """One for all whom it serves well; who does it harm starts his own."""
    with ConsulServer(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture(params=["fake", "embedded", pytest.param("consul", marks=pytest.mark.consul)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Each in turn, with nothing below `t`."""
    match request.param:
        case "fake":
            fake = FakeStore()
            yield fake
            await fake.close()
        case "embedded":
            server = EmbeddedStore(EmbeddedStoreSettings(tmp_path, "127.0.0.1:0"))
            await server.start()
            client = ConsulStore(StoreSettings(address=server.address))
            yield client
            await client.close()
            await server.close()
        case _:
            client = ConsulStore(request.getfixturevalue("consul").settings)
            await client.delete_prefix("t")
            yield client
            await client.close()
