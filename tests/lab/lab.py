"""The lab as a whole: up, its faults, down; what is up stands in one file, so any process can take over."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.lab import parts, security, store, switch
from tests.lab.host import Host
from tests.lab.system import FOLDER, LabError, need_root, until

STATE = FOLDER / "lab.json"
MAX_HOSTS = 9
PARTITIONS = ("consul", "peers", "deaf", "mute")
PARTS = ("agent", "scheduler", "dockerd", "consul")

Say = Callable[[str], None]


class Lab:
    """One lab; there is at most one on a machine."""

    def __init__(self, hosts: int, servers: int, *, mesh: bool) -> None:
        self.hosts = [Host(f"h{number}") for number in range(1, hosts + 1)]
        self.servers = [host.name for host in self.hosts[:servers]]
        self.mesh = mesh
        self.faults: dict[str, list[str]] = {}

    # ── up and down

    @classmethod
    def up(cls, hosts: int, servers: int, *, mesh: bool = True, secure: bool = False, say: Say = lambda _: None) -> Lab:
        """Builds it, with what a crashed one left removed first. `secure`: Consul with ACLs and TLS.

        Raises:
            LabError: if one is up, or something does not come up; what was built is removed again.
        """
        need_root()
        if not 1 <= hosts <= MAX_HOSTS or not 1 <= servers <= hosts:
            raise LabError(f"1 to {MAX_HOSTS} hosts and 1 to as many Consul servers, not {hosts} and {servers}")
        if cls.is_up():
            raise LabError("a lab is up already: `down` removes it")
        remove()
        lab = cls(hosts, servers, mesh=mesh)
        try:
            lab._build(secure, say)
        except BaseException:
            say("that failed; removing what was built")
            remove()
            raise
        return lab

    def _build(self, secure: bool, say: Say) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._write()
        if secure:
            say("an authority, certificates and tokens")
            security.create([host.name for host in self.hosts])
        say(f"a switch and {len(self.hosts)} hosts")
        switch.create([host.name for host in self.hosts])
        for host in self.hosts:
            host.boot()
        say("Docker engines and Consul")
        for host in self.hosts:
            parts.start_engine(host)
            parts.start_consul(host, self.servers)
        self._each(self.hosts, lambda host: parts.until_up(host, "dockerd"))
        self._each(self.hosts, lambda host: parts.until_up(host, "consul"))
        if secure:
            store.grant(self.servers[0])
        if self.mesh:
            say("schedulers and agents")
            self._start_mesh(self.hosts)

    def _start_mesh(self, hosts: Iterable[Host]) -> None:
        hosts = list(hosts)
        for host in hosts:
            if host in self.hosts[: parts.SCHEDULERS] and not host.runs("scheduler"):
                parts.start_scheduler(host)
            if not host.runs("agent"):
                parts.start_agent(host)
        self._each(hosts, lambda host: parts.until_up(host, "agent"))

    @staticmethod
    def _each(hosts: Iterable[Host], do: Callable[[Host], None]) -> None:
        with ThreadPoolExecutor(MAX_HOSTS) as pool:
            list(pool.map(do, hosts))

    @classmethod
    def is_up(cls) -> bool:
        return STATE.exists() and any(host.is_on for host in cls.found().hosts)

    @classmethod
    def found(cls) -> Lab:
        """The one that is up.

        Raises:
            LabError: if none is.
        """
        try:
            state = json.loads(STATE.read_text())
        except FileNotFoundError:
            raise LabError("no lab is up: `up` builds one") from None
        lab = cls(state["hosts"], state["servers"], mesh=state["mesh"])
        lab.faults = state["faults"]
        return lab

    def _write(self) -> None:
        state = {"hosts": len(self.hosts), "servers": len(self.servers), "mesh": self.mesh, "faults": self.faults}
        STATE.write_text(json.dumps(state))

    def host(self, name: str) -> Host:
        """Raises `LabError` if there is none of this name."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"there is no host {name!r}; the lab has {', '.join(host.name for host in self.hosts)}")

    # ── faults

    def kill(self, name: str) -> None:
        """A power cut."""
        self.host(name).power_cut()

    def stop_agent(self, name: str) -> None:
        self.host(name).stop("agent")

    def start_agent(self, name: str) -> None:
        self._start_mesh([self.host(name)])

    def partition(self, name: str, kind: str = "") -> None:
        """The cable out, or only what `kind` says (see `switch.drop`): another host, too."""
        host = self.host(name)
        if not kind:
            self._fault(host, "cable")
            switch.plug(name, in_place=False)
        elif kind in PARTITIONS:
            self._fault(host, kind)
        elif any(kind == other.name != name for other in self.hosts):
            self._fault(host, f"from={kind}")
        else:
            raise LabError(f"a partition is {', '.join(PARTITIONS)}, from another host, or from all, not {kind!r}")

    def loss(self, name: str, share: float) -> None:
        if not 0 < share <= 1:
            raise LabError(f"a share is above 0 and at most 1, not {share:g}")
        self._fault(self.host(name), f"loss={share:g}")

    def delay(self, name: str, milliseconds: float) -> None:
        """Each way; anew if there is one."""
        if not 0 < milliseconds <= 60_000:
            raise LabError(f"a delay is above 0 and at most 60000 ms, not {milliseconds:g}")
        host = self.host(name)
        host.stop("wire")
        host.start_beside("wire", [sys.executable, "-m", "tests.lab.wire", name, f"{milliseconds:g}"])

        def carries() -> bool:
            if not host.runs("wire"):
                raise LabError(f"no slow wire for {name}: {host.log('wire')}")
            return switch.is_on_bridge(name, f"br-{name}")

        until(carries, f"a slow wire for {name}")
        self._fault(host, f"delay={milliseconds:g}")

    def freeze(self, name: str) -> None:
        """Every process stops, and its kernel still accepts connections."""
        host = self.host(name)
        host.freeze(frozen=True)
        self._fault(host, "frozen")

    def hang(self, name: str, part: str) -> None:
        """One program stops (SIGSTOP) with all that it holds; what it started runs on."""
        if part not in PARTS:
            raise LabError(f"what can hang is {', '.join(PARTS)}, not {part!r}")
        self.host(name).signal(part, signal.SIGSTOP)
        self._fault(self.host(name), f"hung {part}")

    def heal(self, name: str) -> None:
        """Takes every fault of the host away: boots it, plugs it in, starts what should run there."""
        host = self.host(name)
        host.stop("wire")
        host.freeze(frozen=False)
        for part in PARTS:
            if host.runs(part):
                host.signal(part, signal.SIGCONT)
        self.faults.pop(name, None)
        self._apply()
        switch.plug(name, in_place=True)
        host.boot()
        if not host.runs("dockerd"):
            parts.start_engine(host)
        if not host.runs("consul"):
            parts.start_consul(host, self.servers)
        parts.until_up(host, "dockerd")
        if self.mesh:
            self._start_mesh([host])

    def _fault(self, host: Host, fault: str) -> None:
        kind = fault.partition("=")[0]
        others = [one for one in self.faults.get(host.name, []) if one.partition("=")[0] != kind]
        self.faults[host.name] = [*others, fault]
        self._apply()

    def _apply(self) -> None:
        self._write()
        dropped = {name: [fault for fault in faults if fault in PARTITIONS or fault.startswith(("from=", "loss="))]
                   for name, faults in self.faults.items()}  # fmt: skip
        switch.drop({name: faults for name, faults in dropped.items() if faults})


def remove() -> None:
    """Everything that is the lab's, also after a crash: found by its names, ended by its pids."""
    with ThreadPoolExecutor(MAX_HOSTS) as pool:
        list(pool.map(lambda folder: Host(folder.name).remove(), sorted(FOLDER.glob("h[0-9]"))))
    switch.remove()
    shutil.rmtree(FOLDER, ignore_errors=True)
