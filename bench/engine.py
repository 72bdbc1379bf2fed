"""A Docker engine as the benchmarks use it: a tiny image, start times, and how long a start takes by itself."""

from __future__ import annotations

import contextlib
import datetime
import io
import shutil
import statistics
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import docker

IMAGE = "mesh-bench:1"
COMMAND = ["busybox", "httpd", "-f", "-p", "8080"]


def client(url: str | None = None) -> Any:
    return docker.DockerClient(base_url=url, timeout=60) if url else docker.from_env(timeout=60)


def import_image(engine: Any) -> None:
    """busybox alone: it starts in no time and answers HTTP, so what is measured is the orchestrator and the engine."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("the benchmarks need busybox (Debian package busybox-static)")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(Path(busybox).resolve(), "bin/busybox")
        tar.addfile(tarfile.TarInfo("tmp"))
    repository, tag = IMAGE.split(":")
    engine.api.import_image_from_data(
        archive.getvalue(), repository=repository, tag=tag, changes=["ENV PATH=/bin", 'CMD ["busybox"]']
    )


def own_start(engine: Any, rounds: int) -> float:
    """Seconds from the call to the engine's own `StartedAt`, for a container without any orchestrator (median)."""
    times = []
    for _ in range(rounds):
        began = time.time()
        container = engine.containers.run(IMAGE, COMMAND, detach=True)
        times.append(started_at(engine, container.id) - began)
        container.remove(force=True)
    return statistics.median(times)


def started_at(engine: Any, container: str) -> float:
    """Unix seconds at which the engine says that it started the container."""
    text = engine.api.inspect_container(container)["State"]["StartedAt"]
    moment, _, fraction = text.removesuffix("Z").partition(".")
    whole = datetime.datetime.fromisoformat(moment).replace(tzinfo=datetime.UTC).timestamp()
    return whole + float(f"0.{fraction or 0}")


def containers(engine: Any, label: str) -> list[Any]:
    """The running containers that carry a label."""
    found: list[Any] = engine.containers.list(filters={"label": label}, ignore_removed=True)
    return found


def remove(found: Iterable[Any]) -> None:
    for container in found:
        with contextlib.suppress(docker.errors.APIError):
            container.remove(force=True)
