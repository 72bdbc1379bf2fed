"""What a certificate says of itself: for which names it is, and from when to when. The ssl module tells neither.

Only what OpenSSL has taken as a certificate is read here. Source: RFC 5280, 4.1 (DER of X.509 certificates).
"""

from __future__ import annotations

import calendar
import ssl
import time
from collections.abc import Iterator
from typing import NamedTuple

_SEQUENCE, _UTC_TIME, _EXTENSIONS, _DNS_NAME = 0x30, 0x17, 0xA3, 0x82
_SUBJECT_ALT_NAME = bytes.fromhex("551d11")


class Facts(NamedTuple):
    names: frozenset[str]
    """In lower case; also wildcards (`*.example.com`)."""
    begins: float
    """Seconds since the epoch, as `ends`."""
    ends: float


def read_facts(pem: bytes) -> Facts:
    """Of the first certificate in `pem`.

    Raises:
        ValueError: if it cannot be read.
    """
    start = pem.index(b"-----BEGIN CERTIFICATE-----")
    end = pem.index(b"-----END CERTIFICATE-----", start) + len(b"-----END CERTIFICATE-----")
    der = ssl.PEM_cert_to_DER_cert(pem[start:end].decode("ascii"))
    try:
        _, certificate = next(_elements(der))
        _, body = next(_elements(certificate))
        parts = [*_elements(body)]
        if parts[0][0] == 0xA0:  # the version, absent in version 1
            del parts[0]
        begins, ends = (_time(tag, value) for tag, value in _elements(parts[3][1]))
        extensions = next((value for tag, value in parts if tag == _EXTENSIONS), b"")
        return Facts(frozenset(_names(extensions)), begins, ends)
    except (IndexError, StopIteration):
        raise ValueError("a certificate that ends too soon") from None


def _names(extensions: bytes) -> Iterator[str]:
    for _, listed in _elements(extensions):
        for _, extension in _elements(listed):
            (_, kind), *_, (_, value) = _elements(extension)
            if kind == _SUBJECT_ALT_NAME:
                _, names = next(_elements(value))
                yield from (
                    name.decode("ascii", "replace").lower() for tag, name in _elements(names) if tag == _DNS_NAME
                )


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and value of each element."""
    at = 0
    while at < len(der):
        tag, size = der[at], der[at + 1]
        at += 2
        if size & 0x80:
            width = size & 0x7F
            size = int.from_bytes(der[at : at + width], "big")
            at += width
        yield tag, der[at : at + size]
        at += size


def _time(tag: int, value: bytes) -> float:
    text = value.decode("ascii")
    if tag == _UTC_TIME:  # two digits: 1950 to 2049
        text = ("19" if text >= "5" else "20") + text
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))
