"""Docker's own Swarm mode on a private engine, asked to do the same as the mesh."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker

from bench import engine
from bench.cluster import wait_until


@contextlib.contextmanager
def swarm() -> Iterator[tuple[Any, str]]:
    """An engine in a network namespace of its own, so that it and the machine's do not share a bridge."""
    with tempfile.TemporaryDirectory(prefix="mesh-swarm-", ignore_cleanup_errors=True) as name:
        folder, url = Path(name), f"unix://{name}/sock"
        command = f"ip link set lo up; exec dockerd --host {url} --data-root {folder}/data" \
                  f" --exec-root {folder}/exec --pidfile {folder}/pid"  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(["unshare", "--net", "sh", "-c", command], stdout=log, stderr=log)
        try:
            client = wait_until(lambda: _answers(url))
            client.swarm.init(advertise_addr="127.0.0.1", listen_addr="127.0.0.1:2377")
            engine.import_image(client)
            yield client, url
            client.swarm.leave(force=True)
        finally:
            process.terminate()
            process.wait(60)


def _answers(url: str) -> Any:
    try:
        client = engine.client(url)
        client.ping()
        return client
    except docker.errors.DockerException:
        return None


def running(client: Any) -> set[str]:
    """The tasks that run."""
    tasks = client.api.tasks(filters={"desired-state": "running"})
    return {task["ID"] for task in tasks if task["Status"]["State"] == "running"}


def measure(client: Any, url: str, few: int = 20, many: int = 60) -> dict[str, float]:
    """Seconds for: `few` tasks from nothing, `few` to `many`, and the replacement of one that was killed."""

    def service(*arguments: str) -> None:
        command = ["docker", "--host", url, "service"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    options = ["--detach", "--no-resolve-image", "--restart-delay", "0s", "--stop-grace-period", "1ms"]
    began = time.monotonic()
    service("create", "--name", "many", *options, "--replicas", str(few), engine.IMAGE, *engine.COMMAND)
    wait_until(lambda: len(running(client)) == few, 0.02)
    times = {"twenty": time.monotonic() - began}
    began = time.monotonic()
    service("scale", "--detach", f"many={many}")
    wait_until(lambda: len(running(client)) == many, 0.02)
    times["sixty"] = time.monotonic() - began
    before = running(client)
    victim = client.containers.list()[0]
    began = time.monotonic()
    victim.kill()
    wait_until(lambda: running(client) - before, 0.01)
    times["replaced"] = time.monotonic() - began
    service("rm", "many")
    wait_until(lambda: not client.containers.list(ignore_removed=True), 0.05)
    return times
