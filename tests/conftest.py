"""What the whole suite shares: which real parts it runs against, and that it leaves nothing behind.

A test that needs a real part carries its marker (`@pytest.mark.docker`). The header says what was found.
A part that is missing skips its tests with the reason, or fails them where `CI=true`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from tools import debs

CI = os.environ.get("CI", "").lower() in ("1", "true")

SESSION = uuid.uuid4().hex
"""In the environment of all that the suite starts, so that it is found again (see `leftover_processes`)."""
os.environ["MESH_TEST_SESSION"] = SESSION

CONSUL = debs.cache_folder() / "consul" / "root" / "usr" / "bin"
if not shutil.which("consul") and CONSUL.exists():  # fetched by `make test`, found by a bare pytest too
    os.environ["PATH"] += f":{CONSUL}"

signal.signal(signal.SIGINT, signal.default_int_handler)  # else what we start ignores it if our shell's job did

hypothesis.settings.register_profile("suite", deadline=None, database=None)  # no timing, no files in the tree
hypothesis.settings.load_profile("suite")


class Absent(Exception):
    """A real part is not here; the message says what to do."""


def _says(*command: str) -> str:
    """The first line of what a program says of itself."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        raise Absent(f"there is no `{command[0]}` on PATH; `make test` installs it") from None
    except subprocess.TimeoutExpired:
        raise Absent(f"`{' '.join(command)}` does not answer") from None
    said = (done.stdout or done.stderr).strip().splitlines()
    if done.returncode or not said:
        raise Absent(f"`{' '.join(command)}` failed: {' '.join(said[:1])}")
    return said[0]


def _compiler() -> str:
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Absent("there is no Python.h; `make test` installs it")
    return _says("gcc", "--version")


def _wrk() -> str:
    """`wrk -v` says its version and fails."""
    if path := shutil.which("wrk"):
        return path
    raise Absent("there is no `wrk` on PATH; `make test` installs it")


def _sshd() -> str:
    """Who is not root has no /usr/sbin on PATH."""
    if not shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"):
        raise Absent("there is no `sshd` on PATH; `make test` installs it")
    return _says("ssh", "-V")


def _root() -> str:
    if os.geteuid() != 0:
        raise Absent("needs root; `make test` uses sudo")
    return "yes"


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "docker": ("a Docker engine", lambda: _says("docker", "version", "--format", "{{.Server.Version}}")),
    "consul": ("a real Consul", lambda: _says("consul", "version")),
    "redis": ("redis-server", lambda: _says("redis-server", "--version")),
    "postgres": ("PostgreSQL", lambda: _says("psql", "--version")),
    "dnsmasq": ("dnsmasq", lambda: _says("dnsmasq", "--version")),
    "sshd": ("ssh and sshd", _sshd),
    "openssl": ("openssl", lambda: _says("openssl", "version")),
    "dig": ("dig", lambda: _says("dig", "-v")),
    "kdig": ("kdig", lambda: _says("kdig", "-V")),
    "musl": ("musl's compiler", lambda: _says("musl-gcc", "--version")),
    "curl": ("curl", lambda: _says("curl", "--version")),
    "wrk": ("wrk", _wrk),
    "nginx": ("nginx", lambda: _says("nginx", "-v")),
    "gcc": ("a C compiler and Python's headers", _compiler),
    "root": ("root's privileges", _root),
}
"""Marker → what it stands for, and how to find its version."""


@cache
def part(name: str) -> tuple[bool, str]:
    """Whether a real part is here, and its version or what is wrong."""
    try:
        return True, PARTS[name][1]()
    except Absent as reason:
        return False, str(reason)


def pytest_configure(config: pytest.Config) -> None:
    for name, (what, _) in PARTS.items():
        config.addinivalue_line("markers", f"{name}: needs {what}")
    config.addinivalue_line("markers", "slow: takes more than a few seconds")


def pytest_report_header() -> list[str]:
    return ["real parts:"] + [f"  {name:8}{'' if part(name)[0] else 'MISSING: '}{part(name)[1]}" for name in PARTS]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in PARTS:
        if item.get_closest_marker(name) and not part(name)[0]:
            (pytest.fail if CI else pytest.skip)(f"{PARTS[name][0]} is missing: {part(name)[1]}")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No process that a test started outlives the suite, and nothing else of the machine has changed."""
    before = machine()
    yield
    processes = leftover_processes()
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    left = [f"process {pid}: {command}" for pid, command in processes.items()]
    if CI:  # on a developer's machine somebody else may have made the difference
        left += sorted(machine() - before)
        left += [f"no more {thing}" for thing in sorted(before - machine())]
    assert not left, "the suite left behind: " + "; ".join(left)


def machine() -> set[str]:
    """What tests might leave on a machine: containers and volumes of ours, bridges, local routes, mounts."""
    listings = {
        "container": ["docker", "ps", "--all", "--filter", "label=mesh.id", "--format", "{{.Names}}"],
        "volume": ["docker", "volume", "ls", "--filter", "name=mesh-", "--format", "{{.Name}}"],
        "route": ["ip", "route", "show", "table", "local", "dev", "lo"],
    }
    found = set()
    for thing, command in listings.items():
        if shutil.which(command[0]):
            listed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
            found |= {f"{thing} {line.strip()}" for line in listed}
    found |= {f"bridge {folder.parent.name}" for folder in Path("/sys/class/net").glob("*/bridge")}
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return found | {f"mount {point}" for point in points if "/pytest-" in point}


def leftover_processes() -> dict[int, str]:
    """Processes that carry this session's mark in their environment, by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended, or is another user's
            continue
        if pid != os.getpid() and f"MESH_TEST_SESSION={SESSION}".encode() in environment:
            found[pid] = command
    return found
