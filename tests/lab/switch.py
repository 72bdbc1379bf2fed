"""The switch: cables to the hosts, and what it drops between them.

It lives in a network namespace of its own: in the machine's, its frames would meet the rules of the machine's engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.lab.system import NAME, NETWORK, run

SPACE = f"{NAME}-sw"
UPLINK = f"{NAME}-root"
"""The machine's own port; its other end in the switch is `root`."""

CONSUL_PORTS = "{ 8300-8302, 8500, 8501 }"


def create(hosts: Sequence[str]) -> None:
    """The switch, the machine's port, and a namespace with a cable for every host."""
    run("ip", "netns", "add", SPACE)
    run("ip", "-n", SPACE, "link", "set", "lo", "up")
    run("ip", "-n", SPACE, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
    run("ip", "-n", SPACE, "link", "set", "br0", "up")
    run("ip", "link", "add", UPLINK, "type", "veth", "peer", "name", "root", "netns", SPACE)
    run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", UPLINK)
    run("ip", "link", "set", UPLINK, "up")
    run("ip", "-n", SPACE, "link", "set", "root", "master", "br0", "up")
    for host in hosts:
        space = f"{NAME}-{host}"
        run("ip", "netns", "add", space)
        run("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", host, "netns", SPACE)
        run("ip", "-n", space, "addr", "add", f"{address(host)}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "route", "add", "default", "via", f"{NETWORK}.1")
        run("ip", "-n", SPACE, "link", "set", host, "master", "br0", "up")
        # before its engine starts, which would else drop what it does not know
        run("ip", "netns", "exec", space, "sysctl", "-qw", "net.ipv4.ip_forward=1")


def address(host: str) -> str:
    """`h3` → `10.77.0.13`."""
    return f"{NETWORK}.{10 + int(host[1:])}"


def remove() -> None:
    """All that `create` made, as far as it is there."""
    run("ip", "link", "del", UPLINK, check=False)
    for line in run("ip", "netns", "list").splitlines():
        space = line.split()[0]
        if space.startswith(f"{NAME}-"):
            run("ip", "netns", "del", space, check=False)


def plug(host: str, *, in_place: bool) -> None:
    """Puts the host's cable in, or pulls it out: its peers get silence, never a reset."""
    run("ip", "-n", SPACE, "link", "set", host, "up" if in_place else "down")


def is_on_bridge(host: str, bridge: str) -> bool:
    return f" master {bridge} " in run("ip", "-n", SPACE, "link", "show", host)


def drop(faults: Mapping[str, Sequence[str]]) -> None:
    """From now on exactly these faults hold: by host, any of `consul`, `peers`, `deaf`, `mute`, `from=h2`, `loss=0.2`.

    `consul`: cut off from the other hosts' Consul alone; `peers`: from all else of the other hosts; `deaf`: nothing
    comes in; `mute`: nothing goes out; `from`: cut off from this host alone; `loss`: the share of frames lost, both
    ways. The machine's own port hears all.
    """
    rules = [rule for host, named in faults.items() for fault in named for rule in _rules(host, fault)]
    body = "".join(f"    {rule}\n" for rule in rules)
    run("ip", "netns", "exec", SPACE, "nft", "delete", "table", "bridge", "faults", check=False)
    if rules:
        table = (
            "table bridge faults {\n  chain forward {\n    type filter hook forward priority 0;\n" + body + "  }\n}\n"
        )
        run("ip", "netns", "exec", SPACE, "nft", "-f", "-", text=table)


def _rules(host: str, fault: str) -> list[str]:
    kind, _, amount = fault.partition("=")
    ways = {"in": f'oifname "{host}" iifname != "root"', "out": f'iifname "{host}" oifname != "root"'}
    is_consul = [f"meta l4proto {{ tcp, udp }} th {side} {CONSUL_PORTS}" for side in ("dport", "sport")]
    match kind:
        case "consul":
            return [f"{way} {ports} drop" for way in ways.values() for ports in is_consul]
        case "peers":
            accepted = [f"{way} {ports} accept" for way in ways.values() for ports in is_consul]
            return [*accepted, *(f"{way} ether type ip drop" for way in ways.values())]
        case "deaf":
            return [f"{ways['in']} ether type ip drop"]
        case "mute":
            return [f"{ways['out']} ether type ip drop"]
        case "from":
            return [f'iifname "{one}" oifname "{other}" drop' for one, other in ((host, amount), (amount, host))]
        case "loss":
            most = max(1, round(float(amount) * 10_000)) - 1
            return [f"{way} numgen random mod 10000 <= {most} drop" for way in ways.values()]
    raise ValueError(f"no such fault: {fault}")
