"""The autoscaler of a cluster: all services that follow their load, tick by tick.

A tick goes through the same stages for every service, for all of them at once: what is asked for (`windows.py`,
`pace.py`; in mode `hpa` one service after the other, those whose 15 s are over: `hpa.py`), then what keeps the count
from being that, in the order of `_bound`. Only a service whose count is to change, and one that is asked about, gets a
`Decision` with its sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from mesh.scheduler.autoscale import hpa
from mesh.scheduler.autoscale.board import Board
from mesh.scheduler.autoscale.followed import Bounds, Followed, is_busy, parts_of_ready, whole_value
from mesh.scheduler.autoscale.limits import Change
from mesh.scheduler.autoscale.model import Decision, Limit, Memory, MetricDecision, Reading, Target
from mesh.scheduler.autoscale.pace import AHEAD, Asked, Pace, needs_of
from mesh.scheduler.autoscale.season import Seasons
from mesh.scheduler.autoscale.sentences import State, why
from mesh.scheduler.autoscale.windows import PANIC, STABLE, TREND, Figures, Flags, Floats, Integers, Windows

_LIMITS: tuple[Limit, ...] = ("", "min", "max", "rate", "stabilisation", "tolerance", "schedule", "override",
                              "first window", "missing metrics", "not ready", "interval", "to zero")  # fmt: skip
_BINDING = ("min", "max", "rate", "stabilisation", "schedule", "first window", "to zero")
_ROUNDING = 1e-6
"""Seconds by which a look may come early: times are sums of floats."""
_CODE: dict[str, int] = {limit: code for code, limit in enumerate(_LIMITS)}


class Autoscaler:
    """Decides how many replicas each service should have. Times are Unix seconds, and never go back.

    `interval`: seconds between two looks in mode `hpa`.
    """

    def __init__(self, started: float, interval: float = hpa.INTERVAL) -> None:
        self._now = started
        self._interval = interval
        self._services: dict[str, Followed] = {}
        self._order: list[Followed] = []
        self._index: dict[str, int] = {}
        self._windowed: list[int] = []  # those with stabilisation windows, but for HPA's
        self._columns: list[tuple[str, str]] = []  # service and metric of each series
        self._starts: Integers = np.zeros(0, np.int64)  # each service's first series
        self._targets: Floats = np.ones(0)
        self._values: Floats = np.zeros(0)
        self._told: Flags = np.zeros(0, np.bool_)
        self._unready: Flags = np.zeros(0, np.bool_)  # the service of this series was not ready at the last reading
        self._windows = Windows(0)
        self._pace = Pace(0)
        self._seasons = Seasons(0)
        self._board = Board(0)
        self._memories: dict[str, Memory] = {}
        self._figures: Figures | None = None
        self._season: Floats = np.zeros(0)
        self._recommended: Integers = np.zeros(0, np.int64)
        self._wanted: Integers = np.zeros(0, np.int64)
        self._limit: Integers = np.zeros(0, np.int64)
        self._asleep: Flags = np.zeros(0, np.bool_)

    # ── who is followed ──────────────────────────────────────────────────────────────────────

    def restore(self, memories: Iterable[Memory]) -> None:
        """What an earlier leader has left; a memory that cannot be read is forgotten."""
        for memory in memories:
            self._memories[memory.service] = memory
            if memory.service in self._index:
                self._recall(memory.service)

    def follow(self, targets: Mapping[str, Target]) -> None:
        """From now on these services, and no others, are decided on. What is known about the ones that stay is kept,
        also when their target has changed."""
        changed = []
        for name, target in targets.items():
            service = self._services.get(name)
            if service is None:
                self._services[name] = Followed(name, target)
                changed.append(name)
            elif service.target != target:
                service.retarget(target)
                changed.append(name)
        for name in self._services.keys() - targets.keys():
            del self._services[name]
        columns = [(name, key) for name, service in self._services.items() for key in service.keys or [""]]
        if columns != self._columns or list(self._services) != list(self._index):
            self._rearrange(columns)
        for name in changed:
            self._aim(self._services[name])
        self._windowed = [index for index, service in enumerate(self._order)
                          if service.windowed and service.scale.mode != "hpa"]  # fmt: skip

    def _rearrange(self, columns: list[tuple[str, str]]) -> None:
        """The arrays for other services or series."""
        old_columns = {column: number for number, column in reversed(list(enumerate(self._columns)))}
        chosen = [old_columns.get(column, -1) for column in columns]
        self._windows = self._windows.chosen(chosen)
        self._unready = np.array([number >= 0 and bool(self._unready[number]) for number in chosen], np.bool_)
        self._values, self._told = np.zeros(len(columns)), np.zeros(len(columns), np.bool_)
        self._targets, self._columns = np.ones(len(columns)), columns
        self._figures = None  # those of the last tick are of other services
        old, self._order = self._index, list(self._services.values())
        self._index = {service.name: index for index, service in enumerate(self._order)}
        stays = [(index, old[name]) for name, index in self._index.items() if name in old]
        kept = np.array([new for new, _ in stays], np.int64)
        source = np.array([number for _, number in stays], np.int64)
        width = len(self._order)
        self._pace = self._pace.chosen(kept, source, width)
        self._board = self._board.chosen(kept, source, width)
        self._seasons = self._seasons.chosen(kept, source, width)
        counts = [len(service.keys) or 1 for service in self._order]
        self._starts = np.cumsum([0, *counts[:-1]], dtype=np.int64)[:width]
        for service in self._order:  # the values of the last readings, in their new places
            self._aim(service)
            if service.reading is not None:
                self._measure(self._index[service.name], service)
        for name in self._index.keys() - old.keys() & self._memories.keys():
            self._recall(name)

    def _aim(self, service: Followed) -> None:
        """What a target says, into the arrays."""
        index, board, scale = self._index[service.name], self._board, service.scale
        board.held[index] = -1 if service.target.held is None else service.target.held
        board.zero_after[index] = scale.to_zero_after or math.inf
        board.bare[index] = not service.keys
        board.predictive[index] = scale.mode == "predictive"
        if board.hpa[index] != (scale.mode == "hpa"):
            board.hpa[index], board.verdict[index] = not board.hpa[index], -1
            board.next_look[index] = -math.inf if board.hpa[index] else math.inf
        board.tolerance_up[index], board.tolerance_down[index] = service.tolerance.up, service.tolerance.down
        board.until[index] = -math.inf  # the bounds are to be looked up
        start = self._starts[index]
        for number, metric in enumerate(scale.metrics):
            self._targets[start + number] = hpa.target_of(metric)

    def _recall(self, name: str) -> None:
        memory = self._memories.pop(name)
        self._services[name].changes = [Change(*change) for change in memory.changes]
        try:
            self._seasons.restore(self._index[name], memory.season)
        except ValueError:
            pass  # there is none, or it is of another version: it is learnt anew

    # ── a tick ───────────────────────────────────────────────────────────────────────────────

    def tick(self, now: float, readings: Mapping[str, Reading]) -> list[Decision]:
        """The decisions that change a count. `readings`: what is news; a service that is not in it is as it was.

        Readings of services that are not followed are ignored.
        """
        self._now = now
        if not self._order:
            return []
        for name, reading in readings.items():
            service = self._services.get(name)
            if service is not None and reading != service.reading:
                self._take(service, reading, now)
        self._recommend(now)
        found = []
        for index in np.flatnonzero(self._board.known & (self._wanted != self._board.current)):
            decision = self._decision(int(index))
            if decision.replicas != decision.current:
                self._order[index].ask(now, decision.current, decision.replicas)
                found.append(decision)
        return found

    def _take(self, service: Followed, reading: Reading, now: float) -> None:
        index, board = self._index[service.name], self._board
        change = service.take(reading, now)
        if change:
            self._pace.change(index, change, now)
            if board.verdict[index] != reading.current:
                board.verdict[index] = -1
        if not board.known[index]:
            board.known[index] = True
            board.idle_since[index] = now
            window = service.limits.down.window if board.hpa[index] else max(STABLE, service.limits.down.window)
            board.first_end[index] = now + window
        board.busy[index] = is_busy(reading)
        board.current[index] = reading.current
        board.waking[index] = 0 if reading.current else service.waking()
        self._measure(index, service)

    def _measure(self, index: int, service: Followed) -> None:
        """What a reading says about each metric, into the series."""
        reading, column = service.reading, self._starts[index]
        assert reading is not None
        parts, faulty = parts_of_ready(reading), False
        self._board.ready[index] = len(parts)
        for key, metric in zip(service.keys, service.scale.metrics, strict=True):
            value, fault = whole_value(metric, key, reading, parts)
            self._told[column] = value is not None
            self._values[column] = value or 0.0
            faulty = faulty or bool(fault)
            column += 1
        self._board.faulty[index] = faulty

    def _recommend(self, now: float) -> None:
        """What every service should have, and what keeps it from what is asked for."""
        board = self._board
        for index in np.flatnonzero(board.until <= now):
            bounds = self._order[index].bounds(now)
            board.low[index], board.high[index], board.until[index] = bounds.low, bounds.high, bounds.until
            board.scheduled[index] = bool(bounds.schedule)

        unready = np.repeat(board.ready == 0, np.diff(np.append(self._starts, len(self._columns))))
        forgotten = unready | self._unready  # what waited until the first was ready is no rate
        self._windows.record(now, self._values, self._told & ~forgotten, forgotten)
        self._unready = unready
        self._figures = self._windows.figures(AHEAD)
        needs = needs_of(self._figures, self._targets, self._starts)
        age = np.minimum.reduceat(self._windows.age, self._starts)
        settled = (np.maximum.reduceat(self._windows.age, self._starts) > 0) & ~board.bare
        self._season = self._seasons.expect(now, needs.stable, (age >= STABLE) & board.predictive)
        asked = self._pace.recommend(now, needs, self._season, board.current, board.ready, board.predictive)
        self._recommended = np.where(settled, asked.plain, board.current)
        self._wanted = self._recommended
        self._limit = np.where(settled | board.bare, 0, _CODE["not ready"])
        self._hold_back(now, asked, settled, age)
        self._look(now)
        self._bound(now)

    def _hold_back(self, now: float, asked: Asked, settled: Flags, age: Integers) -> None:
        """What keeps `kpa` and `predictive` from what is asked for."""
        board = self._board
        self._set(settled, asked.rated, "rate")
        self._set(settled, asked.paced, "stabilisation")
        low, high = board.current * (1 - board.tolerance_down), board.current * (1 + board.tolerance_up)
        self._set(settled & (low < high) & (asked.need >= low) & (asked.need <= high), board.current, "tolerance")
        for index in self._windowed:
            if board.known[index]:
                count = self._order[index].steady(now, int(self._wanted[index]), int(board.current[index]))
                if count != self._wanted[index]:
                    self._wanted[index], self._limit[index] = count, _CODE["stabilisation"]
        self._set(board.faulty & (self._wanted < board.current), board.current, "missing metrics")
        first = (age < STABLE) | (now < board.first_end)
        self._set(first & (self._wanted < board.current), board.current, "first window")

    def _look(self, now: float) -> None:
        """HPA's looks: at those services whose time has come, and what came of the others' last."""
        board = self._board
        inside = (board.low <= board.current) & (board.current <= board.high) & (board.current > 0)
        for index in np.flatnonzero((board.next_look <= now + _ROUNDING) & board.known & inside):
            verdict = self._order[index].look(now)
            board.verdict[index], board.limit[index] = verdict.replicas, _CODE[verdict.limit]
            board.asked[index] = verdict.recommendation
            late = now - board.next_look[index]
            if math.isinf(late):  # the first look; the next ones are spread over the interval
                late = index % max(self._interval, 1.0)
            board.next_look[index] = now + self._interval - (late if late < self._interval else 0.0)
        looked = board.hpa & (board.verdict >= 0)
        self._recommended = np.where(board.hpa, np.where(looked, board.asked, board.current), self._recommended)
        self._wanted = np.where(board.hpa, np.where(looked, board.verdict, board.current), self._wanted)
        self._limit = np.where(board.hpa, np.where(looked, board.limit, _CODE["interval"]), self._limit)

    def _bound(self, now: float) -> None:
        """What holds in every mode: the bounds, sleep, an operator's hand."""
        board = self._board
        may_sleep = np.isfinite(board.zero_after)
        board.idle_since = np.where(board.busy, now, board.idle_since)
        idle = may_sleep & (now - board.idle_since >= board.zero_after)
        self._asleep = asleep = (board.current == 0) & (may_sleep | (board.low == 0))
        self._recommended = np.where(asleep, board.waking, np.where(idle, 0, self._recommended))
        self._limit = np.where(asleep | idle, 0, self._limit)
        self._wanted = np.where(asleep | idle, self._recommended, self._wanted)

        low = np.minimum(np.where(may_sleep, np.maximum(board.low, 1), board.low), board.high)
        within = np.minimum(np.maximum(board.current, low), board.high)
        outside = ~asleep & (board.current != within)  # it is brought back at once, whatever else
        may_rest = (asleep | idle) & (self._wanted == 0)
        least = np.where(may_sleep & (board.low == 0), _CODE["to zero"], _CODE["min"])
        for beyond, bound, limit in (
            (np.where(outside, board.current, self._wanted) < low, low, least),
            (np.where(outside, board.current, self._wanted) > board.high, board.high, _CODE["max"]),
        ):
            beyond &= ~may_rest
            self._wanted = np.where(beyond, bound, self._wanted)
            self._limit = np.where(beyond, np.where(board.scheduled, _CODE["schedule"], limit), self._limit)
        self._set(board.held >= 0, board.held, "override")

    def _set(self, where: Flags, count: Integers, limit: Limit) -> None:
        """This count there, and where that is another one, this limit."""
        where = where & (self._wanted != count)
        self._wanted = np.where(where, count, self._wanted)
        self._limit = np.where(where, _CODE[limit], self._limit)

    # ── what came of it ──────────────────────────────────────────────────────────────────────

    def explain(self, service: str) -> Decision:
        """What the last tick decided about a service, and why; also where that was to change nothing.

        Raises:
            KeyError: for a service that is not followed, or of which nothing has been read yet.
        """
        index = self._index[service]
        if self._figures is None or not self._board.known[index]:
            raise KeyError(service)
        return self._decision(index)

    def _decision(self, index: int) -> Decision:
        service, board = self._order[index], self._board
        current, count = int(board.current[index]), int(self._wanted[index])
        limit = _LIMITS[int(self._limit[index])]
        may_be_here = board.low[index] <= current <= board.high[index] or self._asleep[index]
        if board.held[index] < 0 and may_be_here:
            rated = service.within_rate(self._now, current, count)
            if not current:  # what wakes it is one decision, and `min` at least
                rated = max(rated, min(count, max(int(board.low[index]), 1)))
            if rated != count:
                count, limit = rated, "rate"
        recommended = int(self._recommended[index])
        if count == recommended and limit in _BINDING:
            limit = ""
        metrics, metric, window = self._metrics(index)
        decision = Decision(
            service=service.name,
            time=self._now,
            current=current,
            replicas=count,
            recommendation=recommended,
            metric=metric,
            window=window,
            metrics=metrics,
            limit=limit,
            why="",
        )
        state = State(
            service,
            self._bounds(index),
            idle=self._now - float(board.idle_since[index]),
            ready=int(board.ready[index]),
            panic=bool(self._pace.panic_since[index] > -math.inf),
        )
        return msgspec.structs.replace(decision, why=why(decision, state))

    def _bounds(self, index: int) -> Bounds:
        board = self._board
        return Bounds(int(board.low[index]), int(board.high[index]), "", float(board.until[index]))

    def _metrics(self, index: int) -> tuple[list[MetricDecision], str, str]:
        """What each metric asks for; the one that asks for most; what it was measured over."""
        service, board = self._order[index], self._board
        if service.reading is None or not service.keys:
            return [], "", ""
        if not board.current[index]:
            found, windows = service.asleep(), ["now"] * len(service.keys)
        elif board.hpa[index]:
            found, windows = service.metrics, ["now"] * len(service.keys)
        else:
            found, windows = self._measured(index, service)
        best = max(range(len(found)), key=lambda number: found[number].recommendation or -1, default=None)
        if best is None:
            return [], "", ""
        season = math.ceil(self._season[index]) if board.predictive[index] and not board.hpa[index] else 0
        window = "season" if season > (found[best].recommendation or 0) and board.current[index] else windows[best]
        return found, found[best].metric, window

    def _measured(self, index: int, service: Followed) -> tuple[list[MetricDecision], list[str]]:
        """What the windows say about a service of `kpa` or `predictive`."""
        figures, board = self._figures, self._board
        assert figures is not None
        assert service.reading is not None
        found, windows = [], []
        for number, metric in enumerate(service.scale.metrics):
            column = self._starts[index] + number
            key, target = service.keys[number], float(self._targets[column])
            _, fault = whole_value(metric, key, service.reading, parts_of_ready(service.reading))
            looks = {f"stable {STABLE}s": figures.stable[column]}
            if self._pace.panic_since[index] > -math.inf:
                looks[f"panic {PANIC}s"] = figures.panic[column]
            if board.predictive[index]:
                looks[f"trend {TREND}s"] = figures.ahead[column] - figures.error[column]
                looks["jump 2s"] = figures.jump[column]
            window = max(looks, key=lambda look: looks[look])
            told = self._windows.age[column] > 0
            amount = float(looks[window])
            found.append(MetricDecision(
                metric=key,
                value=amount / max(int(board.ready[index]), 1) if told else None,
                target=target,
                recommendation=hpa.ceil(amount / target) if told else None,
                fault=fault,
            ))  # fmt: skip
            windows.append(window)
        return found, windows

    def memories(self, since: float) -> list[Memory]:
        """What the next leader should know, of those services where it has changed since then."""
        if self._seasons.learnt < since:
            return []
        stored = ((service.name, self._seasons.stored(index)) for index, service in enumerate(self._order)
                  if self._board.predictive[index])  # fmt: skip
        return [Memory(service=name, time=self._seasons.learnt, season=season) for name, season in stored if season]
