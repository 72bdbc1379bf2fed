"""What the free amount of a named resource is good for on a node: as much of it as somebody can still make use of.

A GPU is of no use without the CPU and the memory that its users need beside it; and where they ask for 460, 810 or 1000
thousandths of it, 190 are of no use at all. So of what is free counts

    the part for which CPU and memory suffice, at what its users take on average per unit of it,
    less what no sum of the usual amounts fills.

Binpack puts a replica where it destroys the least of that: users with much CPU go where there is much CPU for each
GPU, and pieces are joined so that nothing is left over. Fragmentation gradient descent (FGD, Weng et al., USENIX
ATC'23) has the same aim; it asks for the chance that one more request fits, this for what remains when as many have
come as will fit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

USUAL = 0.03
"""Amounts that at least this share of all users have. Rarer ones come too seldom to count on."""
MAX_STEPS = 2**14
"""Amounts told apart; where those in use have no common divisor that coarse, they are rounded."""


class Use(NamedTuple):
    """What one replica takes of a resource, and beside it."""

    amount: int
    cpu: int
    memory: int


class Worth:
    """Of one resource, by what is free on a node; as a share of what the largest node has."""

    def __init__(self, uses: Iterable[Use], most: int) -> None:
        """`uses`: of each replica that has or wants some of it, none of nothing; `most`: what the largest node has."""
        self._most = max(most, 1)
        amounts: Counter[int] = Counter()
        cpu = memory = 0
        for use in uses:
            amounts[use.amount] += 1
            cpu += use.cpu
            memory += use.memory
        whole = sum(amount * count for amount, count in amounts.items())
        self._per_cpu, self._per_memory = (whole / beside if beside else math.inf for beside in (cpu, memory))
        usual = [amount for amount, count in amounts.items() if count >= USUAL * amounts.total()]
        self._unit = max(math.gcd(*usual), -(-self._most // MAX_STEPS))
        steps = self._most // self._unit
        at = np.arange(steps + 1)
        filled = _sums([-(-amount // self._unit) for amount in usual], steps)
        self._over = at - np.maximum.accumulate(np.where(filled, at, 0))

    def of(self, free: Integers, cpu: Integers, memory: Integers) -> Floats:
        """For nodes with so much free; what is below zero counts as nothing."""
        usable = free.astype(np.float64)
        for beside, per_unit in ((cpu, self._per_cpu), (memory, self._per_memory)):
            if per_unit < math.inf:
                usable = np.minimum(usable, beside * per_unit)
        return np.maximum(usable, 0.0) / self._most - self.left_over(free)

    def left_over(self, free: Integers) -> Floats:
        """What no sum of the usual amounts fills."""
        free = np.clip(free, 0, self._most)
        over: Floats = (self._over[free // self._unit] * self._unit + free % self._unit) / self._most
        return over


def _sums(amounts: list[int], most: int) -> NDArray[np.bool_]:
    """Which numbers from 0 to `most` are sums of these amounts, each as often as needed: the bits of one integer."""
    reached, every = 1, (1 << (most + 1)) - 1
    for amount in amounts:
        step = amount
        while step <= most:
            reached |= (reached << step) & every
            step *= 2
    bits = np.frombuffer(reached.to_bytes(most // 8 + 1, "little"), np.uint8)
    return np.unpackbits(bits, bitorder="little")[: most + 1].astype(bool)
