"""One host: namespaces under an init of its own, a cgroup, the programs that run in it, and its power switch."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mesh.runtime.process_table import ProcessId
from tests.lab import security, switch
from tests.lab.system import FOLDER, NAME, LabError, run, until

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("freezer", "memory", "cpu", "pids")
"""Of cgroup v1. With v2 there is one tree for all."""
INITS = ("docker-init", "tini")


class Host:
    """`h1`, `h2`, …: its folder holds the pid files and logs of what runs in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = switch.address(name)
        self.folder = FOLDER / name

    # ── power

    @property
    def is_on(self) -> bool:
        return self._process("init") is not None

    def boot(self) -> None:
        """Power on: an empty host with an init. A second call does nothing."""
        if self.is_on:
            return
        (self.folder / "etc").mkdir(parents=True, exist_ok=True)
        self._sweep()
        for group in self._cgroups():
            group.mkdir(parents=True, exist_ok=True)
        init = next((path for name in INITS if (path := shutil.which(name))), None)
        if init is None:
            raise LabError("there is neither docker-init nor tini: apt-get install tini")
        # Its own /etc/docker: else all engines share one key, and so one id.
        setup = (f"hostname {self.name}; mount -t tmpfs tmpfs /run; mkdir -p /run/netns /run/lock; "
                 f"mkdir -p /etc/docker; mount --bind {self.folder}/etc /etc/docker; "
                 f"exec {init} -- sleep infinity")  # fmt: skip
        # nsenter and not `ip netns exec`: that mounts a new /sys, without the cgroups
        wrapper = ["nsenter", f"--net=/run/netns/{NAME}-{self.name}",
                   "unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc",
                   "sh", "-c", self._in_cgroup(f"exec sh -c {shlex.quote(setup)}")]  # fmt: skip
        self._start("init", wrapper, Path(init).name, {})
        switch.plug(self.name, in_place=True)

    def power_cut(self) -> None:
        """The cable is out and every process of the host is dead, containers included, before this returns."""
        switch.plug(self.name, in_place=False)
        if init := self._process("init"):
            init.signal(signal.SIGKILL)
            until(lambda: not init.alive(), f"the end of {self.name}")
        for file in self.folder.glob("*.pid"):
            if file.stem != "wire":
                file.unlink()

    def freeze(self, *, frozen: bool) -> None:
        """Every process of the host stops, or goes on; its kernel still accepts connections."""
        for group in self._cgroups():
            for file, states in (("freezer.state", ("THAWED", "FROZEN")), ("cgroup.freeze", ("0", "1"))):
                if (group / file).exists():
                    (group / file).write_text(states[frozen])

    # ── programs

    def start(self, name: str, command: Sequence[str | Path], variables: Mapping[str, str] | None = None) -> None:
        """Starts a program in the host, in the background; its output goes to `<name>.log` in the host's folder."""
        inside = self._in_cgroup("exec " + shlex.join(map(str, command)))
        self._start(name, [*self._entering(), "sh", "-c", inside], None, variables or {})

    def start_beside(self, name: str, command: Sequence[str | Path]) -> None:
        """Starts a program that belongs to the host but runs on the machine itself."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._note(name, process.pid)

    def stop(self, name: str, number: int = signal.SIGTERM, timeout: float = 30.0) -> None:
        """Ends a program, if it runs, and waits for its end."""
        if process := self._process(name):
            process.signal(number)
            until(lambda: not process.alive(), f"the end of {name} on {self.name}", timeout)
        (self.folder / f"{name}.pid").unlink(missing_ok=True)

    def signal(self, name: str, number: int) -> None:
        """Signals a program that runs here.

        Raises:
            LabError: if it does not.
        """
        if not (process := self._process(name)):
            raise LabError(f"{name} does not run on {self.name}")
        process.signal(number)

    def runs(self, name: str) -> bool:
        return self._process(name) is not None

    def run(self, *command: str | Path, check: bool = True) -> str:
        """What a command says that an operator runs in the host."""
        return run(*self._entering(), *command, check=check, env=self._operators())

    def execute(self, command: Sequence[str]) -> int:
        """Runs a command in the host on this terminal; its exit code."""
        return subprocess.run([*self._entering(), *command], env=self._operators()).returncode

    def log(self, name: str) -> str:
        """The end of what a program said."""
        with suppress(FileNotFoundError):
            return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]
        return ""

    # ── below

    def _operators(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # `mesh` is there
        return {**os.environ, "PATH": path, **security.variables(security.OPERATOR, self.name)}

    def _entering(self) -> list[str]:
        init = self._process("init")
        if init is None:
            raise LabError(f"{self.name} is off; `heal {self.name}` boots it")
        return ["nsenter", "-t", str(init.pid), "--net", "--uts", "--ipc", "--mount", "--pid", "--"]

    def _start(self, name: str, wrapper: Sequence[str], program: str | None, variables: Mapping[str, str]) -> None:
        """Starts `wrapper`, which forks the program, and lets go of the wrapper: a waiting nsenter would stop itself
        together with its child, and keep the pid namespace of a dead host."""
        surroundings = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CONSUL_", "DOCKER_", "MESH_")) or name == "MESH_TEST_SESSION"
        } | dict(variables)
        with (self.folder / f"{name}.log").open("ab") as log:
            parent = subprocess.Popen(
                wrapper, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=surroundings
            )

        def child() -> int | None:
            if parent.poll() is not None:
                raise LabError(f"{name} on {self.name} did not start: {self.log(name)}")
            with suppress(FileNotFoundError, ValueError, IndexError):
                pid = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()[0])
                if program is None or Path(f"/proc/{pid}/comm").read_text().strip() == program:
                    return pid
            return None

        self._note(name, until(child, f"{name} on {self.name}"))
        parent.kill()
        parent.wait()

    def _note(self, name: str, pid: int) -> None:
        began = ProcessId.parse(Path(f"/proc/{pid}/stat").read_text()).began
        (self.folder / f"{name}.pid").write_text(f"{pid} {began}")

    def _process(self, name: str) -> ProcessId | None:
        try:
            pid, began = map(int, (self.folder / f"{name}.pid").read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        process = ProcessId(pid, began)
        return process if process.alive() else None

    def _cgroups(self) -> list[Path]:
        if (CGROUPS / "cgroup.controllers").exists():
            return [CGROUPS / f"{NAME}-{self.name}"]
        return [CGROUPS / each / f"{NAME}-{self.name}" for each in CONTROLLERS if (CGROUPS / each).is_dir()]

    def _in_cgroup(self, command: str) -> str:
        """A shell's command that first joins the host's cgroup (v2: a leaf beside its containers')."""
        joins = []
        for group in self._cgroups():
            leaf = group / "programs" if (CGROUPS / "cgroup.controllers").exists() else group
            joins.append(f"mkdir -p {leaf}; echo 0 > {leaf}/cgroup.procs; ")
        return "".join(joins) + command

    def _sweep(self) -> None:
        """What a host that lost its power left in its network."""
        space = f"{NAME}-{self.name}"
        run("ip", "netns", "exec", space, "nft", "flush", "ruleset", check=False)
        for line in run("ip", "-n", space, "-o", "link").splitlines():
            link = line.split(":")[1].strip().partition("@")[0]
            if link.startswith(("veth", "docker", "br-")):
                run("ip", "-n", space, "link", "del", link, check=False)

    def remove(self) -> None:
        """Ends all of it, as far as it is there; its files go too."""
        with suppress(LabError):
            self.stop("wire")
        with suppress(LabError):
            self.freeze(frozen=False)
            self.power_cut()
        if init := self._process("init"):
            init.signal(signal.SIGKILL)
        deadline = time.monotonic() + 5
        name = f"{NAME}-{self.name}"  # the engine made some in further controllers
        for group in [CGROUPS / name, *CGROUPS.glob(f"*/{name}")]:
            while group.exists() and time.monotonic() < deadline:
                for folder, _, _ in os.walk(group, topdown=False):
                    with suppress(OSError):  # its last processes are still ending
                        Path(folder).rmdir()
                if group.exists():
                    time.sleep(0.05)
        for mount in sorted(_mounts_below(self.folder), reverse=True):
            run("umount", "--lazy", mount, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _mounts_below(folder: Path) -> list[str]:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [mount for mount in mounts if mount.startswith(f"{folder}/")]
