"""What can be said of a blueprint's wishes before anything is placed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from mesh.scheduler.blueprint import Blueprint
from mesh.scheduler.filters import Constraint


class Labelled(Protocol):
    """What is looked at of a node."""

    @property
    def attributes(self) -> Mapping[str, str]: ...


def warnings(blueprint: Blueprint, nodes: Iterable[Labelled]) -> list[str]:
    """Wishes that come to nothing, each with its path: for labels and values that no node has.

    A rule that no node follows needs no warning: its replicas wait, with the reasons. Without nodes there is nothing
    to say.
    """
    values: dict[str, set[str]] = {}
    for node in nodes:
        for label, value in node.attributes.items():
            values.setdefault(label, set()).add(value)
    return list(_vain(blueprint, values)) if values else []


def _vain(blueprint: Blueprint, values: Mapping[str, set[str]]) -> Iterator[str]:
    for number, (towards, _) in enumerate(blueprint.affinities):
        if isinstance(towards, Constraint) and towards.label not in values:
            yield f"placement.affinities.{number}: no node has the label {towards.label!r}"
    for number, spread in enumerate(blueprint.spec.placement.spread):
        if spread.label not in values:
            yield f"placement.spread.{number}: no node has the label {spread.label!r}"
            continue
        for value in spread.targets:
            if value not in values[spread.label]:
                yield f"placement.spread.{number}.targets.{value}: no node has {spread.label} {value!r}"
