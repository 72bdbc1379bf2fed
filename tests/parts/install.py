"""Gives the suite the real parts that it runs against, runs it, and leaves the machine as it found it.

    python -m tests.parts.install COMMAND…

Missing programs are installed from the machine's own packages (as root, or through sudo) without starting or
enabling a service; Consul comes from PATH or from Debian 11's archive, into a cache folder. Where no Docker engine
answers, one is started with folders of its own, and ended by its pid with all that it changed in the network.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools import debs

PACKAGES = {
    "curl": "curl",
    "dig": "bind9-dnsutils",
    "dnsmasq": "dnsmasq-base",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "gcc": "gcc",
    "ip": "iproute2",
    "iptables": "iptables",
    "kdig": "knot-dnsutils",
    "musl-gcc": "musl-tools",
    "nft": "nftables",
    "nginx": "nginx-light",
    "openssl": "openssl",
    "ps": "procps",
    "psql": "postgresql",
    "redis-cli": "redis-tools",
    "redis-server": "redis-server",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "busybox": "busybox-static",
    "wrk": "wrk",
}
"""Program → the package that brings it, in Debian and Ubuntu alike."""

UNITS = (
    "docker.service",
    "docker.socket",
    "containerd.service",
    "nginx.service",
    "ssh.service",
    "ssh.socket",
    "redis-server.service",
    "postgresql.service",
)
"""What these packages enable: on a machine that did not have them they stay off."""

POLICY = Path("/usr/sbin/policy-rc.d")
"""While it exits with 101, installing a package starts no service (invoke-rc.d(8))."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRRORS = ("http://deb.debian.org/debian", "http://archive.debian.org/debian")


class Missing(Exception):
    """A part that could not be had; the message says why and what to do."""


def main(command: list[str]) -> int:
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    if os.geteuid() != 0 and _may_sudo():
        return _again_as_root(command)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        install_packages()
        os.environ["PATH"] = f"{consul_folder()}:{os.environ['PATH']}"
        with docker_engine() as environment:
            return run(command, environment)
    except (Missing, debs.DebsError) as error:
        print(f"missing part: {error}", file=sys.stderr)
        return 1


def _may_sudo() -> bool:
    """Without a terminal only a sudo that asks for no password will do."""
    if not shutil.which("sudo"):
        return False
    return sys.stdin.isatty() or subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0


def _again_as_root(command: list[str]) -> int:
    """The same once more under sudo, with root's own cache, so that no file of root's lands in the user's."""
    kept = [f"{name}={os.environ[name]}" for name in ("PATH", "CI", "PYTHONDONTWRITEBYTECODE") if name in os.environ]
    again = [sys.executable, "-m", "tests.parts.install", *command]
    return subprocess.run(["sudo", "-H", "env", *kept, *again]).returncode


def run(command: list[str], environment: Mapping[str, str]) -> int:
    """The command's exit code; Ctrl-C reaches the command, whose end is awaited."""
    child = subprocess.Popen(command, env=environment)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue
        except SystemExit:
            child.terminate()
            child.wait()
            raise


# ── packages ─────────────────────────────────────────────────────────────────────────────────


def install_packages() -> None:
    wanted = {package for program, package in PACKAGES.items() if not shutil.which(program)}
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        wanted |= {f"python3.{sys.version_info.minor}-dev", "libc6-dev"}
    missing = sorted(wanted)
    if not missing:
        return
    if os.geteuid() != 0:
        raise Missing(f"run as root or with sudo, or first: apt-get install {' '.join(missing)}")
    if not shutil.which("apt-get"):
        raise Missing(f"this is no Debian or Ubuntu; install what Debian calls {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", flush=True)
    with _no_service_starts():
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", *missing)
    if Path("/run/systemd/system").exists():
        units = [unit for unit in UNITS if unit.partition(".")[0] in " ".join(missing)]
        subprocess.run(["systemctl", "disable", "--quiet", *units], capture_output=True)


def _apt(*arguments: str) -> None:
    command = ["apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=120", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True
    )
    if done.returncode:
        raise Missing(f"{' '.join(command)} failed:\n{done.stderr.strip() or done.stdout.strip()}")


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    if POLICY.exists():  # the machine has its own opinion
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


# ── Consul ───────────────────────────────────────────────────────────────────────────────────


def consul_folder() -> Path:
    """The folder of a `consul`: the one on PATH, or 1.8.7 from Debian 11 (the last release that packages it)."""
    if present := shutil.which("consul"):
        return Path(present).parent
    folder = debs.cache_folder() / "consul"
    program = folder / "root" / "usr" / "bin" / "consul"
    if not program.exists():
        print("fetching Consul from Debian 11", flush=True)
        debs.unpack(_consul_package(folder), folder / "root")
    return program.parent


def _consul_package(folder: Path) -> list[Path]:
    if not Path(KEYRING).exists() and os.geteuid() == 0:  # Ubuntu has it as a package
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", "debian-archive-keyring")
    faults = []
    for mirror in dict.fromkeys((*_configured_mirrors(), *MIRRORS)):
        apt = debs.Apt(folder, f"deb [signed-by={KEYRING}] {mirror} bullseye main")
        try:
            apt.update()
            return apt.fetch(["consul"])
        except debs.DebsError as error:
            faults.append(f"{mirror}: {error}")
    raise Missing("no Consul: put a `consul` on PATH. Tried Debian 11 at\n" + "\n".join(faults))


def _configured_mirrors() -> list[str]:
    """The Debian mirrors of this machine's own sources."""
    listed = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True)
    return [uri.rstrip("/") for uri in listed.stdout.split() if uri.rstrip("/").endswith("/debian")]


# ── Docker ───────────────────────────────────────────────────────────────────────────────────


def engine_answers(environment: Mapping[str, str] | None = None) -> bool:
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


@contextlib.contextmanager
def docker_engine() -> Iterator[Mapping[str, str]]:
    """The environment in which a Docker engine answers: the machine's, or one of our own for as long as this lasts."""
    if engine_answers():
        yield os.environ
        return
    if os.geteuid() != 0:
        raise Missing("no Docker engine answers; start one, or run as root or with sudo")
    with tempfile.TemporaryDirectory(prefix="mesh-engine-", ignore_cleanup_errors=True) as folder, _network_as_it_was():
        environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/docker.sock"}
        engine = _start_engine(Path(folder), environment)
        try:
            yield environment
        finally:
            engine.terminate()
            engine.wait(30)
            _unmount_below(folder)


def _unmount_below(folder: str) -> None:
    """What an engine that could not end in order has left mounted."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", point], capture_output=True)


def _start_engine(folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    print("starting a Docker engine for the tests", flush=True)
    log = folder / "log"
    with log.open("wb") as output:
        engine = subprocess.Popen(
            ["dockerd", "--host", environment["DOCKER_HOST"], "--data-root", f"{folder}/data",
             "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"],
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 60
    while not engine_answers(environment):
        if engine.poll() is not None or time.monotonic() > deadline:
            engine.kill()
            engine.wait()
            raise Missing(f"dockerd does not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)
    return engine


EMPTY_TABLES = b"*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*nat\nCOMMIT\n"
"""iptables-restore(8) touches only the tables it is given; a table that was not in use is not in iptables-save."""


@contextlib.contextmanager
def _network_as_it_was() -> Iterator[None]:
    """An engine leaves its bridge, its firewall rules and IP forwarding behind: put back what was there."""
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    forwarding = forward.read_text()
    rules = subprocess.run(["iptables-save"], capture_output=True).stdout
    had_bridge = subprocess.run(["ip", "link", "show", "docker0"], capture_output=True).returncode == 0
    try:
        yield
    finally:
        if not had_bridge:
            subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True)
        subprocess.run(["iptables-restore"], input=EMPTY_TABLES + rules, capture_output=True)
        if forward.read_text() != forwarding:
            forward.write_text(forwarding)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
