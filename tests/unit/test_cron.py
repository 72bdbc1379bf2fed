"""Schedules: what the five fields mean, and the two nights a year in which clocks are set."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.cron import last_run, local_text, next_run, parse_cron, parse_time, parse_zone, runs
from mesh.spec.errors import SpecError
from mesh.spec.service import parse_spec


def upcoming(cron: str, zone: str, start: str, count: int) -> list[str]:
    """The next runs as local times without the year."""
    found = runs(cron, zone, parse_time(start, zone))
    return [local_text(next(found), zone)[5:] for _ in range(count)]


@pytest.mark.parametrize(
    ("cron", "start", "expected"),
    [
        ("* * * * *", "2026-01-01T00:00:30", ["01-01T00:01", "01-01T00:02"]),
        ("*/20 * * * *", "2026-01-01T00:20", ["01-01T00:40", "01-01T01:00"]),
        ("5,50-52 9 * * *", "2026-01-01T00:00", ["01-01T09:05", "01-01T09:50", "01-01T09:51", "01-01T09:52"]),
        ("10-40/15 0 * * *", "2026-01-01T00:00", ["01-01T00:10", "01-01T00:25", "01-01T00:40", "01-02T00:10"]),
        ("30/10 0 * * *", "2026-01-01T00:00", ["01-01T00:30", "01-01T00:40", "01-01T00:50"]),
        ("0 0 * * MON-fri", "2026-01-01T00:00", ["01-02T00:00", "01-05T00:00"]),
        ("0 0 * * 7", "2026-01-01T00:00", ["01-04T00:00", "01-11T00:00"]),
        ("0 0 * * sat-sun", "2026-01-01T00:00", ["01-03T00:00", "01-04T00:00", "01-10T00:00"]),
        ("0 0 1 jan,Jul *", "2026-01-01T00:00", ["07-01T00:00", "01-01T00:00"]),
        ("0 0 13 * fri", "2026-01-01T00:00", ["01-02T00:00", "01-09T00:00", "01-13T00:00"]),  # one of them
        ("0 0 */2 * mon", "2026-01-01T00:00", ["01-05T00:00", "01-19T00:00"]),  # both
        ("0 0 31 2 mon", "2026-01-01T00:00", ["02-02T00:00", "02-09T00:00"]),  # the weekday is enough
        ("0 0 31 * *", "2026-01-31T12:00", ["03-31T00:00", "05-31T00:00"]),
        ("@hourly", "2026-01-01T00:00", ["01-01T01:00", "01-01T02:00"]),
        ("@daily", "2026-01-01T00:00", ["01-02T00:00", "01-03T00:00"]),
        ("@weekly", "2026-01-01T00:00", ["01-04T00:00", "01-11T00:00"]),
        ("@monthly", "2026-01-01T00:00", ["02-01T00:00", "03-01T00:00"]),
        ("@yearly", "2026-01-01T00:00", ["01-01T00:00", "01-01T00:00"]),
    ],
)
def test_the_fields(cron: str, start: str, expected: list[str]) -> None:
    assert upcoming(cron, "UTC", start, len(expected)) == [f"{time}:00+00:00" for time in expected]


@pytest.mark.parametrize(
    ("cron", "zone", "start", "expected"),
    [
        # forward: 02:00 → 03:00
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-30T02:30:00+02:00"]),
        ("0 * * * *", "Europe/Berlin", "2026-03-29T01:00", ["03-29T03:00:00+02:00", "03-29T04:00:00+02:00"]),
        ("30 2 * * *", "America/New_York", "2026-03-07T12:00", ["03-09T02:30:00-04:00"]),
        # back: 03:00 → 02:00; what comes twice runs the first time
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["10-25T02:30:00+02:00", "10-26T02:30:00+01:00"]),
        ("30 * * * *", "Europe/Berlin", "2026-10-25T01:30", ["10-25T02:30:00+02:00", "10-25T03:30:00+01:00"]),
        ("30 1 * * *", "America/New_York", "2026-11-01T00:00", ["11-01T01:30:00-04:00", "11-02T01:30:00-05:00"]),
        # half an hour: forward 02:00 → 02:30, back 02:00 → 01:30
        ("*/15 2 * * *", "Australia/Lord_Howe", "2026-10-04T00:00", ["10-04T02:30:00+11:00", "10-04T02:45:00+11:00"]),
        ("*/20 1,2 * * *", "Australia/Lord_Howe", "2026-04-05T01:00",
         ["04-05T01:20:00+11:00", "04-05T01:40:00+11:00", "04-05T02:00:00+10:30"]),
        # at midnight: 24:00 → 23:00 in Lisbon's islands
        ("0 0 * * *", "Atlantic/Azores", "2026-03-28T12:00", ["03-30T00:00:00+00:00"]),
    ],
)  # fmt: skip
def test_nights_in_which_clocks_are_set(cron: str, zone: str, start: str, expected: list[str]) -> None:
    assert upcoming(cron, zone, start, len(expected)) == expected


def test_29_february_and_centuries_without_it() -> None:
    assert [time[:5] for time in upcoming("0 0 29 2 *", "UTC", "2024-03-01T00:00", 2)] == ["02-29", "02-29"]
    after = datetime(2096, 3, 1, tzinfo=UTC).timestamp()
    assert next_run("0 0 29 2 *", "UTC", after) == datetime(2104, 2, 29, tzinfo=UTC).timestamp()
    after = datetime(2088, 3, 1, tzinfo=UTC).timestamp()  # a Sunday: the next one is 40 years away
    assert next_run("0 0 29 2 */7", "UTC", after) == datetime(2128, 2, 29, tzinfo=UTC).timestamp()


def test_the_newest_run_until_a_moment() -> None:
    noon = parse_time("2026-03-30T12:00", "Europe/Berlin")
    found = last_run("30 2 * * *", "Europe/Berlin", noon)
    assert found is not None
    assert local_text(found, "Europe/Berlin") == "2026-03-30T02:30:00+02:00"
    assert last_run("30 2 * * *", "Europe/Berlin", found) == found
    found = last_run("30 2 * * *", "Europe/Berlin", found - 1)
    assert found is not None
    assert local_text(found, "Europe/Berlin") == "2026-03-28T02:30:00+01:00"


@pytest.mark.parametrize(
    ("cron", "fault"),
    [
        ("* * * *", "must have five fields"),
        ("* * * * * *", "must have five fields"),
        ("60 * * * *", "minute: must be 0..59"),
        ("* 24 * * *", "hour: must be 0..23"),
        ("* * 0 * *", "day: must be 1..31"),
        ("* * * 13 *", "month: must be 1..12"),
        ("* * * * 8", "weekday: must be 0..7"),
        ("* * * * fry", "weekday: must be 0..7"),
        ("mon * * * *", "minute: must be 0..59"),
        ("*/0 * * * *", "step: must be 1.."),
        ("30-10 * * * *", "runs backwards"),
        ("1,,2 * * * *", "is no number"),
        ("-1 * * * *", "is no number"),
        ("0 0 L * *", "day: must be 1..31"),
        ("0 0 31 2 *", "February has no day 31"),
        ("0 0 31 4,jun,9,11 *", "April, June, September, November has no day 31"),
        ("0 0 30 2 */2", "February has no day 30"),
        ("@reboot", "one of @yearly"),
        ("@hourl", "did you mean '@hourly'"),
        ("", "must have five fields"),
    ],
)
def test_what_is_no_schedule_says_why(cron: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_cron(cron)


@pytest.mark.parametrize("zone", ["", "Europe", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "a" * 500])
def test_what_is_no_time_zone_says_so(zone: str) -> None:
    with pytest.raises(ValueError, match="must be a time zone"):
        parse_zone(zone)


def test_a_spec_with_an_impossible_schedule_is_refused() -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec({
            "name": "a", "image": "a", "kind": "cron", "schedule": {"cron": "0 0 31 2 *", "zone": "Mars/Olympus"},
        })  # fmt: skip
    assert [error.split(":")[0] for error in refused.value.errors] == ["schedule.cron", "schedule.zone"]


def test_runs_side_by_side_have_no_volumes() -> None:
    cron = {"name": "a", "image": "a", "kind": "cron", "volumes": {"data": {"path": "/data"}}}
    parse_spec({**cron, "schedule": {"cron": "@daily"}})
    with pytest.raises(SpecError, match="cannot share volumes"):
        parse_spec({**cron, "schedule": {"cron": "@daily", "overlap": "allow"}})


def test_times_are_iso_8601_or_seconds() -> None:
    assert parse_time("2026-03-29T00:00:00Z", "Europe/Berlin") == 1774742400
    assert parse_time("2026-03-29T01:00", "Europe/Berlin") == 1774742400
    assert parse_time("1774742400", "Europe/Berlin") == 1774742400
    with pytest.raises(ValueError, match="must be a time"):
        parse_time("tomorrow", "UTC")


def _words(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    spans = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.tuples(st.one_of(st.just("*"), spans), st.integers(1, 9)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    item = st.one_of(number.map(str), spans, steps)
    return st.one_of(st.just("*"), item, st.lists(item, min_size=1, max_size=3).map(",".join))


BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def _read(word: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for item in word.split(","):
        span, _, step = item.partition("/")
        first, _, last = f"{low}-{high}".partition("-") if span == "*" else span.partition("-")
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def _oracle(cron: str, zone: str, start: float, minutes: int) -> list[float]:
    """Every minute is looked at; the fields are read anew, in the plainest way."""
    fields = cron.split()
    has = [_read(word, low, high) for word, (low, high) in zip(fields, BOUNDS, strict=True)]
    starred = fields[2].startswith("*") or fields[4].startswith("*")
    seen: set[datetime] = set()
    due: list[float] = []
    for minute in range(-180, minutes):
        time = start + minute * 60
        local = datetime.fromtimestamp(time, parse_zone(zone)).replace(tzinfo=None, fold=0)
        in_month, in_week = local.day in has[2], not has[4].isdisjoint({local.isoweekday(), local.isoweekday() % 7})
        is_day = in_month and in_week if starred else in_month or in_week
        matches = local.minute in has[0] and local.hour in has[1] and local.month in has[3] and is_day
        if matches and local not in seen and minute > 0:
            due.append(time)
        seen.add(local)
    return due


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(_words(0, 59), _words(0, 23), _words(1, 28), st.sampled_from(["*", "3,4,10,11"]), _words(0, 7)),
    st.sampled_from([
        ("Europe/Berlin", "2026-03-28T22:00"), ("Europe/Berlin", "2026-10-24T22:00"),
        ("America/New_York", "2026-03-07T22:00"), ("America/New_York", "2026-10-31T22:00"),
        ("Australia/Lord_Howe", "2026-10-03T22:00"), ("Australia/Lord_Howe", "2026-04-04T22:00"),
        ("America/Havana", "2026-10-31T22:00"), ("Asia/Kathmandu", "2026-10-31T22:00"),
    ]),
)  # fmt: skip
def test_the_same_as_looking_at_every_minute(words: tuple[str, ...], night: tuple[str, str]) -> None:
    zone, begin = night
    cron, start, minutes = " ".join(words), parse_time(begin, zone), 14 * 60
    expected = _oracle(cron, zone, start, minutes)
    found: list[float] = []
    for time in runs(cron, zone, start):
        if time >= start + minutes * 60:
            break
        found.append(time)
    assert found == expected
    end = start + timedelta(minutes=minutes - 1).total_seconds()
    if expected:
        assert last_run(cron, zone, end) == expected[-1]
