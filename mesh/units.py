"""The notations of the spec: durations (`15s`), CPU (`250m`), memory (`128Mi`), shares (`25%`); and sets of numbers.

Each notation has a parser that raises `ValueError` with a sentence an operator can act on, and a
formatter that prints the shortest spelling which reads back as the same value. For that, durations are
kept to the millisecond and shares to a millionth.
"""

import math
import re
from collections.abc import Iterable

MAX_DURATION = 100 * 365 * 86400
"""Seconds: a hundred years."""
MAX_CPU = 10**9
"""Millicores."""
MAX_MEMORY = 2**60
"""Bytes."""

_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,20})?"
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)")
_MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_CPU = re.compile(rf"({_NUMBER})(m?)")
_MEMORY = re.compile(rf"({_NUMBER})((?:[KMGT]i?)?)")
_BYTES = {
    "Ti": 2**40, "Gi": 2**30, "Mi": 2**20, "Ki": 2**10,
    "T": 10**12, "G": 10**9, "M": 10**6, "K": 10**3, "": 1,
}  # fmt: skip
_SHARE = re.compile(rf"({_NUMBER})%")


def shown(value: object) -> str:
    """A value inside a sentence, never longer than some words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(value if len(value) <= 50 else f"{value[:50]}…")
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number beyond all bounds"
    return str(value)


def _plain_number(value: object) -> float | None:
    """The value, if it is a number and a finite one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def _read(number: str) -> float:
    return float(number) if "." in number else int(number)  # whole numbers stay exact, however large


def _bounded(amount: float | None, most: int, what: str, largest: str, value: object) -> float:
    if amount is None or amount < 0:
        raise ValueError(f"must be {what}, got {shown(value)}")
    if amount > most:
        raise ValueError(f"must be at most {largest}, got {shown(value)}")
    return amount


def parse_duration(value: object) -> float:
    """Seconds from `250ms`, `15s`, `5m`, `1h30m` or a plain number of seconds."""
    seconds = _duration_of(value) if isinstance(value, str) else _plain_number(value)
    what = "a duration such as 250ms, 15s, 5m or 1h"
    return round(_bounded(seconds, MAX_DURATION, what, "100 years", value) * 1000) / 1000


def _duration_of(text: str) -> float | None:
    if re.fullmatch(_NUMBER, text):
        return _read(text)
    parts = _DURATION_PART.findall(text[:100])
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(_read(number) * _MILLISECONDS[unit] for number, unit in parts) / 1000


def format_duration(seconds: float) -> str:
    """The shortest spelling of a duration: 90.0 → `90s`, 300 → `5m`, 0.25 → `250ms`."""
    millis = round(seconds * 1000)
    if not millis:
        return "0s"
    unit = next(unit for unit, size in _MILLISECONDS.items() if millis % size == 0)
    return f"{millis // _MILLISECONDS[unit]}{unit}"


def parse_cpu(value: object) -> int:
    """Millicores from `250m`, `0.5` or `2`."""
    cores = _plain_number(value)
    if isinstance(value, str) and (match := _CPU.fullmatch(value)):
        cores = _read(match[1]) / (1000 if match[2] else 1)
    what = "CPU in cores or millicores such as 0.5 or 250m"
    return round(_bounded(cores, MAX_CPU // 1000, what, "1000000 cores", value) * 1000)


def format_cpu(millis: int) -> str:
    """500 → `500m`, 2000 → `2`."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def parse_memory(value: object) -> int:
    """Bytes from `128Mi`, `1G`, `500M` or a plain number of bytes."""
    size = _plain_number(value)
    if isinstance(value, str) and (match := _MEMORY.fullmatch(value)):
        size = _read(match[1]) * _BYTES[match[2]]
    return int(_bounded(size, MAX_MEMORY, "memory such as 64Mi, 1Gi or 500M", "1048576Ti", value))


def format_memory(size: int) -> str:
    """134217728 → `128Mi`, 10**9 → `1G`, 1234 → `1234`."""
    unit = next(unit for unit, count in _BYTES.items() if size % count == 0 and (size or not unit))
    return f"{size // _BYTES[unit]}{unit}"


def parse_share(value: object) -> float:
    """A fraction 0..1 from `25%`, or from a number 0..1."""
    share = _plain_number(value)
    if isinstance(value, str) and (match := _SHARE.fullmatch(value)):
        share = _read(match[1]) / 100
    return round(float(_bounded(share, 1, "a share such as 25%", "100%", value)), 6)


def parse_percent(value: object) -> float:
    """A fraction 0..1 from `70%`, with or without the sign."""
    number = _plain_number(value)
    if number is not None:
        return round(_bounded(number, 100, "a share such as 70%", "100%", value) / 100, 6)
    return parse_share(f"{value}%" if isinstance(value, str) and re.fullmatch(_NUMBER, value) else value)


def format_share(share: float) -> str:
    """0.25 → `25%`."""
    return f"{round(share * 100, 4):.10g}%"


def parse_spans(text: str) -> list[tuple[int, int]]:
    """`1-3,5` → [(1, 3), (5, 5)]."""
    spans = (part.partition("-") for part in text.split(",") if part)
    return [(int(first), int(last or first)) for first, _, last in spans]


def parse_numbers(text: str) -> set[int]:
    """`1-3,5` → {1, 2, 3, 5}."""
    return {number for first, last in parse_spans(text) for number in range(first, last + 1)}


def format_numbers(numbers: Iterable[int]) -> str:
    """{1, 2, 3, 5} → `1-3,5`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
