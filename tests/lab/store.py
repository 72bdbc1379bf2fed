"""The lab's Consul as it is asked: by way of one host, with an operator's token where it wants one."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPResponse
from typing import Any
from urllib.request import Request, urlopen

from tests.lab import security
from tests.lab.switch import address
from tests.lab.system import until


def url(host: str) -> str:
    """Of a host's Consul: `http://10.77.0.11:8500`."""
    return security.url(address(host))


def ask(
    host: str, path: str, document: Mapping[str, Any] | None = None, *, method: str = "GET", timeout: float = 5.0
) -> HTTPResponse:
    """Raises `OSError` if it does not answer, or with an error."""
    return asked_as(security.OPERATOR, host, path, document, method=method, timeout=timeout)


def asked_as(
    who: str, host: str, path: str, document: Mapping[str, Any] | None = None, *, method: str, timeout: float = 5.0
) -> HTTPResponse:
    """As the holder of another token."""
    body = None if document is None else json.dumps(document).encode()
    request, context = Request(url(host) + path, body, method=method), None
    if security.is_on():
        request.add_header("X-Consul-Token", security.token(who))
        context = _trust(host)
    answer: HTTPResponse = urlopen(request, timeout=timeout, context=context)
    return answer


def grant(host: str) -> None:
    """The policies and the tokens of them."""
    for who, rules in security.policies().items():
        _give(host, "/v1/acl/policy", {"Name": who, "Rules": rules})
        _give(host, "/v1/acl/token", {"SecretID": security.token(who), "Policies": [{"Name": who}]})


def _give(host: str, path: str, document: Mapping[str, Any]) -> None:
    """As soon as the servers agree that they have ACLs."""

    def given() -> bool:
        with suppress(OSError):
            asked_as(security.ROOT, host, path, document, method="PUT").close()
            return True
        return False

    until(given, f"{path} on {host}")


def _trust(host: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=security.AUTHORITY)
    context.load_cert_chain(*security.certificate(host))
    return context
