"""The host's local route for the virtual IPs (the kernel's AnyIP): `ip route add local 10.96.0.0/16 dev lo`."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

CAP_NET_BIND_SERVICE = 10
"""Its bit among a process's capabilities, see capabilities(7)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VipMode:
    """How this node answers for virtual IPs, and the sentence why."""

    mode: str  # route | loopback
    why: str
    added: bool = False  # by us, just now


async def choose(wanted: str, vip_range: str) -> VipMode:
    """`route` where asked for, or possible; makes the route if it is not there.

    Raises:
        OSError: if `wanted` is `route` and it cannot be had.
    """
    if wanted == "loopback":
        return VipMode("loopback", "asked for with vips=loopback")
    if _binds(vip_range):
        return VipMode("route", f"the host accepts {vip_range} already")
    fault = await _ip("add", vip_range)
    if not fault:
        log.info("vips: added the local route for %s", vip_range)
        return VipMode("route", f"local route for {vip_range}", added=True)
    if wanted == "route":
        raise OSError(f"cannot add the local route for {vip_range}: {fault}: run as root, or use vips=loopback")
    return VipMode("loopback", f"no local route for {vip_range} ({fault})")


async def remove(vip_range: str) -> None:
    if fault := await _ip("del", vip_range):
        log.warning("vips: cannot remove the local route for %s: %s", vip_range, fault)


async def _ip(verb: str, vip_range: str) -> str:
    """Runs `ip route VERB local …`; what went wrong, or nothing."""
    try:
        process = await asyncio.create_subprocess_exec(
            "ip", "route", verb, "local", vip_range, "dev", "lo",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        return "there is no `ip` command (Debian package iproute2)"
    _, errors = await process.communicate()
    if process.returncode == 0:
        return ""
    return errors.decode(errors="replace").strip().splitlines()[-1] if errors else f"ip ended with {process.returncode}"


def _binds(vip_range: str) -> bool:
    """Whether an address of the range can be bound: somebody has made the route."""
    address = ip_network(vip_range)[-2]
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def first_port() -> int:
    """The lowest port that this process may bind."""
    try:
        status = Path("/proc/self/status").read_text()
        if int(status.partition("CapEff:")[2].split()[0], 16) >> CAP_NET_BIND_SERVICE & 1:
            return 1
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError, IndexError):
        return 1024
