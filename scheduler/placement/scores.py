"""How good a node is for a replica, as one integer: less is better, and equals are told apart by name.

The wishes stand in the integer from the highest bits to the lowest, so that comparing two integers compares wish by
wish. `NEVER` marks nodes that will not do.

    spread:   affinity 14 │ own replicas 17 │ load 28
    binpack:  affinity 14 │ spared 8 │ emptiness 28 │ own replicas 13

Loads are made of IEEE additions, multiplications and comparisons alone: the same on every machine, for a whole array
and for one node.
"""

from __future__ import annotations

import numpy as np

from mesh.scheduler.placement.cluster import Floats, Ints

NEVER = 2**63 - 1

_LOAD = 28
_WHOLE: int = 2**_LOAD - 1
_OWN_SPREAD = 17
_OWN_PACK = 13
_SPARED = 8

MAX_SPARED = 2**_SPARED - 1
RESOURCE_SPARED = 32
"""What a free resource counts that is not asked for: more than any few labels."""
LABEL_SPARED = 8
"""What a label counts at most that others ask for and few nodes have."""
SCARCE = 0.5
"""Labels that at most this share of the nodes have are scarce."""
MAX_AFFINITY = 2**13 - 1
"""64 affinities of weight 100 stay below it."""


def spread_load(cpu_left: Floats, memory_left: Floats) -> Floats:
    """How loaded a node is, 0..1: by the fullest of its dimensions, from the shares that are left with the replica."""
    load: Floats = 1.0 - np.minimum(cpu_left, memory_left)
    return load


def pack_load(cpu_left: Floats, memory_left: Floats) -> Floats:
    """How full a node is, 0..1: the mean of its dimensions, so that one that is full in both goes first."""
    load: Floats = 1.0 - (cpu_left + memory_left) * 0.5
    return load


def _steps(load: Floats) -> Ints:
    """A load in whole steps; an overcommitted node is full."""
    steps: Ints = (np.clip(load, 0.0, 1.0) * _WHOLE).astype(np.int64)
    return steps


def spread_key(cpu_left: Floats, memory_left: Floats) -> Ints:
    """The key of nodes without a replica of the service, but for affinities."""
    return _steps(spread_load(cpu_left, memory_left))


def pack_key(cpu_left: Floats, memory_left: Floats, spared: Ints) -> Ints:
    """The key of nodes without a replica of the service, but for affinities.

    `spared`: how much there is on a node that is scarce and not asked for.
    """
    emptiness = _WHOLE - _steps(pack_load(cpu_left, memory_left))
    key: Ints = (spared << (_LOAD + _OWN_PACK)) | (emptiness << _OWN_PACK)
    return key


def own_part(own: Ints, *, packing: bool) -> Ints:
    """What the service's own replicas on a node add to its key."""
    part: Ints = np.minimum(own, 2**_OWN_PACK - 1) if packing else np.minimum(own, 2**_OWN_SPREAD - 1) << _LOAD
    return part


def affinity_part(affinity: Ints, *, packing: bool) -> Ints:
    """What the sum of the weights that a node matches adds to its key: most is best."""
    shift = _LOAD + (_OWN_PACK + _SPARED if packing else _OWN_SPREAD)
    return (MAX_AFFINITY - affinity) << shift


def below_affinity(key: int, *, packing: bool) -> int:
    """A key without the part of affinities."""
    shift = _LOAD + (_OWN_PACK + _SPARED if packing else _OWN_SPREAD)
    return key & ((1 << shift) - 1)


def levels_between(best: int, worst: int) -> int:
    """How many more replicas than the worst node's a node with the best key may get before it is as bad (spread)."""
    return (worst >> _LOAD) - (best >> _LOAD) + 1


def parts(key: int, *, packing: bool, affinity: int) -> tuple[tuple[str, float], ...]:
    """A key's parts by name, in the order they count."""
    own_bits = _OWN_PACK if packing else _OWN_SPREAD
    pull = (("affinity", float(affinity)),)
    if packing:
        own = key & (2**own_bits - 1)
        emptiness = (key >> own_bits) & _WHOLE
        spared = (key >> (own_bits + _LOAD)) & MAX_SPARED
        return (*pull, ("spared", float(spared)), ("load", _share(_WHOLE - emptiness)), ("own replicas", float(own)))
    own = (key >> _LOAD) & (2**own_bits - 1)
    return (*pull, ("own replicas", float(own)), ("load", _share(key & _WHOLE)))


def _share(steps: int) -> float:
    share: float = round(steps / _WHOLE, 4)
    return share
