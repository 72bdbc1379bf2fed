"""Every notation reads and prints; what it cannot read is a sentence."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import units

PARSERS = (units.parse_duration, units.parse_cpu, units.parse_memory, units.parse_share, units.parse_percent)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("15s", 15), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("2d", 172800), ("1.5s", 1.5),
     ("7", 7), (7, 7), (0.5, 0.5), ("0s", 0), (0, 0)],
)  # fmt: skip
def test_durations_read(text: object, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "millis"), [("250m", 250), ("0.5", 500), (0.5, 500), (2, 2000), ("0.0005", 0)])
def test_cpu_reads(text: object, millis: int) -> None:
    assert units.parse_cpu(text) == millis


@pytest.mark.parametrize(
    ("text", "size"),
    [("128Mi", 2**27), ("1G", 10**9), ("500M", 5 * 10**8), (1234, 1234), ("1.5Gi", 3 * 2**29), ("0", 0)],
)
def test_memory_reads(text: object, size: int) -> None:
    assert units.parse_memory(text) == size


@pytest.mark.parametrize(("text", "share"), [("25%", 0.25), (0.25, 0.25), ("0%", 0), ("100%", 1), ("12.5%", 0.125)])
def test_shares_read(text: object, share: float) -> None:
    assert units.parse_share(text) == share


@pytest.mark.parametrize("text", ["70%", 70, "70", 70.0])
def test_percentages_read_with_or_without_the_sign(text: object) -> None:
    assert units.parse_percent(text) == 0.7


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "bad",
    ["", "x", "-1s", -1, "5 s", "1e9", True, None, [], {}, math.nan, math.inf, -math.inf, 1e308, 10**400, "9" * 5000,
     "٣s", "1h" * 10_000, "1.2.3"],
)  # fmt: skip
def test_what_is_not_a_quantity_is_a_short_sentence(parse: object, bad: object) -> None:
    with pytest.raises(ValueError, match=r"^must be .*, got .*$") as error:
        parse(bad)  # type: ignore[operator]
    assert len(str(error.value)) < 200


@given(st.integers(0, units.MAX_DURATION * 1000))
def test_durations_print_and_read_back(millis: int) -> None:
    assert units.parse_duration(units.format_duration(millis / 1000)) == millis / 1000


@given(st.integers(0, units.MAX_CPU))
def test_cpu_prints_and_reads_back(millis: int) -> None:
    assert units.parse_cpu(units.format_cpu(millis)) == millis


@given(st.integers(0, units.MAX_MEMORY) | st.sampled_from([2**30, 10**9, 2**20 * 128]))
def test_memory_prints_and_reads_back(size: int) -> None:
    assert units.parse_memory(units.format_memory(size)) == size


@given(st.integers(0, 10**6))
def test_shares_print_and_read_back(millionths: int) -> None:
    share = millionths / 10**6
    assert units.parse_share(units.format_share(share)) == share
    assert units.parse_percent(units.format_share(share)) == share


@given(st.text() | st.floats() | st.integers() | st.booleans() | st.none())
def test_any_value_reads_as_a_bounded_number_or_is_refused(value: object) -> None:
    for parse in PARSERS:
        try:
            amount = parse(value)
        except ValueError:
            continue
        assert math.isfinite(amount)
        assert amount >= 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(90.0, "90s"), (300, "5m"), (0.25, "250ms"), (0, "0s"), (86400, "1d"), (3600, "1h")]
)
def test_durations_print_shortly(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


def test_the_rest_prints_shortly() -> None:
    assert [units.format_cpu(500), units.format_cpu(2000)] == ["500m", "2"]
    assert [units.format_memory(size) for size in (2**27, 10**9, 1234, 0)] == ["128Mi", "1G", "1234", "0"]
    assert units.format_share(0.25) == "25%"
