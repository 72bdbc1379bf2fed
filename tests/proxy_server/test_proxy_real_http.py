"""Real HTTP servers and clients through one proxy: nginx, gunicorn and uvicorn; curl, wrk, requests and websockets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import requests
import websockets

from tests.parts.ports import free_port
from tests.patience import until
from tests.proxy_server.wire import Mesh, Upstream

WSGI = """
def app(environ, start):
    length = 0
    while piece := environ["wsgi.input"].read(65536):
        length += len(piece)
    start("200 OK", [("Content-Type", "text/plain")])  # no length: in chunks, or until the end
    return [b"%s %d %s" % (environ["REQUEST_METHOD"].encode(), length, environ["HTTP_X_FORWARDED_HOST"].encode())]


def closes(environ, start):  # without having read the request
    start("413 Too Large", [("Content-Length", "2"), ("Connection", "close")])
    return [b"no"]
"""

ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"][::-1]})
    elif scope["type"] == "http":
        length, more = 0, True
        while more:
            message = await receive()
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        headers = dict(scope["headers"])
        text = b"%s %d %s" % (scope["method"].encode(), length, headers[b"x-forwarded-host"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text})
"""

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 256; }}
http {{
    access_log off; client_max_body_size 0; keepalive_requests 50;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "$request_method 0 $http_x_forwarded_host"; }}
        location /files/ {{ alias {folder}/; }}
    }}
}}
"""


@contextmanager
def running(*command: str, port: int, cwd: Path) -> Iterator[None]:
    server = subprocess.Popen(command, cwd=cwd)
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def server_of(name: str, port: int, folder: Path) -> Iterator[None]:
    (folder / "applications.py").write_text(WSGI)
    (folder / "asynchronous.py").write_text(ASGI)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    python = (sys.executable, "-m")
    gunicorn = (*python, "gunicorn", "--log-level", "error", "--bind", f"127.0.0.1:{port}")
    commands = {
        "gunicorn": (*gunicorn, "--worker-class", "gthread", "--threads", "8", "applications:app"),
        "gunicorn sync": (*gunicorn, "applications:app"),
        "gunicorn closes": (*gunicorn, "applications:closes"),
        "uvicorn": (*python, "uvicorn", "--log-level", "error", "--port", str(port), "asynchronous:app"),
        "nginx": ("nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)),
    }
    with running(*commands[name], port=port, cwd=folder):
        yield


@asynccontextmanager
async def behind(mesh: Mesh, name: str, folder: Path) -> AsyncIterator[str]:
    """The URL of a service whose only endpoint is such a server."""
    upstream = Upstream("real-1")
    upstream.port = free_port()
    with server_of(name, upstream.port, folder):
        mesh.upstreams = [upstream]
        await mesh.update()
        yield f"http://127.0.0.1:{mesh.port}/"
        mesh.upstreams = []


async def curl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "30", *arguments, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, arguments
    return out.decode()


def with_requests(url: str, rounds: int) -> Counter[int]:
    """What a pool of kept connections gets, from several threads."""
    with requests.Session() as session, concurrent.futures.ThreadPoolExecutor(4) as threads:
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=4))

        def ask(number: int) -> int:
            if number % 2:
                return session.post(url, data=b"x" * 1000).status_code
            return session.get(url).status_code

        return Counter(threads.map(ask, range(rounds)))


@pytest.mark.curl
@pytest.mark.nginx
@pytest.mark.parametrize("name", ["nginx", "gunicorn", "gunicorn sync", "uvicorn"])
async def test_servers_and_clients(mesh: Mesh, name: str, tmp_path: Path) -> None:
    async with behind(mesh, name, tmp_path) as url:
        host = f"127.0.0.1:{mesh.port}"
        file = tmp_path / "file"
        file.write_bytes(b"f" * 3_000_000)
        length = 0 if name == "nginx" else 3_000_000  # it takes the body, and says nothing of it
        assert await curl(url) == f"GET 0 {host}"
        assert await curl(url, "--http1.0") == f"GET 0 {host}"
        assert await curl(url, "-T", str(file)) == f"PUT {length} {host}"
        assert await curl(url, "-T", str(file), "-H", "Transfer-Encoding: chunked") == f"PUT {length} {host}"
        assert await curl(url, "--data-binary", f"@{file}", "-H", "Expect: 100-continue") == f"POST {length} {host}"
        assert "HTTP/1.1 200" in await curl(url, "--head")
        assert await asyncio.to_thread(with_requests, url, 200) == {200: 200}


@pytest.mark.curl
@pytest.mark.nginx
async def test_files_and_their_ranges(mesh: Mesh, tmp_path: Path) -> None:
    async with behind(mesh, "nginx", tmp_path) as url:
        (tmp_path / "file").write_text("0123456789")
        assert await curl(f"{url}files/file", "--range", "2-4") == "234"
        etag = re.search(r'"\S+"', await curl(f"{url}files/file", "--head"))
        assert etag is not None
        assert " 304 " in await curl(f"{url}files/file", "--include", "-H", f"If-None-Match: {etag[0]}")
        assert " 404 " in await curl(f"{url}files/none", "--include")


@pytest.mark.nginx
@pytest.mark.wrk
@pytest.mark.parametrize("fields", [(), ("-H", "Connection: close")], ids=["kept", "closed"])
async def test_wrk_sees_no_failure(mesh: Mesh, tmp_path: Path, fields: tuple[str, ...]) -> None:
    """The server closes its connections every 50 requests."""
    async with behind(mesh, "nginx", tmp_path) as url:
        process = await asyncio.create_subprocess_exec(
            "wrk", "-t1", "-c32", "-d1s", *fields, url, stdout=subprocess.PIPE
        )
        report = (await process.communicate())[0].decode()
        assert "Requests/sec" in report
        assert "Non-2xx" not in report
        if not fields:  # else it counts the end of each of its connections as an error
            assert "Socket errors" not in report


async def test_requests_reads_the_answer_of_a_server_that_takes_no_upload(mesh: Mesh, tmp_path: Path) -> None:
    """`requests` sends all before it reads; gunicorn closes at once."""
    async with behind(mesh, "gunicorn closes", tmp_path) as url:
        for _ in range(5):
            answer = await asyncio.to_thread(requests.post, url, data=b"x" * 10_000_000, timeout=20)
            assert (answer.status_code, answer.content) == (413, b"no")


async def test_web_sockets_of_uvicorn_and_websockets(mesh: Mesh, tmp_path: Path) -> None:
    async def mirror(peer: websockets.ServerConnection) -> None:
        async for message in peer:
            await peer.send(message[::-1])

    async with behind(mesh, "uvicorn", tmp_path) as url, websockets.serve(mirror, "127.0.0.1", 0) as server:
        for port in (mesh.upstream.port, server.sockets[0].getsockname()[1]):
            mesh.upstream.port = port
            await mesh.update()
            async with websockets.connect(url.replace("http:", "ws:"), max_size=None) as client:
                for text in ("short", "a long one " * 10_000):
                    await client.send(text)
                    assert await client.recv() == text[::-1]
                await (await client.ping())
            assert client.close_code == 1000
        await until(lambda: mesh.count("requests", code="1xx") == 2, "the tunnels' end")
