"""200 requests a second through the proxies of four hosts while operators do what they do: none fails.

`make bench-lab` does the same for 10,000 requests each.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import events
from tests.lab.events import EVENTS, Event
from tests.lab.lab import Lab, remove
from tests.lab.operator import Operator, eventually
from tests.lab.record import Recorder
from tests.lab.traffic import Traffic

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.consul, pytest.mark.slow]


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


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_no_request_fails(operator: Operator, event: Event) -> None:
    before = operator.running(operator.names())
    with Traffic(operator.vip(), operator.names(), record=operator.record) as traffic:
        eventually("load", traffic.more(50))
        event.do(operator)
        eventually("load after it", traffic.more(50))
    assert traffic.failures == []
    if not event.moves:
        assert operator.running(operator.names()) == before
