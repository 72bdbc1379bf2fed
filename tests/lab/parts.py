"""What runs on a host: a Docker engine, a Consul agent, the mesh."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import docker
from docker.errors import DockerException

from tests.lab import security, store
from tests.lab.host import Host
from tests.lab.switch import address
from tests.lab.system import NAME, LabError, until
from tests.parts.consul import consul_binary

SCHEDULERS = 3
"""Hosts that run a scheduler; one of them leads."""


# ── Docker


def start_engine(host: Host) -> None:
    """Containers outlive it (live-restore), as on any host that is upgraded in place."""
    number = int(host.name[1:])
    (host.folder / "data").mkdir(exist_ok=True)
    (host.folder / "engine").unlink(missing_ok=True)  # of one that was killed; its number may be another's by now
    host.start("dockerd", [
        "dockerd", "--data-root", host.folder / "data", "--exec-root", "/run/docker",
        "--pidfile", host.folder / "engine", "--host", engine(host),
        "--bip", f"10.88.{number}.1/24", "--cgroup-parent", f"/{NAME}-{host.name}",
        "--default-address-pool", f"base=10.{90 + number}.0.0/16,size=24", "--live-restore", "--log-level", "warn",
    ])  # fmt: skip


def engine(host: Host) -> str:
    return f"unix://{host.folder}/docker.sock"


def engine_answers(host: Host) -> bool:
    try:
        client = client_of(host)
        client.ping()
        client.close()
    except DockerException:
        return False
    return True


def client_of(host: Host) -> Any:
    return docker.APIClient(base_url=engine(host), version="auto", timeout=20)


def load_image(hosts: Sequence[Host], archive: bytes) -> None:
    """The image into the engine of every host."""
    for host in hosts:
        client = client_of(host)
        client.load_image(archive)
        client.close()


# ── Consul


def start_consul(host: Host, servers: Sequence[str]) -> None:
    """A server on the hosts named, a client elsewhere; raft as fast as Consul allows."""
    joins = [word for server in servers for word in ("-retry-join", address(server))]
    role: list[str | Path] = ["-server", "-bootstrap-expect", str(len(servers))] if host.name in servers else []
    if security.is_on():
        file = host.folder / "consul.json"
        file.write_text(json.dumps(security.consul_config(host.name)))
        role += ["-config-file", file]
    host.start("consul", [
        consul_binary(), "agent", *role, "-node", host.name, "-data-dir", host.folder / "consul", "-bind", host.address,
        "-client", f"{host.address} 127.0.0.1", *joins, "-retry-interval", "1s",
        "-hcl", "performance { raft_multiplier = 1 }", "-hcl", "leave_on_terminate = false",
        # else a server that was away becomes no voter for a while, and the next one lost takes the quorum with it
        "-hcl", "autopilot { cleanup_dead_servers = false }",
        "-hcl", "disable_update_check = true", "-hcl", "limits { http_max_conns_per_client = 2000 }",
    ])  # fmt: skip


def store_answers(host: Host) -> bool:
    """Whether the host's Consul knows a leader."""
    try:
        with store.ask(host.name, "/v1/status/leader", timeout=2) as answer:
            return bool(json.load(answer))
    except (OSError, ValueError):
        return False


# ── the mesh


def start_scheduler(host: Host) -> None:
    _mesh(host, "scheduler", "--name", host.name, "--admin-listen", f"{host.address}:7071")


def start_agent(host: Host, *options: str) -> None:
    _mesh(host, "agent", "--node", host.name, "--address", host.address, "--state", str(host.folder / "state"),
          "--docker-host", engine(host), "--admin-listen", f"{host.address}:7070",
          "--label", f"zone=z{int(host.name[1:]) % 2 + 1}", "--label", f"host={host.name}",
          "--dns-listen", f"{host.address}:53", "--dns-listen", "127.0.0.1:53", *options)  # fmt: skip


def _mesh(host: Host, command: str, *options: str) -> None:
    variables = security.variables(security.MESH, host.name)
    host.start(command, [sys.executable, "-m", "mesh.cli", command, *options], variables)


def agent_is_ready(host: Host) -> bool:
    return _is_ready(f"{host.address}:7070")


def scheduler_is_ready(host: Host) -> bool:
    return _is_ready(f"{host.address}:7071")


def _is_ready(admin: str) -> bool:
    try:
        with urlopen(f"http://{admin}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def until_up(host: Host, part: str) -> None:
    """Waits until a part answers.

    Raises:
        LabError: with the end of its log, if it does not.
    """
    asked = {"dockerd": engine_answers, "consul": store_answers, "agent": agent_is_ready}[part]

    def answers() -> bool:
        if not host.runs(part):
            raise LabError(f"{part} on {host.name} has ended")
        return asked(host)

    try:
        until(answers, f"{part} on {host.name}", timeout=60)
    except LabError as error:
        raise LabError(f"{error}; its log ends with:\n{host.log(part)}") from None
