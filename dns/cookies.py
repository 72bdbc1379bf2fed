"""DNS cookies: a client that shows the one we gave it has shown that its address is its own.

Nothing is kept: the cookie is a keyed hash of the client's cookie, its address and the time.
Sources: RFC 7873; RFC 9018 4 for the layout (with BLAKE2s, which Python has, where it says SipHash).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct

from mesh.dns.message import COOKIE_HALF

_SERVER = struct.Struct("!B3xI8s")  # version, reserved, seconds, hash
_VERSION = 1
_OLDEST, _NEWEST = 3600, -300  # seconds of age at which a cookie is good


class Cookies:
    """One server's cookies."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret or os.urandom(32)

    def give(self, client_cookie: bytes, client: str, now: float) -> bytes:
        """The whole cookie for a client that sent its half. `now`: Unix seconds."""
        seconds = int(now) & 0xFFFFFFFF
        return client_cookie + _SERVER.pack(_VERSION, seconds, self._hash(client_cookie, client, seconds))

    def is_good(self, cookie: bytes, client: str, now: float) -> bool:
        """Whether we gave this cookie to this address, not long ago."""
        client_cookie, server_cookie = cookie[:COOKIE_HALF], cookie[COOKIE_HALF:]
        if len(server_cookie) != _SERVER.size:
            return False
        version, seconds, found = _SERVER.unpack(server_cookie)
        age = int(now) - seconds
        return (
            version == _VERSION
            and _NEWEST <= age <= _OLDEST
            and hmac.compare_digest(found, self._hash(client_cookie, client, seconds))
        )

    def _hash(self, client_cookie: bytes, client: str, seconds: int) -> bytes:
        told = client_cookie + bytes((_VERSION, 0, 0, 0)) + seconds.to_bytes(4, "big") + client.encode()
        return hashlib.blake2s(told, key=self._secret, digest_size=8).digest()
