"""What is left over of a resource: what nobody will ask for, because no sum of the usual amounts fills it.

Where requests are for 460, 810 and 1000 thousandths of a GPU, a node with 190 free has 190 too many, and one with 460
free has none. Fragmentation gradient descent (FGD, Weng et al., USENIX ATC'23) asks for the chance that one more
request fits; this asks what would remain after as many as will fit, which also tells 920 from 1000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

USUAL = 0.03
"""Amounts that at least this share of all requests are for. Rarer ones come too late to count on."""
MAX_STEPS = 2**14
"""Amounts told apart; where those in use have no common divisor that coarse, they are rounded."""


class Leftover:
    """What is left over of one resource, by what is free."""

    def __init__(self, asked: Mapping[int, int], most: int) -> None:
        """`asked`: how many replicas have which amount, none of them zero; `most`: what the largest node has."""
        self._most = max(most, 1)
        total = sum(asked.values())
        usual = [amount for amount, count in asked.items() if count >= USUAL * total]
        self._unit = max(math.gcd(*usual), -(-self._most // MAX_STEPS))
        steps = self._most // self._unit
        filled = _sums([-(-amount // self._unit) for amount in usual], steps)
        at = np.arange(steps + 1)
        self._left = at - np.maximum.accumulate(np.where(filled, at, 0))

    def share(self, free: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of what the largest node has. Less than nothing free leaves nothing over."""
        free = np.clip(free, 0, self._most)
        steps = free // self._unit
        share: NDArray[np.float64] = (self._left[steps] * self._unit + free % self._unit) / self._most
        return share


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
