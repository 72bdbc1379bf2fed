"""When a schedule runs: five fields in a time zone, as cron has them.

The fields are minute, hour, day of the month, month and weekday: `*`, numbers, names (`mon`, `jan`), ranges (`1-5`),
steps (`*/5`, `10-40/10`) and lists of these. Sunday is 0 or 7. A day must be in both of its fields; but where neither
begins with `*`, one of them is enough (as Vixie cron has it: crontab(5)).

A schedule runs at the local minutes that it names, each once. So in the night when clocks are set forward, a time
that is skipped does not run; and when they are set back, a time that comes twice runs the first time only.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mesh.suggestion import suggestion

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

LONGEST_GAP = 41
"""Years between two runs at most: 29 February on a given weekday, across 2100, which is no leap year."""

_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
_WEEKDAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_ITEM = re.compile(r"(\*|\w+)(?:-(\w+))?(?:/(\w+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: dict[str, int]


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day", 1, 31, {}),
    _Field("month", 1, 12, _MONTHS),
    _Field("weekday", 0, 7, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule's fields as sorted numbers. `weekdays`: Sunday is 0; `either`: one of the day fields is enough."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    either: bool

    def has_day(self, day: date) -> bool:
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return in_month or in_week if self.either else in_month and in_week


@lru_cache(maxsize=4096)
def parse_cron(text: str) -> Cron:
    """The schedule in five fields, or one of the aliases.

    Raises:
        ValueError: with the field and what is wrong with it; also for a date that never comes.
    """
    lowered = text.strip().lower()
    if lowered.startswith("@") and lowered not in ALIASES:
        close = suggestion(lowered, ALIASES)
        raise ValueError(f"must be five fields or one of {', '.join(ALIASES)}, got {text!r}{close}")
    words = ALIASES.get(lowered, lowered).split()
    if len(words) != len(_FIELDS):
        raise ValueError(f"must have five fields such as */5 * * * * (minute hour day month weekday), got {text!r}")
    minutes, hours, days, months, weekdays = (
        tuple(sorted(_numbers(field, word))) for field, word in zip(_FIELDS, words, strict=True)
    )
    weekdays = tuple(sorted({number % 7 for number in weekdays}))
    either = not (words[2].startswith("*") or words[4].startswith("*"))
    longest = max(calendar.monthrange(2024, month)[1] for month in months)  # a leap year
    if not either and days[0] > longest:
        raise ValueError(f"never runs: {_month_names(months)} has no day {days[0]}, got {text!r}")
    return Cron(minutes, hours, days, months, weekdays, either)


def _month_names(months: tuple[int, ...]) -> str:
    return ", ".join(calendar.month_name[month] for month in months)


def _numbers(field: _Field, word: str) -> set[int]:
    found: set[int] = set()
    for item in word.split(","):
        match = _ITEM.fullmatch(item)
        if match is None or (match[1] == "*" and match[2]):
            raise ValueError(f"{field.name}: {item!r} is no number, range (1-5), step (*/5) or list of these")
        step = _number(match[3], "step", 1, 10**6) if match[3] else 1
        low = field.low if match[1] == "*" else _value(field, match[1])
        if match[2]:
            high = _value(field, match[2])
            if field.name == "weekday" and high == 0 < low:
                high = 7  # fri-sun
        else:
            high = field.high if match[1] == "*" or match[3] else low
        if high < low:
            raise ValueError(f"{field.name}: {item!r} runs backwards: write it as two ranges with a comma")
        found.update(range(low, high + 1, step))
    return found


def _value(field: _Field, word: str) -> int:
    return field.names[word] if word in field.names else _number(word, field.name, field.low, field.high)


def _number(word: str, name: str, low: int, high: int) -> int:
    if not re.fullmatch("[0-9]{1,6}", word) or not low <= int(word) <= high:
        raise ValueError(f"{name}: must be {low}..{high}, got {word!r}")
    return int(word)


@lru_cache(maxsize=1024)
def parse_zone(name: str) -> ZoneInfo:
    """The time zone of a name such as `Europe/Berlin` or `UTC`.

    Raises:
        ValueError: if the time zone database (the system's, else the package tzdata) has no such zone.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"must be a time zone such as UTC or Europe/Berlin, got {name!r}") from None


def next_run(cron: str, zone: str, after: float) -> float | None:
    """The first run later than `after`; Unix seconds. None if there is none before the calendar ends.

    Raises:
        ValueError: for a schedule or a zone that is none.
    """
    return next(runs(cron, zone, after), None)


def runs(cron: str, zone: str, after: float) -> Iterator[float]:
    """All runs later than `after`, in order. Raises as `next_run`."""
    schedule, place = parse_cron(cron), parse_zone(zone)
    for day in _days(schedule, _local_date(after, place), 1):
        yield from (time for time in _of_day(schedule, place, day, after) if time > after)


def last_run(cron: str, zone: str, until: float) -> float | None:
    """The newest run that is not later than `until`. Raises as `next_run`."""
    schedule, place = parse_cron(cron), parse_zone(zone)
    for day in _days(schedule, _local_date(until, place), -1):
        if times := [time for time in _of_day(schedule, place, day) if time <= until]:
            return times[-1]
    return None


def _local_date(time: float, zone: ZoneInfo) -> date:
    try:
        return datetime.fromtimestamp(time, zone).date()
    except (OverflowError, OSError):
        raise ValueError(f"must be a time of the years 1 to 9999, got {time}") from None


def _days(cron: Cron, first: date, step: int) -> Iterator[date]:
    """The days of the schedule, from one day on, or back."""
    last = first.year + step * LONGEST_GAP
    year, month = first.year, first.month
    while abs(last - year) <= LONGEST_GAP and 1 < year < 9999:
        if month in cron.months:
            for number in range(1, calendar.monthrange(year, month)[1] + 1)[::step]:
                day = date(year, month, number)
                if (day >= first if step > 0 else day <= first) and cron.has_day(day):
                    yield day
                    last = year + step * LONGEST_GAP
        year, month = year + (month + step - 1) // 12, (month + step - 1) % 12 + 1


def _of_day(cron: Cron, zone: ZoneInfo, day: date, after: float = float("-inf")) -> Iterator[float]:
    """The runs of a local day, but for hours that are over by `after`."""
    for hour in cron.hours:
        if _at(day, hour, 59, zone, fold=1) <= after:
            continue
        for minute in cron.minutes:
            time = _at(day, hour, minute, zone)
            local = datetime.fromtimestamp(time, zone)
            if (local.hour, local.minute) == (hour, minute) and local.date() == day:  # else clocks skip it
                yield time


def _at(day: date, hour: int, minute: int, zone: ZoneInfo, *, fold: int = 0) -> float:
    """`fold`: 0 is the first of a time that comes twice (PEP 495)."""
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone, fold=fold).timestamp()


def local_text(time: float, zone: str) -> str:
    """`2026-03-29T03:00:00+02:00`."""
    return datetime.fromtimestamp(time, parse_zone(zone)).isoformat()


def parse_time(text: str, zone: str) -> float:
    """Unix seconds of an ISO 8601 date and time, or of a number of seconds. Without an offset it is the zone's time.

    Raises:
        ValueError: if it is neither.
    """
    if re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]+)?", text):
        return float(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"must be a time such as 2026-03-29T00:00:00Z, or Unix seconds, got {text!r}") from None
    return (found if found.tzinfo else found.replace(tzinfo=parse_zone(zone))).timestamp()
