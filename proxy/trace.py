"""W3C Trace Context, as far as a proxy takes part: `traceparent` is read, continued or begun. Pure.

Source: https://www.w3.org/TR/trace-context/ (version 00; later versions are read as it, 3.2.2.5 and 4.3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KNOWN_FLAGS = 0x03  # sampled, random


class Trace(NamedTuple):
    """The trace that a request belongs to."""

    id: bytes  # 32 hexadecimal digits
    flags: bytes  # two


def parse_traceparent(values: Sequence[bytes] | None) -> Trace | None:
    """The trace in the values of `traceparent`; None if there is not just one that is well formed."""
    if values is None or len(values) != 1:
        return None
    match = _TRACEPARENT.fullmatch(values[0])
    if match is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more) or not trace.strip(b"0") or not parent.strip(b"0"):
        return None
    return Trace(trace, b"%02x" % (int(flags, 16) & _KNOWN_FLAGS))
