"""A walk through a running mesh: `make demo`.

Starts `mesh dev`, runs the guestbook on it, and shows on the screen what a person would try: names, requests, a killed
replica, a rollout. Every step checks what it shows; a step that does not hold ends the tour with its name.
Nothing but Python, make and this repository is needed; Docker, root and redis-server are used where they are.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from guestbook import images, resolve
from guestbook.cluster import BIN, REPOSITORY, Cluster, GaveUp, Load, wait_until
from tools import debs

HERE = Path(__file__).parent
GREETING = "Hello from the mesh"
NEW_GREETING = "Hello again, from release 2"
VOLUME = "mesh-redis-guestbook"
"""The Docker volume of redis.yaml, which outlives replicas and meshes, but not a demo that made it."""

BOLD, DIM, RED, GREEN, PLAIN = (f"\033[{code}m" if sys.stdout.isatty() else "" for code in (1, 2, 31, 32, 0))


class StepFailed(Exception):
    """What a step shows did not hold."""


def say(text: str = "") -> None:
    print(f"  {text}" if text else "", flush=True)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """One step: its title, what it says, and its time. Any failure in it carries its name."""
    print(f"\n{BOLD}{title}{PLAIN}", flush=True)
    began = time.monotonic()
    try:
        yield
    except (GaveUp, OSError, debs.DebsError, images.ImageError, subprocess.SubprocessError) as error:
        raise StepFailed(f"{title}: {error}") from error
    say(f"{GREEN}✓{PLAIN} {DIM}{time.monotonic() - began:.2f} s{PLAIN}")


def expect(true: bool, sentence: str) -> None:
    if not true:
        raise GaveUp(sentence)


# ── what the machine offers ──────────────────────────────────────────────────────────────────


class Offer:
    """How the guestbook can run here: which runtime, which Redis, and the sentences why."""

    def __init__(self, *, docker: bool) -> None:
        self.path = f"{BIN}:{os.environ['PATH']}"
        self.sentences: list[str] = []
        self.docker = docker and self._has_docker()
        self.specs = [HERE]
        if not self.docker:
            self.sentences.append("The replicas are plain processes.")
            if not self._has_redis():
                self.specs = [HERE / "web.yaml", HERE / "stand-in"]

    def _has_docker(self) -> bool:
        """Whether the replicas can be containers that find each other by name."""
        try:
            command = ["docker", "version", "--format", "{{.Server.Version}}"]
            answer = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            self.sentences.append("There is no Docker here.")
            return False
        if answer.returncode:
            self.sentences.append("No Docker engine answers.")
            return False
        if os.geteuid() != 0:
            self.sentences.append(f"Docker {answer.stdout.strip()} answers, but it takes root to give containers names"
                                  " (port 53 and a route): `sudo make demo` shows them.")  # fmt: skip
            return False
        self.sentences.append(f"Docker {answer.stdout.strip()} answers: the replicas are containers.")
        return True

    def _has_redis(self) -> bool:
        if shutil.which("redis-server"):
            self.sentences.append("The entries are kept in this machine's redis-server.")
            return True
        try:
            folder = redis_from_packages()
        except debs.DebsError as error:
            self.sentences.append(f"There is no redis-server, and none to be had ({error}):"
                                  " the example's own small server takes its place.")  # fmt: skip
            return False
        self.path = f"{folder}:{self.path}"
        self.sentences.append("The entries are kept in Debian's redis-server, unpacked but not installed.")
        return True


def redis_from_packages() -> Path:
    """A folder with a `redis-server` that runs from where it was unpacked. Raises `DebsError`."""
    apt = debs.machine_apt()
    root = debs.unpacked(apt, apt.closure(["redis-server"], without={*images.UNUSED, "libc6"}), "redis")
    libraries = ":".join(str(folder) for folder in (*root.glob("usr/lib/*-linux-*"), *root.glob("lib/*-linux-*")))
    program = root / "bin-mesh" / "redis-server"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {root}/usr/bin/redis-server "$@"\n')
    program.chmod(0o755)
    if subprocess.run([program, "--version"], capture_output=True).returncode:
        raise debs.DebsError("the packages' redis-server does not run here")
    return program.parent


# ── the steps ────────────────────────────────────────────────────────────────────────────────


def start(cluster: Cluster) -> None:
    with step("A cluster on this machine: mesh dev"):
        began = time.monotonic()
        cluster.start()
        os.environ["MESH_DNS"] = cluster.info["dns"]
        say(f"store, scheduler, agent, DNS and proxy are up after {time.monotonic() - began:.2f} s")
        say(f"store {cluster.info['store']}   DNS {cluster.info['dns']}   admin {cluster.info['admin']}")


def apply(cluster: Cluster, specs: list[Path]) -> None:
    with step("Two services are wished for: three web replicas, and the Redis that keeps their entries"):
        names = [str(path.relative_to(REPOSITORY)) for path in specs]
        say(f"$ mesh apply {' '.join(names)}")
        cluster.mesh("apply", *names)
        began = time.monotonic()
        shown = ""

        def all_ready() -> bool:
            nonlocal shown
            ready = {name: len(cluster.ready(name)) for name in ("redis", "web")}
            line = f"redis {ready['redis']}/1, web {ready['web']}/3 ready"
            if line != shown:
                say(f"{time.monotonic() - began:5.2f} s  {line}")
                shown = line
            return ready == {"redis": 1, "web": 3}

        wait_until("all replicas are ready", all_ready)
        wait_until("web sees its Redis", lambda: answers(cluster))


def answers(cluster: Cluster) -> bool:
    with Load(cluster.address("web", "http"), clients=1) as load:
        wait_until("a request was answered", lambda: load.total)
    return not load.failures


def names(cluster: Cluster) -> None:
    with step("Names: every service has one, and one address that stays"):
        for name in ("web.svc.cluster", "redis.svc.cluster", "2.web.svc.cluster"):
            found = resolve.resolve(name)
            say(f"$ {dig(cluster)} +short {name}    {BOLD}{found}{PLAIN}")
            if name == "web.svc.cluster":
                expect(
                    found == cluster.address("web", "http")[0], f"{name} resolves to {found}, which is not its address"
                )


def dig(cluster: Cluster) -> str:
    address, _, port = str(cluster.info["dns"]).rpartition(":")
    return f"dig @{address}" if port == "53" else f"dig @{address} -p {port}"


def requests(cluster: Cluster) -> None:
    with step("Requests: the proxy on this host spreads them over the replicas"):
        host, port = cluster.address("web", "http")
        sign(host, port, "The tour was here.")
        with Load((host, port)) as load:
            wait_until("300 requests were answered", lambda: load.total >= 300)
        for replica, count in sorted(load.answered.items()):
            say(f"{replica}  {count:4}  {'▇' * (count // 5)}")
        expect(not load.failures, f"{len(load.failures)} requests failed: {load.failures[:1]}")
        expect(load.answered.keys() == cluster.ready("web").keys(), "not every replica answered")
        connection = http.client.HTTPConnection(host, port, timeout=10)
        connection.request("GET", "/api")
        entries = json.load(connection.getresponse())["entries"]
        connection.close()
        expect("The tour was here." in entries, "the entry that was signed is not there")
        say("an entry that was signed at one replica is shown by all of them")


def sign(host: str, port: int, text: str) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request("POST", "/entries", urlencode({"text": text}))
    status = connection.getresponse().status
    connection.close()
    expect(status == http.HTTPStatus.SEE_OTHER, f"POST /entries was answered with {status}")


def kill(cluster: Cluster) -> None:
    with step("A replica is killed, under load"):
        before = cluster.ready("web").keys()
        victim = sorted(before)[0]
        with Load(cluster.address("web", "http")) as load:
            wait_until("requests flow", lambda: load.total > 50)
            command = cluster.how_to_kill(victim)
            say(f"$ {command}")
            began = time.monotonic()
            subprocess.run(command, shell=True, check=True, capture_output=True)
            wait_until("it is out of DNS and proxy", lambda: victim not in cluster.ready("web"))
            say(f"{time.monotonic() - began:5.2f} s  {victim} is out of DNS and proxy")
            (new,) = wait_until("its replacement is ready", lambda: cluster.ready("web").keys() - before)
            say(f"{time.monotonic() - began:5.2f} s  {new} has taken its slot and is ready")
            wait_until("the replacement answers", lambda: load.answered[new])
        say(f"{load.total} requests meanwhile, {BOLD}{len(load.failures)} failed{PLAIN}")
        expect(not load.failures, f"{len(load.failures)} of {load.total} requests failed: {load.failures[0]}"
               if load.failures else "")  # fmt: skip


def roll_out(cluster: Cluster, folder: Path) -> None:
    with step("The spec is edited and rolled out, under load"):
        edited = folder / "web.yaml"
        edited.write_text((HERE / "web.yaml").read_text().replace(GREETING, NEW_GREETING))
        before = cluster.ready("web").keys()
        with Load(cluster.address("web", "http")) as load:
            wait_until("requests flow", lambda: load.total > 50)
            say(f"$ sed 's/{GREETING}/{NEW_GREETING}/' examples/guestbook/web.yaml | mesh apply --wait -")
            began = time.monotonic()
            cluster.mesh("apply", str(edited), "--wait")
            say(f"{time.monotonic() - began:5.2f} s  three new replicas have replaced three old ones, one by one")
            wait_until("no old replica remains", lambda: not before & cluster.ready("web").keys())
        say(f"{load.total} requests meanwhile, {BOLD}{len(load.failures)} failed{PLAIN}; answered with")
        for greeting, count in load.greetings.items():
            say(f"{count:6}  {greeting}")
        expect(not load.failures, f"{len(load.failures)} of {load.total} requests failed: {load.failures[:1]}")
        with Load(cluster.address("web", "http")) as load:
            wait_until("requests flow", lambda: load.total > 50)
        expect(set(load.greetings) == {NEW_GREETING}, f"the greeting is {' and '.join(load.greetings)}")


# ── the whole ────────────────────────────────────────────────────────────────────────────────


def walk(cluster: Cluster, offer: Offer) -> None:
    if offer.docker:
        with step("Images, from this machine's own packages"):
            images.make_all(say)
    start(cluster)
    apply(cluster, offer.specs)
    names(cluster)
    requests(cluster)
    kill(cluster)
    roll_out(cluster, cluster.home)


def try_next(cluster: Cluster) -> None:
    """What a person may do now, to be copied from the screen."""
    host, port = cluster.address("web", "http")
    web = f"http://{host}/" if port == 80 else f"http://{host}:{port}/"
    print(f"\n{BOLD}It stays up until Ctrl-C, which removes all of it. To try next, in another terminal:{PLAIN}\n")
    for command in (
        f"export PATH={BIN}:$PATH XDG_STATE_HOME={cluster.home}",
        "mesh status web --watch",
        "mesh scale web=5",
        f"curl {web}api",
        f"{dig(cluster)} web.svc.cluster",
        f"{dig(cluster)} _http._tcp.web.svc.cluster SRV",
        "mesh resolve web.svc.cluster",
        "mesh logs web -f",
        "mesh events",
        f"curl {cluster.info['admin']}/metrics",
    ):
        say(command)
    say()
    say(f"In a browser: {web}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end after the walk")
    parser.add_argument("--process", action="store_true", help="plain processes, even where a Docker engine answers")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    offer = Offer(docker=not options.process)
    for sentence in offer.sentences:
        print(sentence)
    had_volume = offer.docker and volume_exists()
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        cluster = Cluster(Path(folder), "docker" if offer.docker else "process", offer.path)
        code = 0
        try:
            walk(cluster, offer)
            print(f"\n{GREEN}Every step held.{PLAIN}")
            if not options.once:
                try_next(cluster)
                signal.pause()
        except StepFailed as failed:
            print(f"\n{RED}✗ {failed}{PLAIN}\n\n{DIM}The last of mesh dev's log:\n{tail(cluster.log)}{PLAIN}")
            code = 1
        except KeyboardInterrupt:
            pass
        print("\nRemoving all of it …", flush=True)
        cluster.stop()
        if offer.docker and not had_volume:
            subprocess.run(["docker", "volume", "rm", VOLUME], capture_output=True)
        return code


def volume_exists() -> bool:
    return subprocess.run(["docker", "volume", "inspect", VOLUME], capture_output=True).returncode == 0


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
