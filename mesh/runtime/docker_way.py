"""The way to a Docker engine: its socket here, TCP with or without TLS, or ssh; and why it is barred, in a sentence.

TLS is asked for as with Docker's own client: `DOCKER_TLS_VERIFY=1`, and `DOCKER_CERT_PATH` for the folder of `ca.pem`,
`cert.pem` and `key.pem` (default: ~/.docker).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from mesh.runtime import RuntimeUnavailable
from mesh.runtime.docker_ssh import SshTunnel

LOCAL = ("localhost", "127.", "[::1]", "::1")


class Way(Protocol):
    """Verbs block: they are called in a thread."""

    def open(self) -> Mapping[str, Any]:
        """What the SDK's client is to be made with, once the way is open. Raises `RuntimeUnavailable` with the reason.

        Called before every request: the same answer as long as the way is the same.
        """

    def close(self) -> None:
        """Afterwards it may be opened again."""


def way_to(host: str, state: Path | None = None) -> Way:
    """`state`: the folder of who keeps something between its lives."""
    if not host.startswith("ssh://"):
        return Straight(host)
    return SshTunnel(host, state / "ssh" if state else None)


def remote_host(host: str) -> str | None:
    """The name or address of the machine that an engine at `host` runs on; None if that is this one."""
    name = "" if host.startswith("unix://") else urlsplit(host).hostname or ""
    return None if not name or name.startswith(LOCAL) else name


class Straight:
    """Connections that the SDK makes itself."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._options: Mapping[str, Any] | None = None

    def open(self) -> Mapping[str, Any]:
        from docker.utils import kwargs_from_env

        if self._options is None:
            if not self._host.startswith("unix://") and asks_for_tls():
                _check_files(self._host)
            self._options = kwargs_from_env({**os.environ, "DOCKER_HOST": self._host})
        return self._options

    def close(self) -> None:
        self._options = None


def asks_for_tls() -> bool:
    return bool(os.environ.get("DOCKER_TLS_VERIFY") or os.environ.get("DOCKER_CERT_PATH"))


def _folder() -> Path:
    return Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")


def _check_files(host: str) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        path = _folder() / name
        if not os.access(path, os.R_OK):
            what = "may not be read by this user" if path.exists() else "is not there"
            raise RuntimeUnavailable(
                f"no TLS with the Docker engine at {host}: {path} {what}; DOCKER_CERT_PATH names the folder of "
                "ca.pem, cert.pem and key.pem"
            )


def barred_by_tls(host: str, said: str, cause: BaseException) -> str | None:
    """The sentence for a connection that TLS has ended: `cause` at the root of `said`. None if something else has."""
    if "HTTP request to an HTTPS server" in said:
        return (
            f"the Docker engine at {host} wants TLS: set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the folder of "
            "ca.pem, cert.pem and key.pem"
        )
    if not isinstance(cause, ssl.SSLError):
        return None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _not_believed(host, cause)
    reason, folder = cause.reason or str(cause), _folder()
    if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER_FAILURE" in reason:
        return f"what answers at {host} speaks no TLS: check the port (TLS: 2376), or unset DOCKER_TLS_VERIFY"
    if "ALERT" in reason or isinstance(
        cause, ssl.SSLEOFError
    ):  # with TLS 1.3 an engine's refusal may be lost on the way
        return (
            f"the Docker engine at {host} does not accept our certificate {folder}/cert.pem ({reason}): "
            "it must be signed by the CA of the engine's --tlscacert, be valid now, and be for clients"
        )
    return f"no TLS with the Docker engine at {host}: {reason}; see {folder}"


def _not_believed(host: str, cause: ssl.SSLCertVerificationError) -> str:
    why = cause.verify_message
    if "mismatch" in why or "is not valid for" in why:
        mend = "connect by a name that it is for, or make one with this subjectAltName"
    elif "expired" in why or "not yet valid" in why:
        mend = "renew it on the engine's host, and check both clocks"
    else:
        mend = f"{_folder()}/ca.pem must be the CA that has signed it"
    return f"the certificate of the Docker engine at {host} is not believed ({why}): {mend}"
