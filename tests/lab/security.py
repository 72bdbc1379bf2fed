"""A lab with ACLs and TLS: an authority of its own, a certificate for each host, and three tokens, all in files.

The policies are those of docs/keys.md, word for word: what an operator copies from there is what the suite runs with.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.switch import address
from tests.lab.system import FOLDER, run

KEPT = FOLDER / "security"
AUTHORITY = KEPT / "ca.pem"
MESH, OPERATOR, ROOT = "mesh", "operator", "root"
"""Whose a token is: the agents' and schedulers', the operators', and the one that gives out the others."""

POLICIES = Path(__file__).parents[2] / "docs" / "keys.md"


def is_on() -> bool:
    return KEPT.is_dir()


def url(address: str) -> str:
    return f"https://{address}:8501" if is_on() else f"http://{address}:8500"


def create(hosts: Sequence[str]) -> None:
    """The authority, the certificates and the tokens."""
    KEPT.mkdir(mode=0o700)
    make_authority(AUTHORITY)
    for host in hosts:
        _issue(host)
    for who in (MESH, OPERATOR, ROOT):
        (KEPT / f"{who}.token").write_text(str(uuid.uuid4()))


def token(who: str) -> str:
    return (KEPT / f"{who}.token").read_text()


def certificate(host: str) -> tuple[Path, Path]:
    """And its key; for both ends, as Consul's servers are each other's clients."""
    return KEPT / f"{host}.pem", KEPT / f"{host}-key.pem"


def policies() -> dict[str, str]:
    """The rules that each token gets."""
    mesh, operator = re.findall(r"```hcl\n(.*?)```", POLICIES.read_text(encoding="utf-8"), re.DOTALL)
    return {MESH: mesh, OPERATOR: operator}


def variables(who: str, host: str) -> dict[str, str]:
    """How a process on a host finds its Consul, and what it shows it: names of files, and no secret."""
    found = {"CONSUL_HTTP_ADDR": url("127.0.0.1")}
    if is_on():
        mine, key = certificate(host)
        found |= {"CONSUL_HTTP_TOKEN_FILE": f"{KEPT}/{who}.token", "CONSUL_CACERT": f"{AUTHORITY}",
                  "CONSUL_CLIENT_CERT": f"{mine}", "CONSUL_CLIENT_KEY": f"{key}"}  # fmt: skip
    return found


def consul_config(host: str) -> dict[str, Any]:
    """What a host's Consul is told."""
    mine, key = certificate(host)
    return {
        "ports": {"http": -1, "https": 8501},
        "ca_file": f"{AUTHORITY}", "cert_file": f"{mine}", "key_file": f"{key}",
        "verify_incoming": True, "verify_outgoing": True, "verify_server_hostname": True,
        "acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": token(ROOT), "agent": token(ROOT)}},
    }  # fmt: skip


def make_authority(certificate: Path) -> None:
    """One that signs itself; its key is beside it."""
    _make(certificate, "/CN=the lab's authority", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign")


def _issue(host: str) -> None:
    mine, _ = certificate(host)
    names = f"DNS:server.dc1.consul,DNS:localhost,IP:127.0.0.1,IP:{address(host)}"
    signed_by: list[str | Path] = ["-CA", AUTHORITY, "-CAkey", _key(AUTHORITY)]
    _make(mine, f"/CN={host}", "basicConstraints=critical,CA:FALSE", f"subjectAltName={names}",
          "extendedKeyUsage=serverAuth,clientAuth", options=signed_by)  # fmt: skip


def _make(certificate: Path, subject: str, *extensions: str, options: Sequence[str | Path] = ()) -> None:
    added = [word for extension in extensions for word in ("-addext", extension)]
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
        "-config", "/dev/null", "-subj", subject, *added, *options,
        "-keyout", _key(certificate), "-out", certificate)  # fmt: skip


def _key(certificate: Path) -> Path:
    return certificate.with_name(f"{certificate.stem}-key.pem")
