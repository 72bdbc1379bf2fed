"""The example application by itself: the web front end, its Redis client, the stand-in for Redis, the resolver."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from dnslib import QTYPE, RR, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from guestbook import entries, redis, resolve, web
from tests.parts.ports import free_port
from tests.patience import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"


def wait_for(port: int) -> None:
    def listens() -> bool:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True

    eventually(listens, f"somebody listens on {port}")


def start(*command: str, **environment: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES), "HOST": "127.0.0.1", **environment}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(params=["stand-in", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a Redis: the example's own, then the real one."""
    port = free_port()
    if request.param == "stand-in":
        command = [sys.executable, "-m", "guestbook.entries"]
    else:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = start(*command, PORT_REDIS=str(port))
    wait_for(port)
    yield port
    process.terminate()
    process.wait()


@pytest.fixture
def server(store: int) -> Iterator[web.Server]:
    book = web.Guestbook(redis.Redis("127.0.0.1", store))
    server = web.Server(("127.0.0.1", 0), book, greeting="Hi <there>", replica="web-1-beef")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop()
    thread.join()


def ask(server: web.Server, method: str, path: str, body: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)  # type: ignore[arg-type]
    connection.request(method, path, body, {"Content-Type": "application/x-www-form-urlencoded"})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_entries_are_kept_newest_first_and_shown_escaped(server: web.Server) -> None:
    for text in ("first", "<b>second</b>"):
        assert ask(server, "POST", "/entries", urlencode({"text": text}))[0] == 303
    status, body = ask(server, "GET", "/api")
    assert status == 200
    assert json.loads(body) == {
        "greeting": "Hi <there>",
        "replica": "web-1-beef",
        "entries": ["<b>second</b>", "first"],
    }
    page = ask(server, "GET", "/")[1]
    assert "&lt;b&gt;second&lt;/b&gt;" in page
    assert "<h1>Hi &lt;there&gt;</h1>" in page
    assert "answered by web-1-beef" in page


@pytest.mark.parametrize(("method", "path", "body", "status"), [
    ("GET", "/healthz", "", 200), ("GET", "/nothing", "", 404),
    ("POST", "/entries", "", 400), ("POST", "/entries", "text=+", 400), ("POST", "/elsewhere", "text=x", 400),
    ("POST", "/entries", "text=" + "x" * 10_000, 400),
])  # fmt: skip
def test_what_is_no_entry_is_refused(server: web.Server, method: str, path: str, body: str, status: int) -> None:
    assert ask(server, method, path, body)[0] == status


def test_without_redis_the_page_says_so_and_health_stays_good() -> None:
    book = web.Guestbook(redis.Redis("127.0.0.1", free_port()))
    server = web.Server(("127.0.0.1", 0), book, greeting="Hi", replica="web-1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    assert ask(server, "GET", "/api")[0] == 503
    assert ask(server, "GET", "/healthz")[0] == 200
    server.stop()
    thread.join()


def test_sigterm_lets_a_request_under_way_end() -> None:
    """Redis answers only after SIGTERM was sent; the request still gets its answer, and the process then exits."""
    with socket.create_server(("127.0.0.1", 0)) as slow_redis:
        port = free_port()
        process = start(
            sys.executable, "-m", "guestbook.web",
            PORT_HTTP=str(port), REDIS=f"127.0.0.1:{slow_redis.getsockname()[1]}",
        )  # fmt: skip
        wait_for(port)
        idle = socket.create_connection(("127.0.0.1", port))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/api")
        asked, _ = slow_redis.accept()
        asked.recv(1000)
        process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""  # an idle connection is closed: it has begun to stop
        asked.sendall(b"*1\r\n$4\r\nlate\r\n")
        assert json.loads(connection.getresponse().read())["entries"] == ["late"]
        connection.close()
        assert process.wait(10) == 0


def test_a_redis_that_was_replaced_is_found_again(store: int) -> None:
    client = redis.Redis("127.0.0.1", store)
    client.command("LPUSH", "entries", "one")
    assert client._connection is not None
    client._connection._socket.shutdown(socket.SHUT_RDWR)
    assert client.command("LRANGE", "entries", 0, -1) == [b"one"]


def test_redis_refusals_are_errors(store: int) -> None:
    with pytest.raises(redis.RedisError, match="ERR"):
        redis.Redis("127.0.0.1", store).command("NOSUCH")


@given(st.lists(st.binary(max_size=20)), st.integers(-30, 30), st.integers(-30, 30))
def test_the_stand_in_cuts_lists_as_redis_documents(items: list[bytes], first: int, last: int) -> None:
    """LRANGE: both ends included, negative ones count from the end, out of range is no error."""
    size = len(items)
    begin = max(first if first >= 0 else size + first, 0)
    end = last if last >= 0 else size + last
    expected = [item for index, item in enumerate(items) if begin <= index <= end]
    lists = defaultdict(deque, {b"l": deque(items)})
    assert entries.answer(lists, [b"LRANGE", b"l", b"%d" % first, b"%d" % last]).startswith(b"*%d\r\n" % len(expected))


@given(st.binary(max_size=200))
def test_the_stand_in_survives_any_bytes(noise: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(noise)
        reader.feed_eof()
        while words := await entries.read_command(reader):
            entries.answer(defaultdict(deque), words)

    asyncio.run(read())


@given(st.lists(st.ip_addresses(v=4), max_size=5))
def test_the_resolver_reads_answers(addresses: list[object]) -> None:
    question = DNSRecord.question("redis.svc.cluster")
    reply = question.reply()
    for address in addresses:
        reply.add_answer(RR("redis.svc.cluster", QTYPE.A, rdata=A(str(address)), ttl=5))
    if not addresses:
        with pytest.raises(OSError, match="no address"):
            resolve.first_address(reply.pack(), question.pack())
    else:
        assert resolve.first_address(reply.pack(), question.pack()) == str(addresses[0])


@pytest.mark.docker
@pytest.mark.slow
def test_the_images_are_made_once() -> None:
    command = [sys.executable, "-m", "guestbook.images"]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    root = EXAMPLES.parent
    subprocess.run(command, cwd=root, env=env, check=True)
    again = subprocess.run(command, cwd=root, env=env, check=True, capture_output=True, text=True).stdout
    assert again.splitlines() == ["guestbook-web:1: is here already", "guestbook-redis:1: is here already"]
    said = subprocess.run(
        ["docker", "run", "--rm", "--network", "none", "guestbook-web:1", "python3", "-c", "import guestbook.web"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (said.returncode, said.stderr) == (0, "")
