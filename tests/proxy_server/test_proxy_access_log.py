"""The access log: what a line says, what is left out, and what happens where the disk does not keep up."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.proxy import access_log
from mesh.proxy.access_log import AccessLog
from mesh.proxy.server import ProxyServer
from mesh.table import Rule, TableRoute, Target
from tests.parts.ports import free_port
from tests.patience import until
from tests.proxy_server.wire import GET, OK, Mesh, answering

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest_asyncio.fixture
async def mesh(file: Path) -> AsyncIterator[Mesh]:
    """A proxy that logs all requests."""
    proxy = ProxyServer(access_log=AccessLog(str(file)))
    await proxy.start()
    running = Mesh(proxy)
    yield running
    await running.close()


@pytest.fixture
def lines(file: Path) -> Lines:
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def one(lines: Lines) -> dict[str, Any]:
    await until(lambda: len(lines()) == 1, "a line")
    return lines()[0]


async def test_a_line_says_what_became_of_a_request(mesh: Mesh, lines: Lines) -> None:
    await mesh.add("web-1", answering(b"hello"))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    await mesh.ask(
        b"POST /basket?card=4711 HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\nX-Request-Id: req-1\r\n"
        b"traceparent: 00-%b-00f067aa0ba902b7-01\r\nAuthorization: Bearer geheim\r\nCookie: id=geheim\r\n\r\n"
        % trace.encode()
    )
    line = await one(lines)
    assert line["time"].endswith("Z")
    assert {name: line[name] for name in ("kind", "client", "service", "port", "method", "host", "path", "status")} == {
        "kind": "http", "client": "127.0.0.1", "service": "web", "port": "http", "method": "POST", "host": "shop",
        "path": "/basket", "status": 200,
    }  # fmt: skip
    assert (line["bytes_out"], line["tries"], line["endpoint"], line["reason"]) == (5, 1, "web-1", "")
    assert (line["request_id"], line["trace_id"]) == ("req-1", trace)
    assert 0 <= line["waited"] <= line["duration"]
    assert 0 < line["first_byte"] <= line["duration"]
    assert not any(secret in json.dumps(line) for secret in ("4711", "geheim")), "nobody logs secrets"


async def test_an_id_that_we_made_is_the_one_that_the_endpoint_saw(mesh: Mesh, lines: Lines) -> None:
    await mesh.add("web-1")
    client, server, head = await mesh.pair()
    await server.send(OK)
    await client.answer()
    line = await one(lines)
    assert line["request_id"] == head["X-Request-Id"]
    assert line["trace_id"] == head["traceparent"].split("-")[1]


async def test_failures_have_a_word(mesh: Mesh, lines: Lines) -> None:
    mesh.traffic = {"timeout": "300ms", "retries": {"attempts": 0}}
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    server.reset()
    await client.answer()
    client, server, _ = await mesh.pair()
    await client.answer()
    client, server, _ = await mesh.pair()
    client.reset()
    await until(lambda: len(lines()) == 3, "three lines")
    mesh.upstreams.clear()
    await mesh.update()
    await mesh.ask()
    await mesh.ask(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    await until(lambda: len(lines()) == 5, "five lines")
    assert [(line["status"], line["reason"]) for line in lines()] == [
        (502, "reset"), (504, "timeout"), (0, "client-left"), (503, "no-endpoint"), (400, "bad-request"),
    ]  # fmt: skip


async def test_a_route_is_named(mesh: Mesh, lines: Lines) -> None:
    port = free_port()
    rule = Rule(host="shop.example.com", to=[Target(service="web", port="http")])
    mesh.routes = {"shop": TableRoute(listen=f"127.0.0.1:{port}", rules=[rule])}
    await mesh.add("web-1", answering(b"hello"))
    client = await mesh.dial(port)
    await client.send(b"GET /a?b HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", b"GET / HTTP/1.1\r\nHost: else\r\n\r\n")
    await client.answer()
    await client.answer()
    await until(lambda: len(lines()) == 2, "two lines")
    served, refused = lines()
    assert (served["route"], served["service"], served["path"]) == ("shop", "web", "/a")
    assert (refused["status"], refused["reason"], refused["host"]) == (404, "no-route", "else")
    assert mesh.count("route_requests", route="shop", code="2xx") == 1
    assert mesh.count("route_refused", code="4xx") == 1


async def test_a_tcp_session_has_a_line_at_its_end(mesh: Mesh, lines: Lines) -> None:
    mesh.protocol = "tcp"
    await mesh.add("web-1")
    client = await mesh.dial()
    await client.send(b"ping")
    server = await mesh.upstream.accept()
    await server.exactly(b"ping")
    await server.send(b"pong!")
    await client.exactly(b"pong!")
    client.finish()
    await server.closed()
    server.close()
    await client.closed()
    line = await one(lines)
    assert (line["kind"], line["service"], line["bytes_in"], line["bytes_out"]) == ("tcp", "web", 4, 5)
    assert (line["endpoint"], line["tries"], line["reason"]) == ("web-1", 1, "")
    await mesh.upstream.stop()
    client = await mesh.dial()
    assert await client.was_reset()
    await until(lambda: len(lines()) == 2, "another line")
    assert lines()[1]["reason"] == "connect-failure"


async def test_successes_are_sampled_failures_are_not(
    file: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "random", random.Random(7).random)
    proxy = ProxyServer(access_log=AccessLog(str(file), 0.25))
    await proxy.start()
    mesh = Mesh(proxy)
    await mesh.add("web-1", answering(b"hello"))
    for _ in range(200):
        await mesh.ask()
    mesh.upstreams[0].stop_listening()
    mesh.states["web-1"] = "gone"
    await mesh.update()
    for _ in range(20):
        await mesh.ask()
    await mesh.close()
    statuses = [line["status"] for line in lines()]
    assert statuses.count(503) == 20
    assert 25 <= statuses.count(200) <= 75


async def test_a_renamed_file_is_opened_anew(mesh: Mesh, file: Path, lines: Lines) -> None:
    await mesh.add("web-1", answering(b"hello"))
    await mesh.ask()
    await one(lines)
    os.rename(file, file.with_suffix(".1"))
    await mesh.ask()
    await one(lines)
    assert len(file.with_suffix(".1").read_text().splitlines()) == 1


async def test_a_disk_that_does_not_take_it_is_a_problem_and_delays_nobody(mesh: Mesh, file: Path) -> None:
    os.mkdir(file)
    await mesh.add("web-1", answering(b"hello"))
    assert (await mesh.ask())[1] == b"hello"
    await until(lambda: bool(mesh.proxy.problems()), "the problem")
    assert mesh.proxy.problems() == [f"access log: cannot write to {file}: is a directory"]
    assert mesh.count("access_log_dropped") == 1
    os.rmdir(file)
    await mesh.ask()
    await until(lambda: not mesh.proxy.problems(), "it writes again")


async def test_lines_that_find_the_buffer_full_are_dropped_and_counted(
    mesh: Mesh, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "MOST_WAITING", 3000)
    go_on = threading.Event()
    append = AccessLog._append

    def slow(log: AccessLog, batch: list[bytes]) -> None:
        go_on.wait(10)
        append(log, batch)

    monkeypatch.setattr(AccessLog, "_append", slow)
    await mesh.add("web-1", answering(b"hello"))
    client = await mesh.dial()
    for _ in range(50):
        await client.send(GET)
        await client.answer()
    await until(lambda: mesh.count("access_log_dropped") > 0, "drops")
    dropped = mesh.count("access_log_dropped")
    go_on.set()
    await until(lambda: len(lines()) + dropped == 50, "the rest is written")


async def test_what_is_waiting_is_written_at_the_end(file: Path, lines: Lines) -> None:
    proxy = ProxyServer(access_log=AccessLog(str(file)))
    await proxy.start()
    mesh = Mesh(proxy)
    await mesh.add("web-1", answering(b"hello"))
    await mesh.ask()
    await mesh.close()
    assert len(lines()) == 1


def test_pieces_for_a_pipe_hold_whole_lines() -> None:
    lines = [b"x" * size for size in (10, 4000, 100, 5000, 1, 4094)]
    pieces = access_log._pieces(lines)
    assert [line for piece in pieces for line in piece] == lines
    assert all(len(b"\n".join(piece)) < access_log.ATOMIC for piece in pieces if len(piece) > 1)


async def test_the_longest_line_fits_into_a_pipe(mesh: Mesh, lines: Lines) -> None:
    await mesh.add("web-1", answering(b"hello"))
    host, request_id = b"h" * 2000, b"i" * 128
    await mesh.ask(b"GET /%b HTTP/1.1\r\nHost: %b\r\nX-Request-Id: %b\r\n\r\n" % (b'"' * 9000, host, request_id))
    assert len(json.dumps(await one(lines))) < access_log.ATOMIC
