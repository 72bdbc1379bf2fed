"""A Docker host that is not this machine: an engine that speaks TLS, and an sshd, behind a cable of their own."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import docker
from docker.errors import DockerException

TLS_PORT = 2376
SSH_PORT = 2222
START_TIMEOUT = 30.0


class RemoteHost:
    """A network namespace with an address, an engine on TCP with TLS (and a socket), and an sshd. Needs root.

    `certificates` is a folder as `DOCKER_CERT_PATH` wants it. `path` begins with a folder whose `ssh` has the key and
    knows the host. A container there has no way to this machine but the cable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._space = f"mesh-{uuid.uuid4().hex[:8]}"
        self._link = self._space.replace("-", "")[:11]
        self._processes: list[subprocess.Popen[bytes]] = []
        network = ipaddress.IPv4Address("10.79.0.0") + 4 * (uuid.uuid4().int % 2**14)
        self.here, self.address = str(network + 1), str(network + 2)
        self.certificates = folder / "certificates"
        self.socket = folder / "docker.sock"
        self.tls = f"tcp://{self.address}:{TLS_PORT}"
        self.ssh = f"ssh://root@{self.address}:{SSH_PORT}{self.socket}"
        self.path = f"{folder}/bin:{os.environ['PATH']}"

    def client(self) -> Any:
        return docker.APIClient(base_url=f"unix://{self.socket}", version="auto")

    def ssh_clients(self) -> list[int]:
        """Pids of the ssh processes of this machine that lead there."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (folder / "cmdline").read_bytes().split(b"\0")
                if command[0].endswith(b"ssh") and self.address.encode() in command:
                    found.append(int(folder.name))
        return found

    def end_ssh_connections(self) -> None:
        """As a reboot or a firewall does: whoever is connected is cut off, and may connect again."""
        subprocess.run(["pkill", "--parent", str(self._sshd.pid)], check=True)

    def __enter__(self) -> Self:
        try:
            self._lay_cable()
            self._issue_certificates()
            self._start_engine()
            self._start_sshd()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(DockerException):
            client = self.client()
            for container in client.containers(all=True):
                client.remove_container(container["Id"], force=True)
            client.close()
        for process in reversed(self._processes):
            process.terminate()
            process.wait(START_TIMEOUT)
        subprocess.run(["ip", "netns", "delete", self._space], capture_output=True)

    def _lay_cable(self) -> None:
        there, here = f"{self._link}b", f"{self._link}a"
        for command in (
            f"ip netns add {self._space}",
            f"ip link add {here} type veth peer name {there} netns {self._space}",
            f"ip address add {self.here}/30 dev {here}",
            f"ip link set {here} up",
            f"ip -n {self._space} address add {self.address}/30 dev {there}",
            f"ip -n {self._space} link set {there} up",
            f"ip -n {self._space} link set lo up",
            f"ip -n {self._space} route add default via {self.here}",
        ):
            subprocess.run(command.split(), check=True)

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self._space}", *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def _until(self, ready: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not ready():
            if self._processes[-1].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / f"{name}.log").read_text()[-2000:])
            time.sleep(0.02)

    # ── the engine

    def _issue_certificates(self) -> None:
        self.certificates.mkdir()
        issue(self.certificates, self.address)

    def _start_engine(self) -> None:
        folder, certificates = self._folder, self.certificates
        self._start(
            "dockerd", "dockerd", "--host", self.tls, "--host", f"unix://{self.socket}", "--tlsverify",
            "--tlscacert", f"{certificates}/ca.pem", "--tlscert", f"{certificates}/server.pem",
            "--tlskey", f"{certificates}/server-key.pem", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/x",
            "--pidfile", f"{folder}/pid", "--log-level", "warn",
        )  # fmt: skip
        self._until(self._engine_answers, "dockerd")

    def _engine_answers(self) -> bool:
        """It serves TCP once it serves its socket."""
        try:
            self.client().close()
        except DockerException:
            return False
        return True

    # ── ssh

    def _start_sshd(self) -> None:
        folder = self._folder / "ssh"
        folder.mkdir()
        (self._folder / "bin").mkdir()
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where the package's service would make it
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        host_key = (folder / "host.pub").read_text()
        (folder / "known").write_text(f"[{self.address}]:{SSH_PORT} {host_key}")
        (folder / "sshd_config").write_text(
            f"Port {SSH_PORT}\nListenAddress {self.address}\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nPasswordAuthentication no\nUseDNS no\n"
        )
        self.write_ssh()
        self._sshd = self._start("sshd", "/usr/sbin/sshd", "-D", "-e", "-f", f"{folder}/sshd_config")
        self._until(lambda: "Server listening" in (self._folder / "sshd.log").read_text(), "sshd")

    def write_ssh(self, *options: str) -> None:
        """The `ssh` of `path`: the machine's, with our key and the host's, unless `options` say otherwise."""
        folder, program = self._folder / "ssh", self._folder / "bin" / "ssh"
        own: Sequence[str] = (
            "-F", "none", *options, f"-oIdentityFile={folder}/user", "-oIdentitiesOnly=yes",
            f"-oUserKnownHostsFile={folder}/known", "-oGlobalKnownHostsFile=none",
        )  # fmt: skip
        program.write_text(f'#!/bin/sh\nexec /usr/bin/ssh {" ".join(own)} "$@"\n')
        program.chmod(0o755)


def issue(folder: Path, address: str) -> None:
    """A new CA with a certificate for a server at `address`, and one for a client, all named as Docker names them."""
    (folder / "conf").write_text(
        "[req]\ndistinguished_name=name\n[name]\n"
        "[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n"
        f"[server]\nsubjectAltName=IP:{address}\nextendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\n"
        "[client]\nextendedKeyUsage=clientAuth\nauthorityKeyIdentifier=keyid\n"
    )
    for kind, name, key in (("ca", "ca", "ca-key"), ("server", "server", "server-key"), ("client", "cert", "key")):
        signed_by = [] if kind == "ca" else ["-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca-key.pem"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-config", f"{folder}/conf", "-subj", f"/CN=mesh test {kind}", "-extensions", kind, "-days", "3650",
             *signed_by, "-keyout", f"{folder}/{key}.pem", "-out", f"{folder}/{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
