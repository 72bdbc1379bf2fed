"""TLS that ends here: the certificates of routes, chosen by the name that the client asks for.

Certificates come from files or from the mesh's secrets, and are read again when they change; open connections go on
with what they began with. One that cannot be used is a problem that is told; the last good one stays, and whatever is
wrong with one route's leaves the others' alone.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mesh.proxy.x509 import read_facts
from mesh.table import PemSource, TableTls

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only (Mozilla's "intermediate", 2024); 1.3 has no others."""


class Unusable(ValueError):
    """What is wrong with a certificate or its key."""


class Certificate:
    """A certificate with its key, ready to be shown to clients."""

    def __init__(self, chain: bytes, key: bytes) -> None:
        """Raises Unusable."""
        self.context = new_context()
        _load(self.context, chain, key)
        try:
            self.names, self._begins, self._ends = read_facts(chain)
        except ValueError as error:
            raise Unusable(f"tls.cert: {error}") from None

    def problem(self, now: float) -> str | None:
        """What clients will hold against it; `now`: seconds since the epoch."""
        if now > self._ends:
            return f"tls.cert: the certificate expired on {_day(self._ends)}"
        if now < self._begins:
            return f"tls.cert: the certificate is valid only from {_day(self._begins)} on"
        return None


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(context: ssl.SSLContext, chain: bytes, key: bytes) -> None:
    """The ssl module wants a file: one in memory, so that no key of a secret is ever on a disk."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(chain + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_refuse_password)
    except ssl.SSLError as error:
        raise Unusable(_explain(error, chain, key)) from None
    finally:
        os.close(descriptor)


def _refuse_password() -> str:
    return ""  # else OpenSSL asks at the terminal


def _explain(error: ssl.SSLError, chain: bytes, key: bytes) -> str:
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        return "tls.cert: there is no certificate in it (PEM)"
    if b"PRIVATE KEY-----" not in key:
        return "tls.key: there is no private key in it (PEM)"
    if b"ENCRYPTED" in key:
        return "tls.key: it is encrypted; store it without a passphrase"
    if error.reason == "KEY_VALUES_MISMATCH":
        return "tls.key: it is not the key of tls.cert"
    return f"tls: {error.reason or error}"


class Certificates:
    """Those of one listener: each client is shown the one for the name that it asks for."""

    def __init__(self) -> None:
        self.context = new_context()
        self.context.sni_callback = self._show
        self._by_name: dict[str, Certificate] = {}
        self._default: Certificate | None = None

    def follow(self, certificates: Sequence[Certificate]) -> None:
        """The first is the default, and the earlier one wins where two are for the same name."""
        self._default = certificates[0] if certificates else None
        self._by_name = {name: each for each in reversed(certificates) for name in each.names}

    def find(self, name: str) -> Certificate | None:
        """An exact name before a wildcard, which stands for one label (RFC 6125, 6.4.3)."""
        name = name.lower().removesuffix(".")
        wildcard = f"*.{name.partition('.')[2]}"
        return self._by_name.get(name) or self._by_name.get(wildcard) or self._default

    def _show(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        certificate = self.find(name or "")
        if certificate is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = certificate.context
        return None


class _Held:
    """One route's certificate: what was read for it last, and what could be used."""

    def __init__(self, source: TableTls) -> None:
        self.source = source
        self.read: tuple[bytes, bytes] | None = None
        self.certificate: Certificate | None = None
        self.fault = ""


class Keyring:
    """The certificates of all routes, by the route's name."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._secrets: Mapping[str, str] = {}

    def update(self, wanted: Mapping[str, TableTls]) -> None:
        """Holds these from now on."""
        self._held = {name: self._kept(name, source) for name, source in wanted.items()}
        self.reload()

    def _kept(self, name: str, source: TableTls) -> _Held:
        held = self._held.get(name) or _Held(source)
        held.source = source
        return held

    def give_secrets(self, secrets: Mapping[str, str]) -> bool:
        """These are the mesh's secrets; True if another certificate is to be shown."""
        self._secrets = secrets
        return self.reload()

    def reload(self) -> bool:
        """Reads all sources again; True if another certificate is to be shown."""
        return sum(self._reload(held) for held in self._held.values()) > 0

    def _reload(self, held: _Held) -> bool:
        try:
            read = self._read(held.source.cert, "tls.cert"), self._read(held.source.key, "tls.key")
            if read == held.read:
                return False
            held.read = read
            held.certificate = Certificate(*read)
        except Unusable as error:
            held.fault = str(error)
            return False
        held.fault = ""
        return True

    def _read(self, source: PemSource, field: str) -> bytes:
        if source.file:
            try:
                return Path(source.file).read_bytes()
            except OSError as error:
                raise Unusable(f"{field}: {source.file}: {error.strerror}") from None
        if source.secret not in self._secrets:
            raise Unusable(f"{field}: there is no secret {source.secret}")
        return self._secrets[source.secret].encode()

    def of(self, routes: Iterable[str]) -> list[Certificate]:
        """The certificates of these routes, as far as there are any."""
        return [held.certificate for name in routes if (held := self._held.get(name)) and held.certificate]

    def problems(self, now: float) -> Iterator[str]:
        """`now`: seconds since the epoch."""
        for name, held in self._held.items():
            if held.fault:
                kept = "; the last good one stays" if held.certificate else "; its names are refused"
                yield f"route {name}: {held.fault}{kept}"
            elif held.certificate and (problem := held.certificate.problem(now)):
                yield f"route {name}: {problem}"
