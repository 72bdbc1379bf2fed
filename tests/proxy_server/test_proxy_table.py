"""What changes of the Table do to listeners, requests and connections."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh.proxy.context import Context
from mesh.table import Table, TablePort, TableService, apply_delta, table_diff
from tests.patience import until
from tests.proxy_server.wire import GET, OK, Mesh, Peer, answering, endpoint


async def test_requests_go_round(mesh: Mesh) -> None:
    for name in ("web-1", "web-2", "web-3"):
        await mesh.add(name, answering(name.encode()))
    answers = [(await mesh.ask())[1] for _ in range(9)]
    assert {name: answers.count(name) for name in answers} == {b"web-1": 3, b"web-2": 3, b"web-3": 3}


async def test_withdrawal_under_load_fails_nothing(mesh: Mesh) -> None:
    """50 keep-alive clients; endpoints leave and come back all the time, and once gone see no further request."""
    served = {"web-1": 0, "web-2": 0, "web-3": 0}

    def counting(name: str) -> Callable[[Peer], Awaitable[None]]:
        async def serve(peer: Peer) -> None:
            while await peer.reader.readuntil(b"\r\n\r\n"):
                served[name] += 1
                await asyncio.sleep(0.002)
                await peer.send(OK)

        return serve

    for name in served:
        await mesh.add(name, counting(name))
    done = False
    answers = 0

    async def load() -> None:
        nonlocal answers
        client = await mesh.dial()
        while not done:
            await client.send(GET)
            head, body = await client.answer()
            assert (head.start, body) == ("HTTP/1.1 200 OK", b"ok")
            answers += 1

    async with asyncio.TaskGroup() as clients:
        for _ in range(50):
            clients.create_task(load())
        everyone = list(mesh.upstreams)
        for turn in range(9):
            leaving = everyone[turn % 3]
            (under_way,) = [each for each in mesh.proxy._backends["web", "http"].upstreams if each.id == leaving.name]
            mesh.upstreams = [each for each in everyone if each is not leaving]
            await mesh.update()
            await until(lambda left=under_way: left.in_flight == 0, "its last answers")  # type: ignore[misc]
            seen, before = served[leaving.name], answers
            await until(lambda before=before: answers > before + 200, "more answers")  # type: ignore[misc]
            assert served[leaving.name] == seen, "a request reached an endpoint that had left"
            mesh.upstreams = everyone
            await mesh.update()
        done = True


async def test_an_endpoint_that_left_finishes_what_it_has(mesh: Mesh) -> None:
    old = await mesh.add("web-1")
    idle_client, idle_server, _ = await mesh.pair()
    client, server, _ = await mesh.pair(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nab")
    await idle_server.send(OK)
    await idle_client.answer()
    mesh.upstreams = []
    await mesh.add("web-2", answering(b"2"))
    await idle_server.closed()
    await client.send(b"cd")
    await server.exactly(b"abcd")
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    await server.closed()
    for each in (idle_client, client):
        await each.send(GET)
        assert (await each.answer())[1] == b"2"
    await old.stop()


async def test_a_connection_under_way_to_an_endpoint_that_leaves_is_not_used(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mesh.add("web-1", answering(b"1"))
    leaving = mesh.upstream
    mesh.upstreams = []
    second = await mesh.add("web-2", answering(b"2"))
    mesh.upstreams = [leaving]
    await mesh.update()
    client = await mesh.dial()
    connect = Context._connect

    async def while_it_leaves(*arguments: Any) -> None:
        monkeypatch.undo()
        mesh.upstreams = [second]
        await mesh.update()
        await connect(*arguments)

    monkeypatch.setattr(Context, "_connect", while_it_leaves)
    await client.send(GET)
    assert (await client.answer())[1] == b"2"
    await leaving.stop()


async def test_a_delta_touches_only_what_changed(mesh: Mesh) -> None:
    await mesh.add("web-1", answering(b"1"))
    other = await mesh.add("web-2", answering(b"2"))
    before = mesh.table()
    kept = mesh.proxy._backends["web", "http"]
    mesh.upstreams.remove(other)
    after = mesh.table()
    delta = table_diff(before, after)
    assert delta is not None
    await mesh.proxy.update(apply_delta(before, delta), delta)
    assert mesh.proxy._backends["web", "http"] is kept
    assert {(await mesh.ask())[1] for _ in range(4)} == {b"1"}
    await other.stop()


async def test_a_service_that_leaves(mesh: Mesh) -> None:
    await mesh.add("web-1", answering(b"1"))
    client = await mesh.dial()
    await client.send(GET)
    await client.answer()
    await mesh.update(Table())
    await client.send(GET)
    answer, body = await client.answer()
    assert answer.start == "HTTP/1.1 503 Service Unavailable"
    assert body == b"web.http: the service is gone\n"
    await client.closed()
    assert await refused(mesh.port)


async def refused(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def test_a_port_that_changes_its_protocol(mesh: Mesh) -> None:
    await mesh.add("web-1")
    mesh.protocol = "tcp"
    await mesh.update()
    client = await mesh.dial()
    await client.send(b"no http")
    await (await mesh.upstream.accept()).exactly(b"no http")


# ── listeners that cannot be opened


async def test_a_taken_port_is_a_problem_until_it_is_free(mesh: Mesh) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", mesh.port))
        taken.listen()
        await mesh.add("web-1", answering(b"1"))
        (problem,) = mesh.proxy.problems()
        assert problem == (
            f"web.http: cannot listen on 127.0.0.1:{mesh.port}: address already in use; stop the program that"
            " holds it (see `ss -ltnp`) or set another `listen`; it is tried again"
        )
    await until(lambda: not mesh.proxy.problems(), "recovery")
    assert (await mesh.ask())[1] == b"1"


async def test_other_services_do_not_suffer(mesh: Mesh) -> None:
    upstream = await mesh.add("web-1", answering(b"1"))
    web = mesh.table().services["web"]

    def listening(address: str) -> TableService:
        return TableService(desired=1, endpoints=[endpoint(upstream)], ports={"http": TablePort(
            port=80, protocol="http", listen=address)})  # fmt: skip

    foreign, taken, odd = listening("203.0.113.9:80"), listening(f"127.0.0.1:{mesh.port}"), listening("nonsense")
    await mesh.update(Table(services={"a": foreign, "web": web, "x": taken, "y": odd}))
    assert mesh.proxy.problems() == [
        "a.http: cannot listen on 203.0.113.9:80: cannot assign requested address; the host does not own this"
        " address; as root: `ip route add local <vip range> dev lo`, or use `vips: loopback`",
        f"x.http: cannot listen on 127.0.0.1:{mesh.port}: web.http listens there; give one of them another `listen`",
        "y.http: cannot listen on nonsense: it must be ADDRESS:PORT",
    ]
    assert (await mesh.ask())[1] == b"1"


async def test_settings_that_cannot_be_read_are_said(mesh: Mesh) -> None:
    mesh.traffic = {
        "balance": "fair", "timeout": "15 apples", "retries": {"on": ["reset", "5xx"]},
        "retry": {}, "limits": {"max": 1},
    }  # fmt: skip
    await mesh.add("web-1", answering(b"1"))
    first, second, third, *others = mesh.proxy.problems()
    assert first == (
        "web.http: traffic.balance: must be one of least-request, round-robin, ewma or {hash: …}, got 'fair';"
        " the default is used"
    )
    assert second.startswith("web.http: traffic.timeout: ")
    assert third == (
        "web.http: traffic.retries.on: must be of connect-failure, reset, timeout and statuses 400..599, got '5xx';"
        " the default is used"
    )
    assert others == [
        "web.http: traffic.retry: there is no such setting", "web.http: traffic.limits.max: there is no such setting",
    ]  # fmt: skip
    assert (await mesh.ask())[1] == b"1"


# ── stopping


async def test_close_lets_open_requests_end(mesh: Mesh) -> None:
    await mesh.add("web-1")
    idle = await mesh.dial()
    client, server, _ = await mesh.pair()
    closing = asyncio.create_task(mesh.proxy.close())
    await idle.closed()
    await server.send(OK)
    answer, body = await client.answer()
    assert (answer["Connection"], body) == ("close", b"ok")
    await client.closed()
    await closing
    assert await refused(mesh.port)


WORKER = """
import asyncio, sys, uvloop
from pathlib import Path
from mesh.proxy.server import ProxyServer
from mesh.table import parse_table

async def main():
    proxy = ProxyServer()
    await proxy.start()
    await proxy.update(parse_table(Path(sys.argv[1]).read_bytes()), None)
    print(*proxy.problems() or ["ready"], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await proxy.close()

uvloop.run(main())
"""


async def test_workers_share_a_port(mesh: Mesh, tmp_path: Path) -> None:
    """Two processes on one port; one ends, the other serves on."""
    await mesh.add("web-1", answering(b"1"))
    table = mesh.table()
    await mesh.update(Table())
    file = tmp_path / "table.json"
    file.write_bytes(msgspec.json.encode(table))
    workers = [
        subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", WORKER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert await asyncio.to_thread(worker.stdout.readline) == "ready\n"
        for _ in range(20):
            assert (await mesh.ask())[1] == b"1"
        await asyncio.to_thread(workers[0].communicate, "")
        assert workers[0].returncode == 0
        for _ in range(20):
            assert (await mesh.ask())[1] == b"1"
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


async def test_a_worker_imports_little() -> None:
    """Workers stay small: nothing of the control plane comes with the proxy."""
    check = "import sys, mesh.proxy.server; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    out = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", check], text=True)
    heavy = {"pydantic", "aiohttp", "prometheus_client", "docker", "typer", "numpy", "rich", "consul"}
    assert heavy.isdisjoint(out.split())
