"""Hosts that die, blink or hang, and a store that is away, in the laboratory: what moves, what does not, who says so.

`make bench-lab` suffers all of `faults.FAULTS`, several times and as long as they are to last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from tests.lab import events
from tests.lab.faults import FAULTS, Fault, suffer
from tests.lab.lab import Lab, remove
from tests.lab.operator import Operator
from tests.lab.record import Recorder

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.consul, pytest.mark.slow]

BRIEF = [fault for fault in FAULTS if fault.brief is not None]


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    operator = Operator(Lab.up(hosts=4, servers=3))
    try:
        operator.load_image()
        events.serve(operator)
        with Recorder(operator):
            yield operator
    finally:
        remove()


@pytest.mark.parametrize("fault", BRIEF, ids=lambda fault: fault.name)
def test_what_is_promised_holds(operator: Operator, fault: Fault) -> None:
    outcome = suffer(operator, fault, fault.brief or 0.0)
    assert [failure for failure in outcome.failures if failure.began > (outcome.out or -math.inf)] == []
