"""What is missing or misconfigured on this host, and how to mend it: `mesh doctor`.

Each check is a pure function of what was observed; `examine` observes.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

from mesh.keys import Keys
from mesh.model import ClusterConfig
from mesh.settings import AgentSettings, StoreSettings
from mesh.store import StoreError
from mesh.store.consul import ConsulStore
from mesh.store.diagnosis import StoreDiagnosis, diagnose
from mesh.view import decode_document

Level = Literal["ok", "warn", "fail"]

OLDEST_PYTHON = (3, 11)
OLDEST_ENGINE = (20, 10)
SLOW_WRITE = 0.05
"""Seconds; a write takes part in every reaction."""
CLOCK_WARN, CLOCK_FAIL = 2.0, 60.0
SPACE_WARN, SPACE_FAIL = 2**30, 100 * 2**20
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN = 10, 12
"""Bits of CapEff (linux/capability.h)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says; `mend`: what to do, where something is to be done."""

    check: str
    level: Level
    what: str
    mend: str = ""


def python(version: tuple[int, ...]) -> Finding:
    text = ".".join(map(str, version[:3]))
    if version < OLDEST_PYTHON:
        return Finding("python", "fail", f"Python {text} is too old", "install Python 3.11 or newer")
    return Finding("python", "ok", f"Python {text}")


def engine(answer: Mapping[str, Any] | str, wanted: str, *, here: bool = True) -> Finding:
    """`answer`: of the engine's /version, or why there is none; `wanted`: the agent's runtime; `here`: by a socket."""
    if wanted == "process":
        return Finding("engine", "ok", "not needed: runtime process")
    if isinstance(answer, str):
        level: Level = "fail" if wanted == "docker" else "warn"
        if not here:  # what bars the way says itself how to open it, as far as this side can know
            return Finding("engine", level, answer, "see that it runs on its host and is let be reached from here "
                           "(docs/engines.md), set DOCKER_HOST to another, or use --runtime process")  # fmt: skip
        if "ermission" in answer:
            mend = "add this user to the group docker (usermod -aG docker $USER, then log in again), or run as root"
            return Finding("engine", "fail", answer, mend)
        return Finding("engine", level, answer, "start Docker (Debian: apt-get install docker.io), set DOCKER_HOST, "
                       "or use --runtime process")  # fmt: skip
    version = str(answer.get("Version", "?"))
    found = f"Docker {version} answers (API {answer.get('ApiVersion', '?')})"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_ENGINE:
        return Finding("engine", "warn", f"{found}; older than 20.10 is not tested", "upgrade Docker")
    return Finding("engine", "ok", found)


def port(what: str, flag: str, address: str, refused: OSError | None, *, ours: bool) -> Finding:
    """Whether `address` can be listened on; `ours`: what holds it belongs to this host's mesh."""
    check = f"port {address}"
    if refused is None:
        return Finding(check, "ok", f"free for {what}")
    if ours and refused.errno == errno.EADDRINUSE:
        return Finding(check, "ok", f"held by the mesh that runs here, for {what}")
    if refused.errno in (errno.EACCES, errno.EPERM):
        return Finding(check, "fail", f"{what} may not listen there: ports below the unprivileged range need root",
                       f"run as root, give CAP_NET_BIND_SERVICE, or use {flag} with a port from 1024")  # fmt: skip
    if refused.errno == errno.EADDRINUSE:
        return Finding(check, "fail", f"another program holds it, {what} cannot listen there",
                       f"see who (ss -lnp 'sport = :{address.rpartition(':')[2]}'), or use {flag}")  # fmt: skip
    return Finding(check, "fail", f"{what} cannot listen there: {os.strerror(refused.errno or 0)}", f"use {flag}")


def privileges(uid: int, capabilities: int, lowest_port: int) -> Finding:
    """`capabilities`: CapEff; `lowest_port`: ip_unprivileged_port_start."""
    if uid == 0 and capabilities >> CAP_NET_ADMIN & 1:
        return Finding("privileges", "ok", "root: real virtual IPs and every port")
    lacking = []
    if not capabilities >> CAP_NET_ADMIN & 1:
        lacking.append("no CAP_NET_ADMIN: services get addresses of 127/8 instead of real virtual IPs")
    if not capabilities >> CAP_NET_BIND_SERVICE & 1 and lowest_port > 53:
        lacking.append(f"ports below {lowest_port} are not allowed: service port 80 becomes 8080, DNS is not on 53")
    if not lacking:
        return Finding("privileges", "ok", "enough for real virtual IPs and every port")
    return Finding("privileges", "warn", "; ".join(lacking), "run the agent as root; for one machine this is fine")


def vip_route(vip_range: str, accepted: bool, may_add: bool, wanted: str = "auto") -> Finding:
    """`wanted`: the agent's `vips`."""
    if wanted == "loopback":
        return Finding("vip route", "ok", "not needed: vips loopback")
    if accepted:
        return Finding("vip route", "ok", f"this host accepts {vip_range}")
    if may_add:
        return Finding("vip route", "ok", f"no route for {vip_range} yet; the agent adds it")
    mend = f"as root: ip route add local {vip_range} dev lo; without it services get addresses of 127/8"
    return Finding("vip route", "warn", f"this host does not accept {vip_range}", mend)


def clock(skew: float | None) -> Finding:
    """`skew`: seconds that this host's clock is ahead of the store's."""
    if skew is None:
        return Finding("clock", "warn", "cannot be compared with the store's", "let the store answer first")
    if abs(skew) < CLOCK_WARN:
        return Finding("clock", "ok", "agrees with the store's")
    side = "ahead of" if skew > 0 else "behind"
    level: Level = "fail" if abs(skew) >= CLOCK_FAIL else "warn"
    return Finding("clock", level, f"{abs(skew):.0f} s {side} the store's: ages and events are off",
                   "run an NTP client on both (Debian: apt-get install chrony)")  # fmt: skip


def store(found: StoreDiagnosis, session_ttl: float) -> list[Finding]:
    if found.error:
        return [Finding("store", "fail", found.error, "set --store, MESH_STORE or CONSUL_HTTP_ADDR (and "
                        "CONSUL_HTTP_TOKEN), or start one here: mesh dev")]  # fmt: skip
    version = f" {found.version}" if found.version else ""
    findings = [Finding("store", "ok", f"{found.address}{version} answers, leader {found.leader}")]
    if found.write_seconds is not None:
        took = f"a write takes {found.write_seconds * 1000:.1f} ms"
        slow = Finding("store writes", "warn", f"{took}: every reaction waits for it", "give the servers a faster disk "
                       "and a nearer network")  # fmt: skip
        findings.append(slow if found.write_seconds > SLOW_WRITE else Finding("store writes", "ok", took))
    if found.raft_multiplier is not None and found.raft_multiplier > 1:
        findings.append(Finding(
            "store elections", "warn",
            f"raft_multiplier is {found.raft_multiplier:g}: writes pause 11 to 19 s in an election",
            "on each server: performance { raft_multiplier = 1 } (pause 2.4 to 3.8 s)",
        ))  # fmt: skip
    if found.short_sessions is False and session_ttl < 10:
        findings.append(Finding("store sessions", "fail", f"refuses sessions of {session_ttl:g} s",
                                'on each server: session_ttl_min = "1s", or session_ttl = "10s" here'))  # fmt: skip
    if found.max_connections_per_client is not None and found.max_connections_per_client < 100:
        findings.append(Finding(
            "store connections", "warn", f"only {found.max_connections_per_client} connections per client address",
            "on each server: limits { http_max_conns_per_client = 200 } or more",
        ))  # fmt: skip
    return findings


def space(folder: Path, free: int) -> Finding:
    what = f"{free / 2**30:.1f} GiB free for {folder}"
    if free < SPACE_WARN:
        return Finding("disk", "fail" if free < SPACE_FAIL else "warn", what, "make room, or use --state elsewhere")
    return Finding("disk", "ok", what)


def resolvers(resolv_conf: str, dns_listen: Iterable[str], upstreams: Sequence[str], local: Iterable[str]) -> Finding:
    """Whether other names can be forwarded, and not to ourselves; `local`: addresses of this host."""
    ours = {address.rpartition(":")[0].strip("[]") for address in dns_listen if address.endswith(":53")}
    if ours & {"0.0.0.0", "::"}:
        ours |= set(local)
    servers = list(upstreams) or re.findall(r"^\s*nameserver\s+(\S+)", resolv_conf, re.MULTILINE)
    source = "upstreams" if upstreams else "/etc/resolv.conf"
    others = [server for server in servers if _address(server) not in ours]
    if not servers:
        return Finding("resolvers", "warn", f"{source} names no server: only our own names resolve", "set --upstream")
    if not others:
        return Finding("resolvers", "fail", f"{source} names only our own DNS ({', '.join(servers)}): a loop",
                       "set --upstream to the network's DNS server")  # fmt: skip
    return Finding("resolvers", "ok", f"other names are forwarded to {', '.join(others)}")


def _address(server: str) -> str:
    """The address in `address`, `address:port` or `[v6]:port`."""
    try:
        return str(ipaddress.ip_address(server))
    except ValueError:
        return server.rpartition(":")[0].strip("[]")


# ── observing ────────────────────────────────────────────────────────────────────────────────


async def examine(settings: AgentSettings) -> list[Finding]:
    """All checks, for an agent with these settings."""
    from mesh.dataplane.workers import refused_addresses

    diagnosis, vip_range, skew, (engine_answer, engine_here), runs_here = await asyncio.gather(
        diagnose(settings.store),
        _vip_range(settings.store),
        _clock_skew(settings.store),
        _engine_answer(settings),
        _agent_answers(settings.admin_listen),
    )
    listens = dict.fromkeys(settings.dns_listen, ("DNS", "--dns-listen"))
    listens[settings.admin_listen] = ("admin HTTP", "--admin-listen")
    refused = refused_addresses(list(listens))
    capabilities = _capabilities()
    return [
        python(sys.version_info[:3]),
        engine(engine_answer, settings.runtime, here=engine_here),
        *(port(what, flag, address, refused.get(address), ours=runs_here)
          for address, (what, flag) in listens.items()),
        privileges(os.geteuid(), capabilities, _lowest_port()),
        vip_route(vip_range, _accepts(vip_range), bool(capabilities >> CAP_NET_ADMIN & 1), settings.vips),
        *store(diagnosis, settings.session_ttl),
        clock(skew),
        space(settings.state, _free_space(settings.state)),
        resolvers(_text("/etc/resolv.conf"), settings.dns_listen, settings.upstreams, _local_addresses()),
    ]  # fmt: skip


async def _vip_range(settings: StoreSettings) -> str:
    """The cluster's; as shipped where it cannot be asked."""
    try:
        store = ConsulStore(settings)
    except StoreError:
        return ClusterConfig().vip_range
    try:
        entry = await store.get(Keys(settings.root).config)
        config = decode_document(entry.value, ClusterConfig) if entry else ClusterConfig()
    except (StoreError, ValueError):
        config = ClusterConfig()
    finally:
        await store.close()
    return config.vip_range


async def _engine_answer(settings: AgentSettings) -> tuple[Mapping[str, Any] | str, bool]:
    """What the engine answers, and whether it is reached by a socket of this machine."""
    from mesh.runtime import RuntimeFault
    from mesh.runtime.docker_engine import Engine

    if settings.runtime == "process":
        return "not asked", True
    engine = Engine(settings.docker_host)
    try:
        answer: Mapping[str, Any] = await engine.call(lambda api: api.version(), timeout=5.0)
    except RuntimeFault as fault:
        return str(fault), engine.local
    finally:
        engine.close()
    return answer, engine.local


async def _agent_answers(admin: str) -> bool:
    """Whether what listens at the admin address is an agent of ours."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=2.0)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"http://{admin}/v1/replicas") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return False


async def _clock_skew(settings: StoreSettings) -> float | None:
    """By the Date header, which is exact to a second. No token is sent, so that TLS need not be verified."""
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as http,
            http.get(f"{settings.address}/v1/status/leader", ssl=False) as response,
        ):
            there = parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
        return None
    return time.time() - (there + 0.5)


def _capabilities() -> int:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", _text("/proc/self/status"), re.MULTILINE)
    return int(match[1], 16) if match else 0


def _lowest_port() -> int:
    text = _text("/proc/sys/net/ipv4/ip_unprivileged_port_start").strip()
    return int(text) if text.isdecimal() else 1024


def _accepts(vip_range: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ipaddress.ip_network(vip_range)[1]), 0))
        except OSError:
            return False
    return True


def _free_space(folder: Path) -> int:
    return shutil.disk_usage(next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())).free


def _local_addresses() -> list[str]:
    return sorted({str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)} | {"127.0.0.1", "::1"})


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
