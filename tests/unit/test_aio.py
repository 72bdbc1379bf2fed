import asyncio
import random

import pytest

from mesh.aio import Backoff, Signal, Tasks


def test_backoff_doubles_within_its_bounds_and_starts_over() -> None:
    backoff = Backoff(1, 8, random=random.Random(1))
    waits = [backoff.next() for _ in range(6)]
    for wait, whole in zip(waits, [1, 2, 4, 8, 8, 8], strict=True):
        assert whole / 2 <= wait <= whole
    backoff.reset()
    assert backoff.next() <= 1


async def test_many_signals_are_one() -> None:
    signal = Signal()
    signal.set()
    signal.set()
    assert await signal.wait()
    assert not await signal.wait(timeout=0)


async def test_tasks_end_together_and_a_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fails() -> None:
        raise ValueError("no")

    tasks.spawn(forever(), "forever")
    with pytest.raises(ValueError, match="no"):
        await tasks.spawn(fails(), "fails")
    await tasks.close()
    assert ended.is_set()
    assert "task fails failed: no" in caplog.text
