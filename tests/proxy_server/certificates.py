"""Certificates for the tests, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, in files."""

    cert: Path
    key: Path


def make(folder: Path, name: str, *names: str, begins: str = "20200101000000Z", ends: str = "20991231000000Z") -> Pair:
    """A self-signed certificate for these DNS names; `begins` and `ends` as in ASN.1."""
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    subject = f"/CN={name}"
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(pair.key))
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    _openssl("req", "-new", "-key", str(pair.key), "-subj", subject, "-out", str(request))
    extensions.write_text("subjectAltName=" + ",".join(f"DNS:{each}" for each in names) if names else "")
    database = folder / f"{name}.ca"
    database.mkdir()
    (database / "index.txt").touch()
    (database / "conf").write_text(
        f"[ca]\ndefault_ca=d\n[d]\ndir={database}\ndatabase=$dir/index.txt\nnew_certs_dir=$dir\nrand_serial=yes\n"
        "default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n"
    )
    _openssl(
        "ca", "-batch", "-notext", "-config", str(database / "conf"), "-selfsign", "-keyfile", str(pair.key),
        "-in", str(request), "-out", str(pair.cert), "-startdate", begins, "-enddate", ends,
        "-extfile", str(extensions),
    )  # fmt: skip
    return pair


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
