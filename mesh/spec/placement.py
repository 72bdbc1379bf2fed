"""The `placement` of a spec: where replicas may and should run."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mesh.spec.fields import FieldFault, Part, Percent, Positive, Priority, Text, Weight, Word


class Affinity(Part):
    """A pull towards (or, below zero, away from) nodes: exactly one of `match` or `service`."""

    match: Text | None = None
    """Towards nodes for which this constraint holds: `zone == eu-1`."""
    service: Word | None = None
    """Towards nodes that run this service."""
    weight: Weight = 50
    """-100 (away from) to 100 (towards)."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.match is None) == (self.service is None):
            raise ValueError("needs exactly one of match or service")
        return self


class Spread(Part):
    """Replicas shared out over the values of a label."""

    label: Word
    """Node label whose values the replicas are spread over."""
    targets: dict[Word, Percent] = {}
    """Share of the replicas per value; the rest is shared evenly among values not named."""

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if sum(self.targets.values()) > 1 + 1e-9:
            raise FieldFault("targets", "must not add up to more than 100%")
        return self


class Placement(Part):
    """Where replicas may and should run."""

    strategy: Literal["spread", "binpack"] | None = None
    """Even load, or full nodes first; default: the cluster's."""
    constraints: Annotated[list[Text], Field(max_length=64)] = []
    """What a node must be: `zone == eu-1`, `disk in [ssd, nvme]`, `kernel >= 5.10`, `gpu-model exists`."""
    affinities: Annotated[list[Affinity], Field(max_length=64)] = []
    """What a node should be."""
    spread: Annotated[list[Spread], Field(max_length=16)] = []
    """Over which labels to spread."""
    max_per_node: Positive | None = None
    """Most replicas on one node."""
    max_per: dict[Word, Positive] = {}
    """Most replicas per value of a node label: `{rack: 4}`."""
    priority: Priority = 50
    """Who comes first when room is scarce."""
