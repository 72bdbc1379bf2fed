"""What can be said of a blueprint before anything is placed: wishes and rules that these nodes can hardly meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from mesh.model import Capacity
from mesh.scheduler.blueprint import Blueprint
from mesh.scheduler.filters import Constraint
from mesh.scheduler.sentences import size_text
from mesh.units import format_cpu


class Place(Protocol):
    """What is looked at of a node."""

    @property
    def attributes(self) -> Mapping[str, str]: ...

    @property
    def capacity(self) -> Capacity: ...


def warnings(blueprint: Blueprint, nodes: Iterable[Place]) -> list[str]:
    """Each with the path of what it is about: labels and values that no node has, and more than any node has.

    They stop nothing: a node may come that changes it. Without nodes there is nothing to say.
    """
    known = list(nodes)
    return [*_labels(blueprint, known), *_resources(blueprint, known)] if known else []


def _labels(blueprint: Blueprint, nodes: list[Place]) -> Iterator[str]:
    values: dict[str, set[str]] = {}
    for node in nodes:
        for label, value in node.attributes.items():
            values.setdefault(label, set()).add(value)
    placement = blueprint.spec.placement
    for path, label in _named(blueprint):
        if label not in values:
            yield f"{path}: no node has the label {label!r}"
    for number, spread in enumerate(placement.spread):
        for value in spread.targets:
            if spread.label in values and value not in values[spread.label]:
                yield f"placement.spread.{number}.targets.{value}: no node has {spread.label} {value!r}"


def _named(blueprint: Blueprint) -> Iterator[tuple[str, str]]:
    """Labels that must be there for something to take effect, with their paths."""
    placement = blueprint.spec.placement
    for number, constraint in enumerate(blueprint.constraints):
        if not constraint.test(None):  # a missing label is what `!=` and `not in` may mean
            yield f"placement.constraints.{number}", constraint.label
    for number, (towards, _) in enumerate(blueprint.affinities):
        if isinstance(towards, Constraint):
            yield f"placement.affinities.{number}", towards.label
    yield from ((f"placement.spread.{number}", spread.label) for number, spread in enumerate(placement.spread))
    yield from ((f"placement.max_per.{label}", label) for label in placement.max_per)


def _resources(blueprint: Blueprint, nodes: list[Place]) -> Iterator[str]:
    demand = blueprint.demand
    if demand.cpu > (most := max(node.capacity.cpu for node in nodes)):
        yield f"resources.cpu: needs {format_cpu(demand.cpu)}, the largest node has {format_cpu(max(most, 0))}"
    if demand.memory > (most := max(node.capacity.memory for node in nodes)):
        yield f"resources.memory: needs {size_text(demand.memory)}, the largest node has {size_text(max(most, 0))}"
    for name, count in demand.resources.items():
        if count > (most := max(node.capacity.resources.get(name, 0) for node in nodes)):
            yield f"resources.{name}: needs {count}, the largest node has {most}"
