"""Who waits for services at zero: from a worker's waiting room to `GET /v1/waiting`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mesh import admin
from mesh.admin import Admin, Sources
from mesh.dataplane.waiting import WaitingBoard, WaitingReport
from mesh.dataplane.worker import ProxyArguments
from mesh.dataplane.workers import REPLACED, Workers
from mesh.metrics import Family
from mesh.proxy.policy import Policy
from mesh.table import Endpoint, Table, TablePort, TableService

PATIENCE = 20.0


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE)


# ── the board


async def test_the_sum_of_all_workers() -> None:
    board = WaitingBoard()
    board.told("one", {"web": 2, "shop": 1})
    board.told("two", {"web": 3})
    assert (await board.report(None, 0)).services == {"web": 5, "shop": 1}
    board.left("one")
    assert (await board.report(None, 0)).services == {"web": 3}
    board.told("two", {})
    assert (await board.report(None, 0)).services == {}


async def test_an_answer_comes_with_the_next_change_and_none_is_missed() -> None:
    board = WaitingBoard()
    first = asyncio.ensure_future(board.report(None, 60))
    await asyncio.sleep(0)
    board.told("one", {"web": 1})
    seen = await soon(first)
    assert seen.services == {"web": 1}
    board.told("one", {"web": 7})  # between two questions
    seen = await soon(board.report(seen.version, 60))
    assert seen.services == {"web": 7}
    board.told("one", {"web": 7})
    assert await board.report(seen.version, 0.01) == seen, "nothing has changed"
    board.told("one", {})
    assert (await soon(board.report(seen.version, 60))).services == {}


async def test_the_version_of_another_supervisor_is_answered_at_once() -> None:
    board = WaitingBoard()
    before = await board.report(None, 0)
    assert (await soon(board.report(before.version - 5000, 60))).services == {}


# ── over HTTP


@pytest.fixture
async def board() -> WaitingBoard:
    return WaitingBoard()


@pytest.fixture
async def http(board: WaitingBoard) -> AsyncIterator[aiohttp.ClientSession]:
    async def metrics() -> list[Family]:
        return []

    server = Admin("127.0.0.1:0", Sources(list, metrics, waiting=board.report))
    await server.start()
    async with aiohttp.ClientSession(server.address) as session:
        yield session
    await server.close()


async def ask(http: aiohttp.ClientSession, query: str = "") -> WaitingReport:
    answer = await http.get(f"/v1/waiting{query}")
    assert answer.status == 200
    told = await answer.json()
    return WaitingReport(told["version"], told["services"])


async def test_asked_for_now_and_for_the_next_change(board: WaitingBoard, http: aiohttp.ClientSession) -> None:
    assert (await ask(http)).services == {}
    asked = asyncio.ensure_future(ask(http, "?wait=60"))
    await asyncio.sleep(0.01)
    board.told("one", {"web": 1})
    seen = await soon(asked)
    assert seen.services == {"web": 1}
    assert (await ask(http, "?wait=60")).services == {"web": 1}, "at once: they still wait"
    assert await ask(http, f"?wait=0.01&since={seen.version}") == seen


@pytest.mark.parametrize("query", ["wait=soon", "wait=-1", "wait=nan", "wait=", f"since={'9' * 30}", "since=x"])
async def test_bad_questions(http: aiohttp.ClientSession, query: str) -> None:
    answer = await http.get(f"/v1/waiting?{query}")
    assert answer.status == 400
    assert query.partition("=")[0] in await answer.text()


async def test_so_many_may_ask_at_one_time(
    board: WaitingBoard, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "LONGEST_WAIT", PATIENCE)
    asked = [asyncio.ensure_future(http.get("/v1/waiting?wait=9999")) for _ in range(admin.MAX_WAITS + 1)]
    done, rest = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
    assert [each.result().status for each in done] == [429], "one too many"
    board.told("one", {"web": 1})
    assert {each.status for each in await soon(asyncio.gather(*rest))} == {200}


# ── real workers


class Replica:
    """Answers each request with its name."""

    def __init__(self) -> None:
        self.port = 0

    async def start(self) -> Replica:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return self


class Cluster:
    """Two proxy workers with one service, `web`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.workers: Workers

    async def start(self) -> None:
        self.workers = Workers(self.folder, [ProxyArguments()] * 2)
        await self.workers.start()

    async def publish(self, replica: Replica | None = None) -> None:
        ends = [Endpoint(id="web-1-aaaa", slot=1, node="n1", address="127.0.0.1", ports={"http": replica.port})] \
            if replica else []  # fmt: skip
        port = TablePort(port=80, protocol="http", listen=f"127.0.0.1:{self.port}")
        web = TableService(ports={"http": port}, desired=len(ends), asleep=not ends, endpoints=ends)
        sequence = self.workers.publish(Table(services={"web": web}))
        await soon(self.workers.serving())
        assert await self.workers.acknowledged(sequence, PATIENCE)

    async def get(self) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    async def until_waiting(self, count: int) -> None:
        since: int | None = None
        async with asyncio.timeout(PATIENCE):
            while True:
                seen = await self.workers.held(since, 60)
                if seen.services == ({"web": count} if count else {}):
                    return
                since = seen.version

    def pids(self) -> list[int]:
        return [int((self.folder / f"proxy-{number}.pid").read_text()) for number in (1, 2)]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path / "workers")
    await cluster.start()
    yield cluster
    await cluster.workers.close()


def test_a_worker_that_is_replaced_has_the_time_that_whoever_it_holds_may_take() -> None:
    policy = Policy()
    assert policy.limits.held_timeout + policy.timeout <= REPLACED


async def test_held_by_several_workers_and_by_those_that_are_replaced(cluster: Cluster) -> None:
    await cluster.publish()
    first = [asyncio.ensure_future(cluster.get()) for _ in range(20)]
    await cluster.until_waiting(20)
    load = (await cluster.workers.load()).services["web"]
    assert (load.queued, load.in_flight_now) == (20, 20)
    old = cluster.pids()
    replaced = asyncio.ensure_future(cluster.workers.replace())
    assert await soon(replaced) == []
    assert set(old).isdisjoint(cluster.pids())
    second = [asyncio.ensure_future(cluster.get()) for _ in range(10)]
    await cluster.until_waiting(30)
    await cluster.publish(await Replica().start())
    answers = await soon(asyncio.gather(*first, *second))
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
    await cluster.until_waiting(0)


async def test_a_new_supervisor_hears_who_waits(cluster: Cluster) -> None:
    await cluster.publish()
    asked = asyncio.ensure_future(cluster.get())
    await cluster.until_waiting(1)
    await cluster.workers._tasks.close()  # as by kill -9
    cluster.workers._dismiss_newcomers()
    await cluster.workers._feed.close()
    await cluster.start()
    await cluster.until_waiting(1)
    await cluster.publish(await Replica().start())
    assert (await soon(asked)).startswith(b"HTTP/1.1 200 OK")


async def test_those_of_a_worker_that_died_wait_no_more(cluster: Cluster) -> None:
    await cluster.publish()
    asked = asyncio.ensure_future(cluster.get())
    await cluster.until_waiting(1)
    for pid in cluster.pids():
        os.kill(pid, signal.SIGKILL)
    await cluster.until_waiting(0)
    with contextlib.suppress(ConnectionError):
        assert await soon(asked) == b""
