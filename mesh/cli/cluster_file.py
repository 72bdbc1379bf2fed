"""The file of `mesh simulate`: a cluster described by hand or by a tool, with every fault told at once.

Unlike in a service's own file, whatever is left out of `resources` counts as nothing: a simulation reserves what is
written and no more. Nor does a service need an image or a command, for nothing is run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from mesh import units
from mesh.model import Capacity, ReplicaState, Slot
from mesh.scheduler.blueprint import NO_DEMAND, Demand, draw
from mesh.scheduler.count import count_of
from mesh.scheduler.forecast.cluster import Cluster, Replica, Service, Site
from mesh.spec.errors import SpecError
from mesh.spec.files import read_document
from mesh.spec.scale import Job
from mesh.spec.service import parse_spec
from mesh.suggestion import suggestion
from mesh.units import shown

MAX_FILE = 64 * 2**20
"""Bytes: some hundred thousand replicas."""

MAX_COUNT = 10**9
MAX_DESIRED = 100_000

_ATTRIBUTES = ("arch", "os", "kernel", "engine", "runtime")
_NODE = ("name", "cpu", "memory", "resources", "reserved", "labels", "attributes", "availability", *_ATTRIBUTES)
_REPLICA = ("service", "slot", "node", "release", "state", "id", "tags", "ready", "since")
_BARRED = {"active": "", "pause": "is paused", "drain": "is draining", "lost": ""}

_T = TypeVar("_T")


def read_cluster(file: str) -> Cluster:
    """The cluster in a file; see `read_document`. Raises `SpecError`; a faulty spec is none: it parks its service."""
    return read_document(file, cluster_of, MAX_FILE)


def cluster_of(data: object) -> Cluster:
    """The cluster in a document.

    Raises:
        SpecError: with every fault, as `path: sentence`.
    """
    reader = _Reader()
    cluster = reader.cluster(data)
    if reader.faults:
        raise SpecError(reader.faults)
    return cluster


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A replica as it is written; `release` 0: not said, so the current one."""

    path: str
    id: str
    service: str
    slot: Slot
    node: str
    release: int
    state: ReplicaState
    since: float


class _Reader:
    """Reads what it can, and keeps the faults with their paths."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    # ── the parts of the file ────────────────────────────────────────────────────────────────

    def cluster(self, data: object) -> Cluster:
        whole = self._object("", data, ("nodes", "services", "replicas", "strategy"))
        sites = {name: self._site(f"nodes.{name}", name, body)
                 for name, body in self._object("nodes", whole.get("nodes")).items()}  # fmt: skip
        bodies = self._list("replicas", whole.get("replicas"))
        attempts = [self._attempt(f"replicas.{number}", number, body) for number, body in enumerate(bodies)]
        newest: dict[str, int] = {}
        for attempt in attempts:
            newest[attempt.service] = max(newest.get(attempt.service, 1), attempt.release)
        services: dict[str, Service] = {}
        demands: dict[str, Demand] = {}
        for name, body in self._object("services", whole.get("services")).items():
            services[name], demands[name] = self._service(f"services.{name}", name, body, newest.get(name, 1))
        return Cluster(
            sites=sites,
            services=services,
            replicas=self._replicas(attempts, services, demands),
            strategy=self._choice("strategy", whole.get("strategy"), ("spread", "binpack")) or "spread",
        )

    def _site(self, path: str, name: str, body: object) -> Site:
        node = self._object(path, body, _NODE)
        if not name:
            self._fault(path, "a node needs a name")
        if node.get("name", name) != name:
            self._fault(f"{path}.name", f"must be {name!r}, as its key is")
        given, reserved = self._capacity(path, node), self._reserved(f"{path}.reserved", node.get("reserved"))
        availability = self._choice(f"{path}.availability", node.get("availability"), tuple(_BARRED)) or "active"
        facts = {key: node[key] for key in _ATTRIBUTES if key in node}
        return Site(
            name=name,
            capacity=Capacity(
                cpu=max(0, given.cpu - reserved.cpu),
                memory=max(0, given.memory - reserved.memory),
                resources={
                    key: max(0, count - reserved.resources.get(key, 0)) for key, count in given.resources.items()
                },
            ),
            attributes={
                **self._texts(f"{path}.labels", node.get("labels")),
                **self._texts(f"{path}.attributes", node.get("attributes")),
                **self._texts(path, facts),
                "name": name,
                "cpu": f"{given.cpu / 1000:g}",
                "memory": str(given.memory),
            },
            barred=_BARRED[availability],
            draining=availability == "drain",
            lost=availability == "lost",
        )

    def _reserved(self, path: str, body: object) -> Capacity:
        """What the node keeps for itself; named counts may also stand beside `cpu` and `memory`, as in a spec."""
        given = self._object(path, body)
        beside = {key: given.pop(key) for key in [*given] if key not in ("cpu", "memory", "resources")}
        kept = self._capacity(path, given)
        counts = {key: self._whole(f"{path}.{key}", count) for key, count in beside.items()}
        return msgspec.structs.replace(kept, resources={**kept.resources, **counts})

    def _capacity(self, path: str, body: Mapping[str, object]) -> Capacity:
        resources = self._object(f"{path}.resources", body.get("resources"))
        for key in ("cpu", "memory"):
            if resources.pop(key, None) is not None:
                self._fault(f"{path}.resources.{key}", f"belongs beside resources: {path}.{key}")
        return Capacity(
            cpu=self._parsed(f"{path}.cpu", body.get("cpu"), units.parse_cpu, 0),
            memory=self._parsed(f"{path}.memory", body.get("memory"), units.parse_memory, 0),
            resources={key: self._whole(f"{path}.resources.{key}", count) for key, count in resources.items()},
        )

    def _service(self, path: str, name: str, body: object, seen: int) -> tuple[Service, Demand]:
        """The service, and what each replica of it takes; a faulty spec parks it."""
        if not isinstance(body, dict):
            return Service(name, None, 0, why=f"a service spec must be an object, got {shown(body)}"), NO_DEMAND
        written = {key: value for key, value in body.items() if key != "release"}
        release = self._whole(f"{path}.release", body["release"]) if body.get("release") is not None else seen
        if written.get("image") is None and written.get("command") is None:
            written |= {"image": name, "command": [name]}
        if isinstance(written.get("resources", {}), dict):
            written["resources"] = {"cpu": 0, "memory": 0, **written.get("resources", {})}
        try:
            spec = parse_spec(written, name)
            blueprint = draw(spec, spec.canonical())
        except SpecError as error:
            desired = written.get("replicas", 1)
            whole = isinstance(desired, int) and not isinstance(desired, bool) and 0 <= desired <= MAX_DESIRED
            demand = _roughly(written["resources"]) if isinstance(written["resources"], dict) else NO_DEMAND
            return Service(name, None, desired if whole else 1, release, "; ".join(error.errors)), demand
        job = spec.job or Job()
        started = min(job.parallelism, job.completions)
        desired = started if spec.kind == "job" else count_of(spec, None, None, 0).replicas
        return Service(name, blueprint, desired, release), blueprint.demand

    def _attempt(self, path: str, number: int, body: object) -> _Attempt:
        given = self._object(path, body, _REPLICA)
        service, node = (self._text(f"{path}.{key}", given.get(key)) for key in ("service", "node"))
        state = self._choice(f"{path}.state", given.get("state"), tuple(ReplicaState)) or ReplicaState.READY
        if given.get("ready") is False and state is ReplicaState.READY:
            state = ReplicaState.RUNNING
        slot = given.get("slot")
        if not (slot and isinstance(slot, str)) and not (type(slot) is int and slot > 0):
            self._fault(f"{path}.slot", f"must be a number from 1, or the node's name (kind global), got {shown(slot)}")
            slot = 1
        release = given.get("release")
        return _Attempt(
            path=path,
            id=self._text(f"{path}.id", given["id"]) if "id" in given else f"{service} {slot}: {number}",
            service=service,
            slot=slot,
            node=node,
            release=self._whole(f"{path}.release", release) if release is not None else 0,
            state=ReplicaState(state),
            since=self._parsed(f"{path}.since", given.get("since"), _moment, 0.0),
        )

    def _replicas(
        self, attempts: Sequence[_Attempt], services: Mapping[str, Service], demands: Mapping[str, Demand]
    ) -> list[Replica]:
        """In the order of their age: by `since`, then by release, then as in the file."""
        found: dict[str, Replica] = {}
        releases = {name: service.release for name, service in services.items()}
        for one in sorted(attempts, key=lambda one: (one.since, one.release or releases.get(one.service, 0))):
            service = services.get(one.service)
            if one.id in found:
                self._fault(f"{one.path}.id", f"{one.id!r} is there twice")
            if service and service.blueprint and (what := _misplaced(one, service.kind)):
                self._fault(f"{one.path}.slot", f"must be {what}: {one.service} is of kind {service.kind}")
            current = service is None or one.release in (0, service.release)
            demand = demands.get(one.service, NO_DEMAND)
            found[one.id] = Replica(one.id, one.service, one.slot, one.node, one.state, current, one.since, demand)
        return list(found.values())

    # ── values ───────────────────────────────────────────────────────────────────────────────

    def _fault(self, path: str, sentence: str) -> None:
        self.faults.append(f"{path}: {sentence}" if path else sentence)

    def _object(self, path: str, value: object, fields: Sequence[str] = ()) -> dict[str, Any]:
        """An object, or nothing; with `fields`, these and no others."""
        if value is None and path:
            return {}
        if not isinstance(value, dict):
            self._fault(path, f"must be an object, got {shown(value)}")
            return {}
        for key in value if fields else ():
            if key not in fields:
                self._fault(f"{path}.{key}" if path else str(key), f"unknown field{suggestion(str(key), fields)}")
        return {str(key): item for key, item in value.items()}

    def _list(self, path: str, value: object) -> list[Any]:
        if value is not None and not isinstance(value, list):
            self._fault(path, f"must be a list, got {shown(value)}")
        return value if isinstance(value, list) else []

    def _text(self, path: str, value: object) -> str:
        if isinstance(value, str) and value:
            return value
        self._fault(path, "is required" if value is None else f"must be text, got {shown(value)}")
        return ""

    def _texts(self, path: str, value: object) -> dict[str, str]:
        """Labels and attributes: a number or true means its text."""
        found: dict[str, str] = {}
        for key, item in self._object(path, value).items():
            if not isinstance(item, str | int | float):
                self._fault(f"{path}.{key}", f"must be text, got {shown(item)}")
            found[key] = str(item).lower() if isinstance(item, bool) else str(item)
        return found

    def _whole(self, path: str, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
            return value
        self._fault(path, f"must be a whole number 0..{MAX_COUNT}, got {shown(value)}")
        return 0

    def _choice(self, path: str, value: object, choices: Sequence[str]) -> str:
        """One of a few words; nothing if it is not there."""
        if value is None:
            return ""
        if isinstance(value, str) and value in choices:
            return value
        close = suggestion(value, choices) if isinstance(value, str) else ""
        self._fault(path, f"must be {', '.join(choices[:-1])} or {choices[-1]}, got {shown(value)}{close}")
        return ""

    def _parsed(self, path: str, value: object, parse: Callable[[object], _T], absent: _T) -> _T:
        if value is None:
            return absent
        try:
            return parse(value)
        except ValueError as error:
            self._fault(path, str(error))
            return absent


def _misplaced(one: _Attempt, kind: str) -> str:
    """What the slot must be instead, if it is none of this kind of service."""
    if kind == "global":
        return "" if one.slot == one.node else f"the node's name {one.node!r}"
    return "a number" if isinstance(one.slot, str) else ""


def _moment(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
        return float(value)
    raise ValueError(f"must be a moment in Unix seconds, got {shown(value)}")


def _roughly(resources: Mapping[str, Any]) -> Demand:
    """What a replica of a faulty spec takes, as far as that can be read: what runs stays where it is."""

    def read(key: str, parse: Callable[[object], int]) -> int:
        try:
            return parse(resources.get(key, 0))
        except ValueError:
            return 0

    counts = {key: count for key, count in resources.items() if key not in ("cpu", "memory") and type(count) is int}
    return Demand(read("cpu", units.parse_cpu), read("memory", units.parse_memory), counts)
