"""What is carried, second by second: a real hour, steps, and noise around a constant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import traces
from mesh.scheduler.autoscale.windows import Floats

FIXED, PER_CONTEXT_TOKEN, PER_TOKEN = 0.2, 0.0002, 0.03
"""Seconds that a request to a language model takes: at least, for each token in, and for each token out."""


@dataclass(frozen=True, slots=True)
class Load:
    """Of each second: the requests in flight on average, and those that came."""

    in_flight: Floats
    arrivals: Floats

    @property
    def seconds(self) -> int:
        return len(self.in_flight)

    def after(self, seconds: int) -> Load:
        """The same without its beginning."""
        return Load(self.in_flight[seconds:], self.arrivals[seconds:])

    @property
    def duration(self) -> float:
        """Seconds that a request takes on average."""
        return float(self.in_flight.sum() / max(self.arrivals.sum(), 1))


def conversations(folder: Path) -> Load:
    """Azure's conversation service. The recording begins with nobody in flight, which the service did not."""
    trace = traces.conversations(folder)
    durations = FIXED + PER_CONTEXT_TOKEN * trace.context + PER_TOKEN * trace.generated
    return _carried(trace.times, durations)


def invented(seed: int = 7) -> Load:
    """Where the trace is not at hand: Poisson arrivals whose rate wanders, each some seconds in flight."""
    random = np.random.default_rng(seed)
    wander = np.exp(np.cumsum(random.normal(0, 0.01, 3600)) * 0.5)
    counts = random.poisson(np.clip(5.5 * wander, 1, 30))
    times = np.repeat(np.arange(3600), counts) + random.random(counts.sum())
    return _carried(np.sort(times), FIXED + random.gamma(2.0, 3.2, counts.sum()))


def _carried(times: Floats, durations: Floats) -> Load:
    seconds = int(times[-1]) + 1
    edges = np.arange(seconds + 1)

    def begun_before(moments: Floats) -> Floats:
        """Seconds in flight until each edge, were none ever to end."""
        order = np.sort(moments)
        count = np.searchsorted(order, edges)
        summed = np.concatenate([[0.0], np.cumsum(order)])[count]
        found: Floats = edges * count - summed
        return found

    in_flight = np.diff(begun_before(times) - begun_before(times + durations))
    arrivals = np.bincount(times.astype(np.int64), minlength=seconds).astype(np.float64)
    return Load(in_flight, arrivals)


def step(base: float, factor: float, begin: float, after: int = 400) -> Load:
    """A constant load that is `factor` times as large from a time on, to a second's fraction."""
    second, part = divmod(begin, 1)
    values = np.concatenate([np.full(int(second), base), np.full(after, base * factor)])
    values[int(second)] = base * (part + factor * (1 - part))
    return Load(values, values)


def noisy(kind: str, level: float, size: float, seconds: int = 3600, seed: int = 1) -> Load:
    """A constant load with noise: `normal` or `uniform` of so much of it, or `poisson`."""
    random = np.random.default_rng(seed)
    match kind:
        case "normal":
            values = level * (1 + size * random.standard_normal(seconds))
        case "uniform":
            values = level * (1 + size * (2 * random.random(seconds) - 1))
        case _:
            values = random.poisson(level, seconds).astype(np.float64)
    values = np.maximum(values, 0)
    return Load(values, values)
