"""Waiting for conditions, never for a time.

A deadline only ends a test that fails: it is long, for slow machines, and costs nothing where all is well.
"""

from __future__ import annotations

import asyncio
import http.client
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

PATIENCE = 30.0
"""Seconds after which something awaited counts as missing."""

NOT_YET = (OSError, ValueError, KeyError, AssertionError, http.client.HTTPException)
"""What a look may raise while its time has not come."""

_T = TypeVar("_T")


async def until(condition: Callable[[], Any], what: str = "", within: float = PATIENCE) -> Any:
    """The first true value of `condition`, which may be a coroutine function."""
    try:
        async with asyncio.timeout(within):
            while True:
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise AssertionError(f"waited in vain: {what or condition}") from error


async def soon(awaitable: Awaitable[_T]) -> _T:
    return await asyncio.wait_for(awaitable, PATIENCE)


def eventually(look: Callable[[], _T | None], what: str, within: float = PATIENCE) -> _T:
    """The first true value of `look`, which blocks; it is asked again until then, also where it raises `NOT_YET`."""
    deadline = time.monotonic() + within
    seen: object = None
    while time.monotonic() < deadline:
        try:
            if result := look():
                return result
            seen = result
        except NOT_YET as error:
            seen = error
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {within:g} s; last seen: {seen!r}")
