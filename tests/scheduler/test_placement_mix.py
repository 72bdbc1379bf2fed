"""The paths of a batch on a cluster as large as a real one: what each service gets is what one at a time would give."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bench.placement.mix import ZONES, Mix, mixed
from mesh.scheduler.placement.batch import fill
from mesh.scheduler.placement.cluster import Cluster, Groups, Staying
from mesh.scheduler.placement.kinds import Ground, Kind, Shape
from mesh.scheduler.placement.search import one_by_one
from mesh.scheduler.placement.terms import Terms, Tier

NODES = 300


class Side:
    """A cluster, and the kinds of the mix on it."""

    def __init__(self, mix: Mix, *, packing: bool) -> None:
        self.cluster: Cluster = mix.cluster()
        shapes = [Shape(self.cluster, needs, packing=packing) for needs in mix.shapes]
        grounds = [Ground(rule, mix.rules[1:] if packing else None) for rule in mix.rules]
        self.kinds = [[Kind(shape, ground) for ground in grounds] for shape in shapes]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_mix_of_services_is_placed_as_one_replica_after_the_other(seed: int, packing: bool) -> None:
    mix, chance = mixed(NODES, 3000, seed=seed), random.Random(seed)
    batches, singly = Side(mix, packing=packing), Side(mix, packing=packing)
    zones = Groups(mix.zones, ZONES)
    for service in mix.services:
        lying = np.array([chance.randrange(NODES) for _ in range(chance.choice([0, 0, 1, 5]))], np.int64)
        terms = Terms(
            own=Staying(lying, NODES) if lying.size else None,
            max_per_node=chance.choice([service.per_node, service.per_node, None]),
            tiers=[Tier(zones, np.bincount(zones.of[lying], minlength=ZONES))] if service.spread else [],
        )
        found, expected = (
            place(side.cluster, side.kinds[service.shape][service.rule], terms, service.count).tolist()
            for place, side in ((fill, batches), (one_by_one, singly))
        )
        assert found == expected
    for dimension, free in singly.cluster.free.items():
        assert (batches.cluster.free[dimension] == free).all()
