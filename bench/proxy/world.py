"""What every proxy stands in front of: two nginx backends, a WebSocket echo, Redis, iperf3. All on the load's core."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import LOAD_CORE, running
from tests.parts.ports import free_port

PATIENCE = 30.0
SMALL = b"x" * 90
LARGE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Backends:
    """Ports on 127.0.0.1."""

    web: tuple[int, int]
    echo: int
    redis: int
    iperf: int


@dataclass(frozen=True)
class Certificate:
    cert: Path
    key: Path


@asynccontextmanager
async def backends(folder: Path) -> AsyncIterator[Backends]:
    found = Backends((free_port(), free_port()), free_port(), free_port(), free_port())
    (folder / "large").write_bytes(b"y" * LARGE_BYTES)
    (folder / "web.conf").write_text(_nginx(folder, found.web))
    programs: dict[str, list[str | Path]] = {
        "web": ["nginx", "-c", folder / "web.conf"],
        "echo": [sys.executable, "-m", "bench.proxy.echo", str(found.echo)],
        "redis": ["redis-server", "--port", str(found.redis), "--save", "", "--bind", "127.0.0.1"],
        "iperf": ["iperf3", "--server", "--port", str(found.iperf), "--bind", "127.0.0.1"],
    }
    async with AsyncExitStack() as stack:
        for name, program in programs.items():
            await stack.enter_async_context(running(program, folder / f"{name}.log", LOAD_CORE))
        for name, port in (("web", found.web[1]), ("echo", found.echo), ("redis", found.redis), ("iperf", found.iperf)):
            await listening(port, folder / f"{name}.log")
        yield found


async def listening(port: int, log: Path) -> None:
    """Waits until somebody accepts there; else shows what its log says."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if loop.time() > deadline:
                raise SystemExit(f"nobody listens on {port}:\n{log.read_text()[-2000:]}") from None  # noqa: ASYNC240
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def make_certificate(folder: Path) -> Certificate:
    """Self-signed, ECDSA P-256, as most sites have."""
    made = Certificate(folder / "bench.crt", folder / "bench.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=bench.test", "-addext", "subjectAltName=DNS:bench.test,DNS:localhost",
         "-keyout", made.key, "-out", made.cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


def _nginx(folder: Path, ports: tuple[int, int]) -> str:
    listens = "".join(f"    listen 127.0.0.1:{port} backlog=4096;\n" for port in ports)
    return f"""daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/web.pid;
error_log {folder}/web.err;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/web-body;
  proxy_temp_path {folder}/web-proxy; fastcgi_temp_path {folder}/web-f; uwsgi_temp_path {folder}/web-u;
  scgi_temp_path {folder}/web-s;
  server {{
{listens}    location = /small {{ default_type text/plain; return 200 "{SMALL.decode()}"; }}
    location = /post {{ default_type text/plain; return 200 "{SMALL.decode()}"; }}
    location = /large {{ default_type text/plain; root {folder}; sendfile on; }}
  }}
}}
"""
