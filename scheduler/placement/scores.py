"""How good a node is for a replica, as one integer: less is better, and equals are told apart by name.

The wishes stand in the integer from the highest bits to the lowest, so that comparing two integers compares wish by
wish. `NEVER` marks nodes that will not do.

    spread:   affinity 14 │ own replicas 17 │ load 28
    binpack:  affinity 14 │ resources to spare 4 │ labels to spare 4 │ emptiness 28 │ own replicas 13
              (or, for what asks for named resources, how much of them is lost in place of the emptiness)

Loads are made of IEEE additions, multiplications and comparisons alone: the same on every machine, for a whole array
and for one node.
"""

from __future__ import annotations

import numpy as np

from mesh.scheduler.placement.cluster import NEVER as NEVER
from mesh.scheduler.placement.cluster import Floats, Ints

_LOAD = 28
_WHOLE: int = 2**_LOAD - 1
_OWN_SPREAD = 17
_OWN_PACK = 13
_RESOURCES = 4
_LABELS = 4

# as arrays without dimensions numbers cost a calculation half as much
_WHOLE_0D = np.array(float(_WHOLE))
_HALF_0D = np.array(_WHOLE / 2)
_OWN_PACK_0D, _LOAD_0D = np.array(_OWN_PACK), np.array(_LOAD)
_MOST_PACK_0D, _MOST_SPREAD_0D = np.array(2**_OWN_PACK - 1), np.array(2**_OWN_SPREAD - 1)

EMPTINESS = 0.01
"""How bad an empty node is, beside a node's worth of a resource that is lost to others."""
SCARCE = 0.5
"""Labels that at most this share of the nodes have are scarce."""
MAX_AFFINITY = 2**13 - 1
"""64 affinities of weight 100 stay below it."""


def spread_keys(cpu: Floats, memory: Floats) -> Ints:
    """The keys of nodes without a replica of the service, but for affinities: how full the fullest dimension is.

    Given are the shares of CPU and of memory that are left with the replica on it, 0..1; neither is kept. (Where they
    are below zero, there is no room, and the key is of no matter.)
    """
    empty = np.minimum(cpu, memory, out=cpu)
    empty *= _WHOLE_0D
    keys: Ints = _WHOLE - empty.astype(np.int64)
    return keys


def spread_key(cpu: float, memory: float) -> int:
    """The same for one node."""
    return _WHOLE - int(min(cpu, memory) * _WHOLE)


def pack_keys(cpu: Floats, memory: Floats) -> Ints:
    """The keys of nodes without a replica of the service, but for affinities and what is spared: how empty they are.

    It is the mean of CPU and memory: a node that is full in both goes before one that is full in either.
    """
    empty = np.add(cpu, memory, out=cpu)
    empty *= _HALF_0D
    keys: Ints = empty.astype(np.int64)
    keys <<= _OWN_PACK_0D
    return keys


def pack_key(cpu: float, memory: float) -> int:
    """The same for one node."""
    return int((cpu + memory) * (_WHOLE / 2)) << _OWN_PACK


def worth_keys(lost: Floats, empty: Floats) -> Ints:
    """The same where named resources are asked for: how much of what is free of them is lost to others, -1..2.

    `empty`: the mean of the shares that are left, of everything that is asked for. It tells apart what is alike else.
    """
    steps = np.clip((lost + empty * EMPTINESS + 1.0) * (_WHOLE / 4), 0.0, float(_WHOLE))
    keys: Ints = steps.astype(np.int64) << _OWN_PACK
    return keys


def tells_apart(shares: Floats) -> bool:
    """True if a replica that takes any of these shares (of CPU and memory together) makes a difference."""
    return shares.size > 0 and float(shares.min()) * (_WHOLE / 2) >= 2.0


def spared_resources(kinds: Ints) -> Ints:
    """How many kinds of resources are free on a node that are not asked for, as a part of its key (binpack)."""
    part: Ints = np.minimum(kinds, 2**_RESOURCES - 1) << (_LOAD + _OWN_PACK + _LABELS)
    return part


def spared_labels(wanted: Floats) -> Ints:
    """By how many others a node is wanted for its labels, the rarer the more, as a part of its key (binpack)."""
    part: Ints = np.minimum(2.0 * wanted, 2**_LABELS - 1).astype(np.int64) << (_LOAD + _OWN_PACK)
    return part


def own_part(own: Ints, *, packing: bool) -> Ints:
    """What the service's own replicas on a node add to its key."""
    part: Ints = np.minimum(own, _MOST_PACK_0D) if packing else np.minimum(own, _MOST_SPREAD_0D) << _LOAD_0D
    return part


def own_part_of(own: int, *, packing: bool) -> int:
    """The same for one node."""
    part: int = min(own, 2**_OWN_PACK - 1) if packing else min(own, 2**_OWN_SPREAD - 1) << _LOAD
    return part


def affinity_part(affinity: Ints, *, packing: bool) -> Ints:
    """What the sum of the weights that a node matches adds to its key: most is best."""
    shift = _LOAD + (_OWN_PACK + _LABELS + _RESOURCES if packing else _OWN_SPREAD)
    return (MAX_AFFINITY - affinity) << shift


def below_affinity(key: int, *, packing: bool) -> int:
    """A key without the part of affinities."""
    shift = _LOAD + (_OWN_PACK + _LABELS + _RESOURCES if packing else _OWN_SPREAD)
    return key & ((1 << shift) - 1)


def levels_between(best: int, worst: int) -> int:
    """How many more replicas than the worst node's a node with the best key may get before it is as bad (spread)."""
    return (worst >> _LOAD) - (best >> _LOAD) + 1


def parts(key: int, *, packing: bool, affinity: int, worth: bool = False) -> tuple[tuple[str, float], ...]:
    """A key's parts by name, in the order they count; `worth`: of those that ask for named resources."""
    pull = (("affinity", float(affinity)),)
    own = key & (2**_OWN_PACK - 1) if packing else key >> _LOAD & (2**_OWN_SPREAD - 1)
    if not packing:
        return (*pull, ("own replicas", float(own)), ("load", _share(key & _WHOLE)))
    emptiness = key >> _OWN_PACK & _WHOLE
    labels = key >> (_OWN_PACK + _LOAD) & (2**_LABELS - 1)
    resources = key >> (_OWN_PACK + _LOAD + _LABELS) & (2**_RESOURCES - 1)
    return (
        *pull,
        ("resources to spare", float(resources)),
        ("labels to spare", float(labels)),
        ("resources lost", round(4 * emptiness / _WHOLE - 1, 4)) if worth else ("emptiness", _share(emptiness)),
        ("own replicas", float(own)),
    )


def _share(steps: int) -> float:
    share: float = round(steps / _WHOLE, 4)
    return share
