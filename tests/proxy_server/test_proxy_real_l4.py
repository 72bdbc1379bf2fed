"""Real clients and servers on layer 4: PostgreSQL, dnsmasq with dig, HTTP/2 with curl, TLS with curl and openssl."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from mesh.table import Rule, TableRoute, Target
from tests.parts.ports import free_port
from tests.patience import soon, until
from tests.proxy_server import certificates
from tests.proxy_server.test_proxy_tls import in_files
from tests.proxy_server.wire import Mesh, Upstream, answering


async def run(*command: str, given: bytes = b"") -> str:
    """What a program says."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(given), 20)
    return out.decode(errors="replace")


async def serve(mesh: Mesh, port: int, protocol: str) -> None:
    """A service whose only endpoint listens on `port`."""
    upstream = Upstream("real-1")
    upstream.port = port
    mesh.protocol = protocol
    mesh.upstreams = [upstream]
    await mesh.update()


# ── PostgreSQL


@pytest.fixture(scope="module")
def postgres() -> Iterator[int]:
    """The port of a server of our own; root lets the package's user run it, since PostgreSQL will not run as root."""
    user = "postgres" if os.geteuid() == 0 else None
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))[-1]
    folder = tempfile.mkdtemp(prefix="mesh-postgres-")
    if user:
        shutil.chown(folder, user)
    port = free_port()
    initdb = [f"{programs}/initdb", "-D", folder, "-A", "trust", "-U", "mesh", "--no-sync", "--locale=C"]
    subprocess.run(initdb, user=user, cwd="/", check=True, capture_output=True)
    settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    options = [word for setting in settings for word in ("-c", setting)]
    server = subprocess.Popen(
        [f"{programs}/postgres", "-D", folder, *options], user=user, cwd="/", stderr=subprocess.DEVNULL
    )
    try:
        _wait_for_port(port)
        yield port
    finally:
        server.send_signal(2)  # "fast" shutdown
        server.wait(20)
        shutil.rmtree(folder)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.05)


@pytest.mark.postgres
async def test_postgresql(mesh: Mesh, postgres: int) -> None:
    """Both ways in bulk, errors, and sessions that last."""
    await serve(mesh, postgres, "tcp")
    psql = ["psql", "-h", "127.0.0.1", "-p", str(mesh.port), "-U", "mesh", "-d", "postgres", "-qAtX"]
    assert await run(*psql, "-c", "select 1 + 1") == "2\n"
    assert "does not exist" in await run(*psql, "-c", "select nothing")
    rows = b"".join(b"%d\t%032d\n" % (number, number) for number in range(50_000))
    script = b"create table rows (number int, text text);\ncopy rows from stdin;\n" + rows + b"\\.\n"
    assert await run(*psql, given=script + b"select count(*), sum(number) from rows;\n") == "50000|1249975000\n"
    assert await run(*psql, "-c", "copy rows to stdout") == rows.decode()
    assert mesh.count("bytes", direction="in") > len(rows)
    assert mesh.count("bytes", direction="out") > len(rows)
    await until(lambda: mesh.count("connections") == 0, "all sessions' end")
    mesh.upstreams = []


# ── DNS


@pytest.mark.dnsmasq
@pytest.mark.dig
async def test_dig_through_udp_and_tcp(mesh: Mesh) -> None:
    """Each by a port of its own; a real server answers."""
    port = free_port()
    records = [f"--address=/{number}.example.test/192.0.2.{number}" for number in range(1, 9)]
    command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
               f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file=",
               "--user=root", *records]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        await asyncio.to_thread(_wait_for_port, port)
        for protocol, flag in (("udp", "+notcp"), ("tcp", "+tcp")):
            mesh.port = free_port()
            await serve(mesh, port, protocol)
            questions = [f"{number}.example.test" for number in range(1, 9)]
            dig = ["dig", "@127.0.0.1", "-p", str(mesh.port), flag, "+short", "+tries=1"]
            assert (await run(*dig, *questions)).split() == [f"192.0.2.{number}" for number in range(1, 9)]
    finally:
        server.terminate()
        server.wait()
        mesh.upstreams = []


# ── HTTP/2 through a tcp port


class Http2(asyncio.Protocol):
    """Answers each request with its path, and its body's length."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._paths: dict[int, bytes] = {}
        self._sizes: dict[int, int] = {}
        self._http.initiate_connection()
        self.transport.write(self._http.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self._http.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                fields = {bytes(name): bytes(value) for name, value in event.headers}
                self._paths[event.stream_id], self._sizes[event.stream_id] = fields[b":path"], 0
            elif isinstance(event, h2.events.DataReceived):
                self._sizes[event.stream_id] += len(event.data)
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                stream = event.stream_id
                self._http.send_headers(stream, [(":status", "200"), ("grpc-status", "0")])
                answer = b"%b %d\n" % (self._paths[stream], self._sizes[stream])
                self._http.send_data(stream, answer, end_stream=True)
        self.transport.write(self._http.data_to_send())


async def many_streams(port: int, count: int) -> dict[int, bytes]:
    """Bodies by stream, of as many requests side by side on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    http = h2.connection.H2Connection()
    http.initiate_connection()
    for number in range(count):
        fields = [(":method", "GET"), (":path", f"/{number}"), (":scheme", "http"), (":authority", "web")]
        http.send_headers(2 * number + 1, fields, end_stream=True)
    writer.write(http.data_to_send())
    bodies: dict[int, bytes] = {}
    ended = 0
    while ended < count:
        for event in http.receive_data(await soon(reader.read(65536))):
            if isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
            ended += isinstance(event, h2.events.StreamEnded)
        writer.write(http.data_to_send())
    writer.close()
    return bodies


@pytest.mark.curl
async def test_http2_passes_through_a_tcp_port(mesh: Mesh) -> None:
    """Per connection, as gRPC does: streams side by side, and flow control in bulk."""
    server = await asyncio.get_running_loop().create_server(Http2, "127.0.0.1", 0)
    await serve(mesh, server.sockets[0].getsockname()[1], "tcp")
    body = b"x" * 3_000_000
    curl = ["curl", "-sS", "--http2-prior-knowledge", f"http://127.0.0.1:{mesh.port}/upload"]
    assert await run(*curl, "--data-binary", "@-", given=body) == f"/upload {len(body)}\n"
    assert await many_streams(mesh.port, 50) == {2 * number + 1: b"/%d 0\n" % number for number in range(50)}
    mesh.upstreams = []
    server.close()


# ── TLS


@pytest.mark.curl
@pytest.mark.openssl
async def test_curl_and_openssl_with_sni(mesh: Mesh, tmp_path: Path) -> None:
    """Certificates that they verify for themselves."""
    port = free_port()
    for name in ("shop", "blog"):
        pair = certificates.make(tmp_path, name, f"{name}.test")
        to = [Target(service="web", port="http")]
        mesh.routes[name] = TableRoute(
            listen=f"127.0.0.1:{port}", rules=[Rule(host=f"{name}.test", to=to)], tls=in_files(pair)
        )
    await mesh.add("web-1", answering(b"hello"))
    for name in ("shop", "blog"):
        certificate = str(tmp_path / f"{name}.crt")
        resolve = ["--resolve", f"{name}.test:{port}:127.0.0.1"]
        curl = ["curl", "-sS", "--cacert", certificate, *resolve, f"https://{name}.test:{port}/"]
        assert await run(*curl) == "hello"
        client = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", f"{name}.test",
                  "-CAfile", certificate, "-verify_hostname", f"{name}.test", "-verify_return_error"]  # fmt: skip
        said = await run(*client)
        assert "Verify return code: 0 (ok)" in said
        assert "TLSv1.3" in said
    wrong = ["curl", "-sS", "--cacert", str(tmp_path / "shop.crt"), "--resolve", f"blog.test:{port}:127.0.0.1",
             f"https://blog.test:{port}/"]  # fmt: skip
    assert "certificate" in await run(*wrong)
