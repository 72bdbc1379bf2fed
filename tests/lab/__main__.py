"""The lab's commands; `python -m tests.lab --help` lists them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from tests.lab import parts
from tests.lab.host import Host
from tests.lab.lab import PARTS, Lab, remove
from tests.lab.system import LabError, need_root
from tests.parts.install import Missing, consul_folder, install_packages
from tools.debs import DebsError


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        need_root()
        code: int | None = options.do(options)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description="Several hosts on this machine, each with its own engine, Consul and mesh; and faults at will.",
        epilog="Hosts are h1, h2, …; h1 is 10.77.0.11. Try: up; exec h1 -- mesh nodes; kill h3; status; heal h3; down.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str, help: str, do: Callable[[argparse.Namespace], int | None], *, host: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(do=do)
        if host:
            command.add_argument("host", help="h1, h2, …")
        return command

    up = add("up", "build it", _up, host=False)
    up.add_argument("--hosts", type=int, default=3)
    up.add_argument("--consul", type=int, default=3, help="hosts that run a Consul server; the others run a client")
    up.add_argument("--bare", action="store_true", help="engines and Consul only, without the mesh")
    up.add_argument("--secure", action="store_true", help="Consul with ACLs (default deny) and TLS, both ways")
    add("status", "what runs where, and which faults hold", _status, host=False)
    execute = add("exec", "run a command in a host: exec h1 -- mesh status", _exec)
    execute.add_argument("command", nargs=argparse.REMAINDER)
    add("kill", "cut its power", lambda options: Lab.found().kill(options.host))
    add("stop-agent", "stop its agent, as an upgrade does", lambda options: Lab.found().stop_agent(options.host))
    add("start-agent", "start its agent again", lambda options: Lab.found().start_agent(options.host))
    partition = add("partition", "cut it off: HOST (from all), HOST:consul, HOST:peers, HOST:h2 (from one); HOST:deaf "
                    "or HOST:mute: one-way", lambda options: Lab.found().partition(*_named(options.host)))  # fmt: skip
    partition.usage = "python -m tests.lab partition HOST[:consul|:peers|:deaf|:mute|:OTHER]"
    delay = add("delay", "slow its cable down", lambda options: Lab.found().delay(options.host, options.ms))
    delay.add_argument("ms", type=float, help="milliseconds each way")
    loss = add("loss", "lose a share of its packets", lambda options: Lab.found().loss(options.host, options.share))
    loss.add_argument("share", type=float, help="0.2 is 20 %%")
    add(
        "freeze",
        "stop all its processes; it still accepts connections",
        lambda options: Lab.found().freeze(options.host),
    )
    hang = add("hang", "stop one of its programs", lambda options: Lab.found().hang(options.host, options.part))
    hang.add_argument("part", choices=PARTS)
    add("heal", "take every fault away and start what should run", lambda options: Lab.found().heal(options.host))
    add("down", "remove everything", lambda options: remove(), host=False)
    return parser


def _named(word: str) -> tuple[str, str]:
    host, _, kind = word.partition(":")
    return host, kind


def _up(options: argparse.Namespace) -> None:
    try:
        install_packages()
        os.environ["PATH"] = f"{consul_folder()}:{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
    except (Missing, DebsError) as error:
        raise LabError(f"missing part: {error}") from None
    lab = Lab.up(options.hosts, options.consul, mesh=not options.bare, secure=options.secure,
                 say=lambda text: print(f"  {text}", flush=True))  # fmt: skip
    print("up: " + ", ".join(f"{host.name} {host.address}" for host in lab.hosts))
    print("try: python -m tests.lab exec h1 -- mesh nodes")


def _status(options: argparse.Namespace) -> None:
    lab = Lab.found()
    print(f"{'host':5}{'address':13}{'power':7}{'engine':9}{'consul':9}{'agent':9}{'scheduler':11}faults")
    for host in lab.hosts:
        row = [_state(host, "dockerd", parts.engine_answers), _state(host, "consul", parts.store_answers),
               _state(host, "agent", parts.agent_is_ready)]  # fmt: skip
        power, faults = "on" if host.is_on else "off", ", ".join(lab.faults.get(host.name, [])) or "-"
        scheduler = "runs" if host.runs("scheduler") else "-"
        print(f"{host.name:5}{host.address:13}{power:7}{row[0]:9}{row[1]:9}{row[2]:9}{scheduler:11}{faults}")


def _state(host: Host, part: str, answers: Callable[[Host], bool]) -> str:
    if not host.runs(part):
        return "-"
    return "answers" if answers(host) else "silent"


def _exec(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise LabError("exec needs a command: exec h1 -- mesh status")
    return Lab.found().host(options.host).execute(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
