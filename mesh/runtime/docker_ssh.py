"""A Docker engine on another host through ssh: its socket there becomes a socket here.

One process of the system's own ssh client (with the user's keys, agent, known hosts and `~/.ssh/config`), one
connection, a channel of it for each request. No password is ever asked for. The process ends with us, however we end:
the command it runs there reads our standard input, and the forwarding ends with the command.
"""

from __future__ import annotations

import getpass
import os
import re
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from mesh.aio import Backoff
from mesh.runtime import RuntimeUnavailable

SOCKET = "/var/run/docker.sock"
CONNECT_TIMEOUT = 10
"""Seconds for the connection; what follows it, keys and login, gets as many again."""
ALIVE_INTERVAL = 5
ALIVE_COUNT = 3
"""A connection over which nothing comes for 15 s is given up."""
RETRY = (0.5, 15.0)
"""Seconds between attempts: not so often that a host takes us for a burglar."""


@dataclass(frozen=True, slots=True)
class SshTarget:
    """`ssh://[user@]host[:port][/path/of/the/socket]`, as Docker's own client has it."""

    host: str
    user: str | None
    port: int | None
    socket: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises `RuntimeUnavailable`, which names no password, if there is one."""
        try:
            parts = urlsplit(url)
            host, user, port, password = parts.hostname, parts.username, parts.port, parts.password
        except ValueError:
            host, user, port, password = None, None, None, None
        if password is not None:
            raise RuntimeUnavailable("a password in ssh://… is not used: remove it, and let the user in by a key")
        path = "" if host is None or parts.path == "/" else parts.path
        if not host or not re.fullmatch(r"[\w.:%-]+", host) or not re.fullmatch(r"(/[\w.@-]+)*", path):
            raise RuntimeUnavailable("the Docker engine's host must be ssh://[user@]host[:port][/socket]")
        return cls(host, user, port, path or SOCKET)

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    def command(self, socket: Path) -> list[str]:
        """An ssh that forwards `socket`, and says in a word how the engine's socket looks before it waits."""
        options = {
            "BatchMode": "yes",  # ask nobody
            "ConnectTimeout": str(CONNECT_TIMEOUT),
            "ServerAliveInterval": str(ALIVE_INTERVAL),
            "ServerAliveCountMax": str(ALIVE_COUNT),
            "ExitOnForwardFailure": "yes",
            "ControlPath": "none",  # a master of the user's would outlive us
            "LogLevel": "ERROR",
        }
        look = (
            f"if [ -w {self.socket} ]; then echo ready; exec cat; "
            f"elif [ -e {self.socket} ]; then echo denied; else echo absent; fi"
        )
        return [
            "ssh", "-T", *(f"-o{name}={value}" for name, value in options.items()),
            *(["-l", self.user] if self.user else []), *(["-p", str(self.port)] if self.port else []),
            "-L", f"{socket}:{self.socket}", "--", self.host, f"sh -c '{look}'",
        ]  # fmt: skip


class SshTunnel:
    """Opened with the first call, and again with the next call after it was lost. For threads."""

    def __init__(self, url: str, folder: Path | None = None) -> None:
        """`folder`: of the socket, nobody else's, and used again in the next life; None: one that ends with `close`."""
        self._url = url
        self._folder = folder
        self._kept = folder is not None
        self._opening = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._fault = ""
        self._retry = Backoff(*RETRY)
        self._not_before = 0.0

    def open(self) -> Mapping[str, Any]:
        with self._opening:
            if self._process is None or self._process.poll() is not None:
                self._try()
            return {"base_url": f"unix://{self._socket}"}

    def close(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._forget()
        if self._folder and not self._kept:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self._not_before = 0.0

    @property
    def _socket(self) -> Path:
        """In a folder for this user alone."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="mesh-ssh-"))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._folder / "docker.sock"

    def _try(self) -> None:
        self._forget()
        if time.monotonic() < self._not_before:
            raise RuntimeUnavailable(self._fault)
        try:
            self._connect()
        except RuntimeUnavailable as fault:
            self._fault = str(fault)
            self._not_before = time.monotonic() + self._retry.next()
            raise
        self._retry.reset()

    def _connect(self) -> None:
        target = SshTarget.parse(self._url)
        self._socket.unlink(missing_ok=True)
        said = self._socket.with_name("ssh.log")
        try:
            with said.open("wb") as errors:
                process = self._process = subprocess.Popen(
                    target.command(self._socket), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                    start_new_session=True,  # Ctrl-C is for us: containers are yet to be stopped
                )  # fmt: skip
        except FileNotFoundError:
            raise RuntimeUnavailable(
                "there is no ssh on this machine to reach the Docker engine with (Debian: apt-get install "
                "openssh-client)"
            ) from None
        word = _first_word(process, time.monotonic() + 2 * CONNECT_TIMEOUT)
        if word == "ready":
            return
        process.kill()
        process.wait()
        raise RuntimeUnavailable(_why_not(target, word, said.read_text(errors="replace")))

    def _forget(self) -> None:
        if self._process:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
            self._process = None


def _first_word(process: subprocess.Popen[bytes], deadline: float) -> str:
    """What our command there says of the socket, whatever a login shell says before; empty if ssh ends, or hangs."""
    assert process.stdout
    output = process.stdout.fileno()
    said = b""
    while (left := deadline - time.monotonic()) > 0 and select.select([output], [], [], left)[0]:
        chunk = os.read(output, 4096)
        if not chunk:
            break
        said += chunk
        for line in said.splitlines():
            if line in (b"ready", b"denied", b"absent"):
                return line.decode()
    return ""


def _why_not(target: SshTarget, word: str, said: str) -> str:
    if word == "denied":
        return (
            f"ssh reaches {target}, but its user may not use the Docker engine there (permission denied on "
            f"{target.socket}): `sudo usermod -aG docker USER` on {target.host}"
        )
    if word == "absent":
        return (
            f"ssh reaches {target}, but no Docker engine runs there ({target.socket} is not there): start it, or "
            f"name its socket: ssh://{target}/run/user/1000/docker.sock"
        )
    return why_no_ssh(str(target), said)


def why_no_ssh(target: str, said: str) -> str:
    """The sentence for what ssh has said before it ended."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else f"no answer within {2 * CONNECT_TIMEOUT} s"
    me = getpass.getuser()
    if "IDENTIFICATION HAS CHANGED" in said:
        mend = (
            "the host's key is not the one that is known: it was installed anew, or another answers in its place. "
            f"Find out, then: ssh-keygen -R {target.rpartition('@')[2]}"
        )
    elif "Host key verification failed" in said:
        mend = f"the host's key is not known to user {me}: compare and accept it once with `ssh {target}`"
    elif "Permission denied" in said:
        mend = (
            f"it does not let us in: put a key of user {me} that needs no passphrase into its authorized_keys, "
            "if there is such a user"
        )
    else:
        return f"the Docker engine on {target} cannot be reached through ssh: {last}"
    return f"the Docker engine on {target} cannot be reached through ssh ({last}): {mend}"
