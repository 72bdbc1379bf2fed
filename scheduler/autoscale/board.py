"""What the last readings and targets say about each service: a column of numbers for each thing."""

from __future__ import annotations

import math
from typing import ClassVar

from mesh.scheduler.autoscale.windows import Columns, Flags, Floats, Integers


class Board(Columns):
    """One row per service."""

    DEFAULTS: ClassVar = {
        "known": False, "current": 0, "ready": 0, "held": -1, "low": 0, "high": 0, "scheduled": False,
        "until": math.inf, "busy": False, "idle_since": math.inf, "zero_after": math.inf, "waking": 0, "faulty": False,
        "bare": False, "hpa": False, "predictive": False, "next_look": math.inf,
        "asked": 0, "verdict": -1, "limit": 0, "tolerance_up": 0.0, "tolerance_down": 0.0, "first_end": math.inf,
    }  # fmt: skip
    known: Flags  # something has been read
    current: Integers
    ready: Integers
    held: Integers  # by hand; -1: not
    low: Integers
    high: Integers
    scheduled: Flags  # `low` and `high` are a schedule's
    until: Floats  # when they change
    busy: Flags  # somebody uses it, or nobody can tell
    idle_since: Floats
    zero_after: Floats  # seconds; inf: never to zero
    waking: Integers  # how many what waits asks for, where there are none
    faulty: Flags  # a metric fails
    bare: Flags  # has no metrics
    hpa: Flags
    predictive: Flags
    next_look: Floats  # of HPA; what came of the last one:
    asked: Integers  # its recommendation
    verdict: Integers  # the count; -1: there is none, or somebody else has changed the count since
    limit: Integers
    tolerance_up: Floats
    tolerance_down: Floats
    first_end: Floats  # the end of its first stabilisation window
