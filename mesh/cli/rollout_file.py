"""The file of `mesh rollout simulate`: what runs, what is rolled out, and what happens meanwhile."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mesh.model import ReplicaState, RolloutCommand
from mesh.scheduler.blueprint import draw
from mesh.scheduler.service.rollout import Served
from mesh.scheduler.service.script import MAX_REPLICAS, Happening, Resident, Script
from mesh.spec.errors import SpecError, sentences
from mesh.spec.fields import Count, Duration, FieldFault, Part, Positive, Ratio, Replicas, one_sentence
from mesh.spec.files import read_document
from mesh.spec.service import ServiceSpec, parse_spec

MAX_NODES = 100

_DurationOrNever = Annotated[Duration | Literal["never"], one_sentence("a duration such as 15s, or never")]
_State = Literal["starting", "running", "ready", "failed"]


_KINDS = ("state", "action", "spec", "replicas", "success_ratio")


class EventPart(Part):
    """Something that happens at a time: to a replica, by an operator, or in the proxies' figures of the canaries."""

    at: Duration
    slot: Positive | None = None
    replica: str | None = None
    state: Literal["running", "ready", "failed"] | None = None
    action: Literal["pause", "resume", "promote", "abort", "undo"] | None = None
    release: Count = 0
    to: Count = 0
    spec: dict[str, Any] | None = None
    replicas: Replicas | None = None
    success_ratio: Ratio | None = None
    requests: Positive = 100

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"needs exactly one of {', '.join(_KINDS)}, got {' and '.join(kinds) or 'none'}")
        if self.state is not None and (self.slot is None) == (self.replica is None):
            raise FieldFault("state", "needs a slot or a replica whose it is")
        return self


class ReplicaPart(Part):
    """A replica of the old release at the start."""

    slot: Positive
    state: _State = "ready"
    age: Duration = 3600.0


class ScriptPart(Part):
    """The whole file."""

    spec: dict[str, Any]
    old: dict[str, Any] | None = None
    replicas: Annotated[list[ReplicaPart], Field(max_length=MAX_REPLICAS)] | None = None
    nodes: Positive = 3
    ready_after: _DurationOrNever = 1.0
    fails_after: _DurationOrNever = "never"
    stops_after: Duration = 1.0
    events: Annotated[list[EventPart], Field(max_length=1000)] = []
    until: Duration = 3600.0


def read_script(file: str) -> Script:
    """The script in a file; see `read_document`. Raises `SpecError`."""
    return read_document(file, script_of)


def script_of(data: object) -> Script:
    """The script in a document. Raises `SpecError` with every fault, as `path: sentence`."""
    try:
        part = ScriptPart.model_validate(data)
    except ValidationError as error:
        raise SpecError([fault.removeprefix(": ") for fault in sentences(error, ScriptPart)]) from None
    faults: list[str] = []
    spec = _spec("spec", part.spec, faults)
    old = _spec("old", part.old, faults) if part.old is not None else None
    happenings = [_happening(f"events.{number}", event, faults) for number, event in enumerate(part.events)]
    if part.nodes > MAX_NODES:
        faults.append(f"nodes: must be at most {MAX_NODES}, got {part.nodes}")
    if part.replicas is not None and part.old is None:
        faults.append("replicas: are of the old release: give it as old")
    slots = [one.slot for one in part.replicas or ()]
    faults += [f"replicas.{number}.slot: {slot} is there twice"
               for number, slot in enumerate(slots) if slot in slots[:number]]  # fmt: skip
    if faults or spec is None:
        raise SpecError(faults)
    if old is not None and old.name != spec.name:
        raise SpecError([f"old.name: must be {spec.name!r}, as in spec, got {old.name!r}"])
    residents = [Resident(one.slot, ReplicaState(one.state), one.age) for one in part.replicas or ()]
    if part.replicas is None and old is not None:
        residents = [Resident(slot) for slot in range(1, old.replicas + 1)]
    return Script(
        spec=spec,
        old=old,
        residents=residents,
        nodes=part.nodes,
        ready_after=_or_never(part.ready_after),
        fails_after=_or_never(part.fails_after),
        stops_after=part.stops_after,
        happenings=sorted(happenings, key=lambda one: one.at),
        until=part.until,
    )


def _or_never(value: float | str) -> float | None:
    return value if isinstance(value, float) else None


def _happening(path: str, event: EventPart, faults: list[str]) -> Happening:
    ratio = event.success_ratio
    if event.replicas is not None and event.replicas > MAX_REPLICAS:
        faults.append(f"{path}.replicas: must be at most {MAX_REPLICAS}, got {event.replicas}")
    return Happening(
        at=event.at,
        slot=event.slot,
        replica=event.replica or "",
        state=ReplicaState(event.state) if event.state else None,
        command=RolloutCommand(action=event.action, release=event.release, to=event.to) if event.action else None,
        spec=_spec(f"{path}.spec", event.spec, faults) if event.spec is not None else None,
        replicas=event.replicas,
        served=None if ratio is None else Served(event.requests, event.requests * (1 - ratio)),
    )


def _spec(path: str, body: dict[str, Any], faults: list[str]) -> ServiceSpec | None:
    """A spec; it needs neither a name nor an image, for nothing is run."""
    plain = {"name": "web", **({} if "command" in body else {"image": "none"}), **body}
    try:
        spec = parse_spec(plain)
        draw(spec, spec.canonical())
    except SpecError as error:
        faults += [f"{path}.{fault}" for fault in error.errors]
        return None
    if spec.kind != "service":
        faults.append(f"{path}.kind: only kind service can be rehearsed, got {spec.kind}")
    if spec.replicas > MAX_REPLICAS:
        faults.append(f"{path}.replicas: must be at most {MAX_REPLICAS}, got {spec.replicas}")
    return spec
