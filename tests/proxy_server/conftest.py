"""A running proxy, on the loop that serves in production."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import pytest_asyncio
import uvloop

from mesh.proxy.server import ProxyServer
from tests.proxy_server.wire import Mesh


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[Mesh]:
    """A proxy with no endpoint yet: `await mesh.add("web-1")`."""
    proxy = ProxyServer()
    await proxy.start()
    running = Mesh(proxy)
    yield running
    await running.close()
