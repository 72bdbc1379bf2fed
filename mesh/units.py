"""The notations of the spec: durations (`15s`), CPU (`250m`), memory (`128Mi`), shares (`25%`).

Each notation has a parser that raises `ValueError` with a sentence an operator can act on, and a
formatter that prints the shortest spelling which reads back as the same value.
"""

import math
import re

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]*)")
_BYTES = {
    "": 1,
    "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def parse_duration(value: object) -> float:
    """Seconds from `250ms`, `15s`, `5m`, `1h30m` or a plain number of seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (parts := _duration_parts(value)):
        seconds = sum(float(number) * _SECONDS[unit or "s"] for number, unit in parts)
    else:
        raise ValueError(f"must be a duration such as 250ms, 15s, 5m or 1h, got {value!r}")
    if seconds < 0 or not math.isfinite(seconds):
        raise ValueError(f"must be a duration of zero or more, got {value!r}")
    return seconds


def _duration_parts(text: str) -> list[tuple[str, str]]:
    if _NUMBER.fullmatch(text):
        return [(text, "")]
    parts = _DURATION_PART.findall(text)
    return parts if "".join(number + unit for number, unit in parts) == text else []


def format_duration(seconds: float) -> str:
    """The shortest spelling of a duration: 90.0 → `90s`, 300 → `5m`, 0.25 → `250ms`."""
    if seconds == 0:
        return "0s"
    for unit in ("h", "m", "s", "ms"):
        count = seconds / _SECONDS[unit]
        if count >= 1 and math.isclose(count, round(count), rel_tol=1e-9):
            return f"{round(count)}{unit}"
    return f"{seconds:g}s"


def parse_cpu(value: object) -> int:
    """Millicores from `250m`, `0.5` or `2`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        millis = value * 1000
    elif isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", value)):
        millis = float(match[1]) * (1 if match[2] else 1000)
    else:
        raise ValueError(f"must be CPU in cores or millicores such as 0.5 or 250m, got {value!r}")
    if millis < 0 or not math.isfinite(millis):
        raise ValueError(f"must be CPU of zero or more, got {value!r}")
    return round(millis)


def format_cpu(millis: int) -> str:
    """500 → `500m`, 2000 → `2`."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def parse_memory(value: object) -> int:
    """Bytes from `128Mi`, `1G`, `500M` or a plain number of bytes."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        size = float(value)
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value)) and match[2] in _BYTES:
        size = float(match[1]) * _BYTES[match[2]]
    else:
        raise ValueError(f"must be memory such as 64Mi, 1Gi or 500M, got {value!r}")
    if size < 0 or not math.isfinite(size):
        raise ValueError(f"must be memory of zero or more, got {value!r}")
    return int(size)


def format_memory(size: int) -> str:
    """134217728 → `128Mi`, 10**9 → `1G`, 1234 → `1234`."""
    for unit in ("Ti", "Gi", "Mi", "Ki", "T", "G", "M", "K"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return str(size)


def parse_share(value: object) -> float:
    """A fraction 0..1 from `25%`, or from a number 0..1."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)%", value)):
        share = float(match[1]) / 100
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        share = float(value)
    else:
        raise ValueError(f"must be a share such as 25%, got {value!r}")
    if not 0 <= share <= 1:
        raise ValueError(f"must be a share from 0% to 100%, got {value!r}")
    return share


def format_share(share: float) -> str:
    """0.25 → `25%`."""
    return f"{share * 100:g}%"
