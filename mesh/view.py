"""One immutable picture of the store: what is desired, planned and observed, decoded once per change.

A document that cannot be read changes nothing: the last good one stays in the picture, and `problems`
says which key and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from mesh import model
from mesh.keys import Keys
from mesh.spec.errors import SpecError
from mesh.spec.route import parse_route_json
from mesh.spec.service import ServiceSpec, parse_spec_json
from mesh.spec.strict_json import DocumentError, parse_json
from mesh.table import TableRoute
from mesh.units import shown

if TYPE_CHECKING:  # a picture of the store needs no store
    from mesh.store import Entry


MAX_CONFIG = 32 * 1024
"""Bytes of one value under `desired/configs/`: it becomes a part of releases, of which ten are kept."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A service as an operator wrote it: a valid spec, or what is wrong with it."""

    spec: ServiceSpec | None
    errors: tuple[str, ...]
    index: int  # of the key, for `cause`


@dataclass(frozen=True, slots=True)
class Command:
    """What an operator wants of a service's rollout; `index` of the key."""

    wish: model.RolloutCommand
    index: int


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as its agent reported it; `held`: the agent's session is alive."""

    report: model.NodeReport
    held: bool
    index: int


@dataclass(frozen=True, slots=True)
class View:
    """What was read; each mapping by the last part of its keys."""

    index: int = 0
    config: model.ClusterConfig = field(default_factory=model.ClusterConfig)
    wishes: Mapping[str, Wish] = field(default_factory=dict)
    scale: Mapping[str, int] = field(default_factory=dict)
    commands: Mapping[str, Command] = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, model.NodeSettings] = field(default_factory=dict)
    routes: Mapping[str, TableRoute] = field(default_factory=dict)
    plans: Mapping[str, model.ServicePlan] = field(default_factory=dict)
    scaled: Mapping[str, model.ScaleState] = field(default_factory=dict)
    """What the autoscaler decided; an operator's `scale` comes before it."""
    node_plans: Mapping[str, model.NodePlan] = field(default_factory=dict)
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    cluster: model.ClusterPlan = field(default_factory=model.ClusterPlan)
    plan_indexes: Mapping[str, int] = field(default_factory=dict)
    """Modify index of every planned key, for compare-and-set."""
    problems: tuple[str, ...] = ()
    unreadable: frozenset[str] = frozenset()
    """Keys that exist, but whose value could not be read even once: nothing is known of them."""


_T = TypeVar("_T")


class _Decoded(Generic[_T]):
    """The decoded values under one prefix; a value is decoded again only when its entry changed."""

    def __init__(self, prefix: str, decode: Callable[[str, Entry], _T], only: str | None = None) -> None:
        self._prefix = prefix
        self._only = only
        self._decode = decode
        self._read: dict[str, tuple[int, str | None, _T | None, str]] = {}

    def update(self, entries: Mapping[str, Entry], problems: list[str], unreadable: set[str]) -> dict[str, _T]:
        start = len(self._prefix)
        if self._only is not None:
            entry = entries.get(self._prefix + self._only)
            present = {self._only: entry} if entry else {}
        else:
            present = {key[start:]: entry for key, entry in entries.items()
                       if key.startswith(self._prefix) and len(key) > start}  # fmt: skip
        for name in self._read.keys() - present.keys():
            del self._read[name]
        values: dict[str, _T] = {}
        for name, entry in present.items():
            index, session, value, problem = self._read.get(name, (-1, None, None, ""))
            if (index, session) != (entry.modify_index, entry.session):
                try:
                    value, problem = self._decode(name, entry), ""
                except ValueError as error:  # the last good value stays
                    problem = f"{entry.key}: {error}"
                self._read[name] = (entry.modify_index, entry.session, value, problem)
            if problem:
                problems.append(problem)
            if value is not None:
                values[name] = value
            else:
                unreadable.add(entry.key)
        return values


_Doc = TypeVar("_Doc", bound=msgspec.Struct)


def decode_document(data: bytes, kind: type[_Doc]) -> _Doc:
    """A document of the store.

    Raises:
        ValueError: if it is not one, or of a newer format than this version reads.
    """
    try:
        document = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        newer = _format_of(data)
        if newer > model.FORMAT:
            raise ValueError(_too_new(newer)) from None
        raise ValueError(f"not a {kind.__name__}: {error}") from None
    if (found := getattr(document, "format", model.FORMAT)) > model.FORMAT:
        raise ValueError(_too_new(found))
    return document


def _format_of(data: bytes) -> int:
    try:
        value = parse_json(data)
    except DocumentError:
        return 0
    found = value.get("format", 0) if isinstance(value, dict) else 0
    return found if isinstance(found, int) else 0


def _too_new(found: int) -> str:
    return f"written by a newer mesh (format {found}, this version reads {model.FORMAT}): upgrade this one"


def encode_document(document: msgspec.Struct) -> bytes:
    return msgspec.json.encode(document)


def _document(kind: type[_Doc]) -> Callable[[str, Entry], _Doc]:
    return lambda _, entry: decode_document(entry.value, kind)


def _wish(name: str, entry: Entry) -> Wish:
    try:
        return Wish(parse_spec_json(entry.value, name), (), entry.modify_index)
    except SpecError as error:
        return Wish(None, tuple(error.errors), entry.modify_index)


def _route(name: str, entry: Entry) -> TableRoute:
    try:
        return msgspec.convert(parse_route_json(entry.value, name).canonical(), TableRoute)
    except SpecError as error:
        raise ValueError("; ".join(error.errors)) from None


def _scale(_: str, entry: Entry) -> int:
    """`5`, or `{"replicas": 5}`."""
    value = parse_json(entry.value)
    count = value.get("replicas") if isinstance(value, dict) else value
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 100_000:
        raise ValueError(f"must be a count of replicas from 0 to 100000, got {shown(count)}")
    return count


def _config(_: str, entry: Entry) -> str:
    if len(entry.value) > MAX_CONFIG:
        raise ValueError(f"has {len(entry.value)} bytes, a config has at most {MAX_CONFIG}")
    try:
        text = entry.value.decode()
    except UnicodeDecodeError:
        raise ValueError("must be text in UTF-8") from None
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _command(_: str, entry: Entry) -> Command:
    return Command(decode_document(entry.value, model.RolloutCommand), entry.modify_index)


def _node(_: str, entry: Entry) -> NodeView:
    report = decode_document(entry.value, model.NodeReport)
    return NodeView(report, entry.session is not None, entry.modify_index)


class ViewReader:
    """Turns what the watches deliver into `View`s, decoding only what changed."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._wishes = _Decoded(keys.services, _wish)
        self._scale = _Decoded(keys.scale(""), _scale)
        self._commands = _Decoded(keys.rollout(""), _command)
        self._configs = _Decoded(keys.config_value(""), _config)
        self._settings = _Decoded(keys.node_settings(""), _document(model.NodeSettings))
        self._routes = _Decoded(keys.route(""), _route)
        self._plans = _Decoded(keys.planned_services, _document(model.ServicePlan))
        self._scaled = _Decoded(keys.scale_state(""), _document(model.ScaleState))
        self._node_plans = _Decoded(keys.planned_nodes, _document(model.NodePlan))
        self._nodes = _Decoded(keys.observed_nodes, _node)
        self._cluster = _Decoded(keys.planned, _document(model.ClusterPlan), only="cluster")
        self._config = _Decoded(keys.desired, _document(model.ClusterConfig), only="config")

    def read(self, entries: Mapping[str, Entry], index: int = 0) -> View:
        problems: list[str] = []
        unreadable: set[str] = set()
        return View(
            index=index,
            config=self._config.update(entries, problems, unreadable).get("config", model.ClusterConfig()),
            wishes=self._wishes.update(entries, problems, unreadable),
            scale=self._scale.update(entries, problems, unreadable),
            commands=self._commands.update(entries, problems, unreadable),
            configs=self._configs.update(entries, problems, unreadable),
            settings=self._settings.update(entries, problems, unreadable),
            routes=self._routes.update(entries, problems, unreadable),
            plans=self._plans.update(entries, problems, unreadable),
            scaled=self._scaled.update(entries, problems, unreadable),
            node_plans=self._node_plans.update(entries, problems, unreadable),
            nodes=self._nodes.update(entries, problems, unreadable),
            cluster=self._cluster.update(entries, problems, unreadable).get("cluster", model.ClusterPlan()),
            plan_indexes={key: entry.modify_index for key, entry in entries.items()
                          if key.startswith(self._keys.planned)},
            problems=tuple(problems),
            unreadable=frozenset(unreadable),
        )  # fmt: skip
