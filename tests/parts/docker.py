"""A Docker engine of one's own for a test: to be killed, paused and started again without harm to anyone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import docker
from docker.errors import DockerException

from mesh.runtime.process_table import ProcessId

START_TIMEOUT = 30.0


class PrivateEngine:
    """A dockerd with its own socket, folders and network namespace; its containers have no network. Needs root.

    The namespace matters: an engine without a bridge removes the `docker0` it finds, which would be another engine's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.host = f"unix://{folder}/docker.sock"

    def start(self) -> None:
        """Starts it, or starts it again: containers that run are kept (live-restore)."""
        with (self._folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--net",  # with `--bridge none` it deletes a docker0 that it sees: the machine's
                 "dockerd", "--host", self.host, "--data-root", f"{self._folder}/data",
                 "--exec-root", f"{self._folder}/x", "--pidfile", f"{self._folder}/pid", "--bridge", "none",
                 "--iptables=false", "--ip-forward=false", "--live-restore", "--log-level", "warn"],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.client().close()
                return
            except DockerException:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError((self._folder / "dockerd.log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def client(self) -> Any:
        return docker.APIClient(base_url=self.host, version="auto")

    def kill(self) -> None:
        """As a crash: nothing is told to anyone. Its containerd dies with it, containers live on."""
        number = self._folder / "x" / "containerd" / "containerd.pid"
        containerd = ProcessId.now_at(int(number.read_text()))
        self._signal(signal.SIGKILL)
        self._wait()
        while containerd and containerd.alive():
            time.sleep(0.01)
        number.unlink()  # the next engine would take a containerd that nobody has reaped for one that runs
        (self._folder / "pid").unlink()

    def pause(self) -> None:
        """It accepts connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        self._wait()

    def _signal(self, number: int) -> None:
        assert self._process is not None, "the engine was not started"
        os.kill(self._process.pid, number)

    def _wait(self) -> None:
        assert self._process is not None
        self._process.wait(START_TIMEOUT)
        self._process = None

    def __enter__(self) -> PrivateEngine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            self.start()  # containers outlive a killed engine, and only an engine removes them
        client = self.client()
        for container in client.containers(all=True):
            client.remove_container(container["Id"], force=True)
        client.close()
        self.stop()
        self._unmount()

    def _unmount(self) -> None:
        """What an engine leaves mounted if it was killed."""
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(f"{self._folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=True)
