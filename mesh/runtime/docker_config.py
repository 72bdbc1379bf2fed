"""What we ask of a Docker engine for a replica, and what we read out of its answers: plain data, no engine."""

from __future__ import annotations

import io
import ipaddress
import math
import re
import tarfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mesh.model import Assignment
from mesh.runtime import File, Instance, InstanceState, Launch, variable
from mesh.spec.service import PortSpec, ServiceSpec

_STATES = {
    "created": InstanceState.CREATED,
    "running": InstanceState.RUNNING,
    "paused": InstanceState.RUNNING,
    "restarting": InstanceState.RUNNING,
}


def container_name(id: str) -> str:
    return f"mesh-{id}"


def labels(assignment: Assignment, spec: ServiceSpec, *, node: str, root: str) -> dict[str, str]:
    """Who the container is, for whoever finds it: an agent after a restart, or a person with `docker ps`."""
    return {
        "mesh.id": assignment.id,
        "mesh.service": assignment.service,
        "mesh.slot": str(assignment.slot),
        "mesh.release": str(assignment.release),
        "mesh.node": node,
        "mesh.root": root,
        "mesh.ports": " ".join(f"{name}={_inside(port)}" for name, port in spec.ports.items()),
        **({"mesh.singleton": "true"} if spec.singleton else {}),
    }


def container(launch: Launch, *, node: str, root: str, published: bool, address: str) -> dict[str, Any]:
    """The body of `POST /containers/create`.

    Static ports are bound on `address`; where ports are to be published, every other one gets a random port there.
    """
    spec = launch.spec
    memory = spec.limits.memory if spec.limits.memory is not None else spec.resources.memory
    env = {variable("PORT", name): str(port.inside) for name, port in spec.ports.items()} | dict(launch.env)
    bindings = {
        _inside(port): [{"HostIp": address, "HostPort": str(port.host_port or "")}]
        for port in spec.ports.values()
        if published or port.host_port is not None
    }
    body: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": labels(launch.assignment, spec, node=node, root=root),
        "ExposedPorts": {_inside(port): {} for port in spec.ports.values()},
        "StopSignal": spec.stop.signal,
        "StopTimeout": math.ceil(spec.stop.grace),
        "HostConfig": {
            "Init": True,  # a program as process 1 would ignore every signal it does not handle
            "RestartPolicy": {"Name": "no"},  # we decide
            "Memory": memory,
            "MemorySwap": memory,  # memory and swap together: no swap
            "NanoCpus": (spec.limits.cpu or 0) * 1_000_000,
            "NetworkMode": spec.network or "default",
            "PortBindings": bindings,
            "Mounts": _mounts(spec),
            "Dns": list(launch.dns),
            "DnsSearch": list(launch.search),
        },
    }
    if spec.command is not None:
        body["Cmd"] = spec.command
    return body


def _mounts(spec: ServiceSpec) -> list[dict[str, Any]]:
    volumes = [
        {"Type": "volume", "Source": f"mesh-{spec.name}-{name}", "Target": volume.path}
        for name, volume in spec.volumes.items()
    ]
    binds = [
        {"Type": "bind", "Source": mount.source, "Target": mount.path, "ReadOnly": mount.read_only}
        for mount in spec.mounts
        if not mount.is_file
    ]
    return volumes + binds


def archive(files: Sequence[File]) -> bytes:
    """The body of `PUT /containers/<id>/archive`: files below `/`, owned by root. An engine elsewhere takes it too."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.size, entry.mode = len(file.content), file.mode
            tar.addfile(entry, io.BytesIO(file.content))
    return packed.getvalue()


def _inside(port: PortSpec) -> str:
    return f"{port.inside}/{'udp' if port.protocol == 'udp' else 'tcp'}"


def listed(entry: Mapping[str, Any], *, published: bool, address: str) -> Instance:
    """The instance of an entry of `GET /containers/json`. It lacks how an exited one ended: see `inspected`."""
    outside = {
        f"{port['PrivatePort']}/{port['Type']}": port["PublicPort"]
        for port in entry["Ports"] or ()
        if "PublicPort" in port
    }
    return _instance(
        entry["Labels"],
        state=_STATES.get(entry["State"], InstanceState.EXITED),
        network=_network(entry),
        outside=outside if published else None,
        address=address,
        started=float(entry["Created"]),
        handle=entry["Id"][:12],
    )


def inspected(details: Mapping[str, Any], *, published: bool, address: str) -> Instance:
    """The instance of an answer to `GET /containers/<id>/json`."""
    state = details["State"]
    exited = _STATES.get(state["Status"], InstanceState.EXITED) is InstanceState.EXITED
    outside = {
        inside: int(bindings[0]["HostPort"])
        for inside, bindings in (details["NetworkSettings"]["Ports"] or {}).items()
        if bindings
    }
    return _instance(
        details["Config"]["Labels"],
        state=_STATES.get(state["Status"], InstanceState.EXITED),
        network=_network(details),
        outside=outside if published else None,
        address=address,
        started=whole_seconds(details["Created"]),
        exit_code=state["ExitCode"] if exited else None,
        oom=exited and state["OOMKilled"],
        handle=details["Id"][:12],
    )


def _network(container: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a container is in the network that it was made for, whatever a person has connected it to since."""
    mode = container["HostConfig"]["NetworkMode"]
    found: Mapping[str, Any] = container["NetworkSettings"]["Networks"].get("bridge" if mode == "default" else mode, {})
    return found


def _instance(
    labels: Mapping[str, str],
    *,
    network: Mapping[str, Any],
    outside: Mapping[str, int] | None,
    address: str,
    **facts: Any,
) -> Instance:
    """`outside`: published ports by `<port>/<protocol>`; None where the container's own address is reached."""
    inside = dict(pair.split("=", 1) for pair in labels.get("mesh.ports", "").split())
    if outside is None:
        address = network.get("IPAddress", "")
        ports = {name: int(port.partition("/")[0]) for name, port in inside.items()}
    else:
        ports = {name: outside[port] for name, port in inside.items() if port in outside}
    slot = labels["mesh.slot"]
    return Instance(
        id=labels["mesh.id"],
        service=labels["mesh.service"],
        slot=int(slot) if slot.isdecimal() else slot,
        release=int(labels["mesh.release"]),
        address=address,
        ports=ports,
        singleton=labels.get("mesh.singleton") == "true",
        **facts,
    )


def gateway(network: Mapping[str, str]) -> str:
    """The host's address on a network; an engine that chose it itself took the subnet's first, and says only that."""
    return network.get("Gateway") or str(next(ipaddress.ip_network(network["Subnet"]).hosts()))


def whole_seconds(timestamp: str) -> float:
    """Of RFC 3339 with nanoseconds; a listing has whole seconds, and both must agree."""
    return float(int(datetime.fromisoformat(timestamp[:19] + "+00:00").timestamp()))


_NO_NETWORK = re.compile(r"network (\S+) not found")
_PORT_TAKEN = re.compile(r":(\d+)(?: failed: port is already allocated|: bind: address already in use)")


def why_not_started(engine_says: str, node: str) -> str:
    """The engine's sentence about a start that failed, in words of an operator where we know the case."""
    if taken := _PORT_TAKEN.search(engine_says):
        return f"port {taken[1]} of node {node} is already in use"
    if missing := _NO_NETWORK.search(engine_says):
        return f"there is no network {missing[1]} on node {node}: `docker network create {missing[1]}` there"
    return engine_says


class PullProgress:
    """Makes sentences of a pull's steps: one for each layer that is done."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, bool] = {}

    def observe(self, step: Mapping[str, Any]) -> str:
        """The sentence to show now; empty if nothing has changed that a person would want to know."""
        layer, status = step.get("id", ""), step.get("status", "")
        if status == "Pulling fs layer":
            self._layers[layer] = False
        elif status in ("Pull complete", "Already exists"):
            self._layers[layer] = True
        else:
            return ""
        return f"pulling image {self._image}: {sum(self._layers.values())} of {len(self._layers)} layers"
