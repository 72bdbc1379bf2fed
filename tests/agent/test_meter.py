"""CPU and memory of a node's replicas, as the autoscaler gets them."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from mesh.agent import meter
from mesh.agent.meter import Meter, UsageWindow
from mesh.dataplane.load import WINDOW
from mesh.runtime import RuntimeFault
from mesh.runtime.usage import Usage
from tests.fakes.runtime import FakeRuntime, Ground


class Metered(FakeRuntime):
    """A runtime with figures to be set."""

    def __init__(self) -> None:
        super().__init__(Ground())
        self.used: dict[str, Usage] | RuntimeFault = {}
        self.looks = 0

    async def usage(self, ids: Collection[str]) -> dict[str, Usage]:
        self.looks += 1
        if isinstance(self.used, RuntimeFault):
            raise self.used
        return {id: usage for id, usage in self.used.items() if id in ids}


def test_cpu_is_the_rate_over_the_last_seconds_and_memory_that_of_now() -> None:
    window = UsageWindow()
    window.add(Usage(5.0, 100), 1000.0)
    assert window.report().cpu is None, "one look has no rate"
    for second in range(1, 40):
        window.add(Usage(5.0 + (second if second > 20 else 0) * 0.5, 100 + second), 1000.0 + second)
    told = window.report()
    assert told.cpu == pytest.approx(500)
    assert (told.memory, told.window) == (139, WINDOW)


def test_a_counter_that_falls_is_no_negative_load() -> None:
    window = UsageWindow()
    window.add(Usage(5.0, 1), 0.0)
    window.add(Usage(4.0, 1), 1.0)
    assert window.report().cpu == 0.0


async def test_several_who_ask_at_once_cost_one_look() -> None:
    runtime = Metered()
    runtime.used = {"web-1": Usage(1.0, 10), "web-2": Usage(1.0, 20)}
    asked = Meter(runtime)
    assert (await asked.read(["web-1", "web-2"])).keys() == {"web-1", "web-2"}
    assert (await asked.read(["web-2"])).keys() == {"web-2"}
    assert runtime.looks == 1


async def test_an_engine_that_fails_leaves_its_replicas_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "FRESH", 0.0)
    runtime = Metered()
    runtime.used = {"web-1": Usage(1.0, 10)}
    asked = Meter(runtime)
    assert await asked.read(["web-1"])
    runtime.used = RuntimeFault("away")
    assert await asked.read(["web-1"]) == {}
    runtime.used = {"web-1": Usage(9.0, 10)}
    assert (await asked.read(["web-1"]))["web-1"].cpu is None, "what it used meanwhile is nobody's rate"
