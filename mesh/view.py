"""One immutable picture of the store: what is desired, planned and observed, decoded once per change.

A document that cannot be read changes nothing: the last good one stays in the picture, and `problems`
says which key and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import is_not
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

    @property
    def is_back(self) -> bool:
        """Its agent is there, and has seen what runs."""
        return self.held and not self.report.remembered


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
    """The decoded values of one folder of keys; a value is decoded again only when its entry changed."""

    def __init__(self, folder: str, decode: Callable[[str, Entry], _T], only: str | None = None) -> None:
        """`folder` ends with a slash; `only`: of all the keys there, this one."""
        self._folder = folder
        self._only = only
        self._decode = decode
        self._entries: Mapping[str, Entry] = {}
        self._read: dict[str, tuple[int, str | None, _T | None, str]] = {}
        self._values: dict[str, _T] = {}
        self._problems: list[str] = []
        self._unreadable: set[str] = set()

    def update(
        self, folders: Mapping[str, Mapping[str, Entry]], problems: list[str], unreadable: set[str]
    ) -> dict[str, _T]:
        entries = folders.get(self._folder, {})
        if self._only is not None:
            entries = {self._only: entries[self._only]} if self._only in entries else {}
        if entries is not self._entries:
            self._entries = entries
            self._update(entries)
        problems += self._problems
        unreadable |= self._unreadable
        return self._values

    def _update(self, entries: Mapping[str, Entry]) -> None:
        for name in self._read.keys() - entries.keys():
            del self._read[name]
        for name, entry in entries.items():
            index, session, value, problem = self._read.get(name, (-1, None, None, ""))
            if (index, session) != (entry.modify_index, entry.session):
                try:
                    value, problem = self._decode(name, entry), ""
                except ValueError as error:  # the last good value stays
                    problem = f"{entry.key}: {error}"
                self._read[name] = (entry.modify_index, entry.session, value, problem)
        self._values = {name: value for name, (_, _, value, _) in self._read.items() if value is not None}
        self._problems = [problem for _, _, _, problem in self._read.values() if problem]
        self._unreadable = {self._folder + name for name in self._read.keys() - self._values.keys()}


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


def leader_of(entry: Entry | None) -> model.Leader:
    """Who holds the lock of this key, or did last; without a name where nobody can tell."""
    try:
        return decode_document(entry.value, model.Leader) if entry else model.Leader()
    except ValueError:
        return model.Leader()


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
        self._parts: list[tuple[Mapping[str, Entry], Mapping[str, Mapping[str, Entry]]]] = []
        self._planned: list[Mapping[str, Entry]] = []
        self._plan_indexes: Mapping[str, int] = {}
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
        return self.read_parts([dict(entries)], index)

    def read_parts(self, parts: Iterable[Mapping[str, Entry]], index: int = 0) -> View:
        """Of several watches. What is the very mapping that it was last time is not looked at again."""
        folders = self._folders(parts)
        problems: list[str] = []
        unreadable: set[str] = set()
        return View(
            index=index,
            config=self._config.update(folders, problems, unreadable).get("config", model.ClusterConfig()),
            wishes=self._wishes.update(folders, problems, unreadable),
            scale=self._scale.update(folders, problems, unreadable),
            commands=self._commands.update(folders, problems, unreadable),
            configs=self._configs.update(folders, problems, unreadable),
            settings=self._settings.update(folders, problems, unreadable),
            routes=self._routes.update(folders, problems, unreadable),
            plans=self._plans.update(folders, problems, unreadable),
            scaled=self._scaled.update(folders, problems, unreadable),
            node_plans=self._node_plans.update(folders, problems, unreadable),
            nodes=self._nodes.update(folders, problems, unreadable),
            cluster=self._cluster.update(folders, problems, unreadable).get("cluster", model.ClusterPlan()),
            plan_indexes=self._indexes(folders),
            problems=tuple(problems),
            unreadable=frozenset(unreadable),
        )  # fmt: skip

    def _folders(self, parts: Iterable[Mapping[str, Entry]]) -> Mapping[str, Mapping[str, Entry]]:
        """By folder, and there by the last part of the key."""
        known, self._parts = self._parts, []
        folders: dict[str, Mapping[str, Entry]] = {}
        for part in parts:
            split = next((split for same, split in known if same is part), None) or _by_folder(part)
            self._parts.append((part, split))
            for folder, entries in split.items():
                folders[folder] = {**folders[folder], **entries} if folder in folders else entries
        return folders

    def _indexes(self, folders: Mapping[str, Mapping[str, Entry]]) -> Mapping[str, int]:
        planned = [entries for folder, entries in folders.items() if folder.startswith(self._keys.planned)]
        if len(planned) != len(self._planned) or any(map(is_not, planned, self._planned)):
            self._planned = planned
            self._plan_indexes = {entry.key: entry.modify_index for entries in planned for entry in entries.values()}
        return self._plan_indexes


def _by_folder(part: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    folders: dict[str, dict[str, Entry]] = {}
    for key, entry in part.items():
        cut = key.rfind("/") + 1
        if cut < len(key):
            folders.setdefault(key[:cut], {})[key[cut:]] = entry
    return folders
