"""The Table that `mesh resolve` explains: from a file, or from an agent's admin HTTP."""

import urllib.error
import urllib.request
from pathlib import Path

from mesh.cli.base import Failed, Invalid
from mesh.settings import StoreSettings
from mesh.settings.sources import Sources
from mesh.table import Table, TableError, parse_table

_TIMEOUT = 5.0


def read_table(file: Path | None, admin: str | None, sources: Sources) -> Table:
    """The Table in `file`, or the agent's at `admin`; by default of the `mesh dev` or agent on this machine."""
    where = str(file) if file else _admin_url(admin, sources)
    data = _file(file) if file else _fetch(where)
    try:
        return parse_table(data)
    except TableError as error:
        raise Invalid(f"{where}: {error}") from None


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}") from None


def _admin_url(admin: str | None, sources: Sources) -> str:
    if admin is None and sources.dev:
        return sources.dev.admin
    address = admin or sources.agent(StoreSettings()).admin_listen
    return address.rstrip("/") if "://" in address else f"http://{address}"


def _fetch(admin: str) -> bytes:
    url = f"{admin}/v1/table"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        raise Failed(f"{url}: {error.read(500).decode(errors='replace').strip() or error.reason}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Failed(
            f"no agent answers at {admin} ({reason}): start one (mesh dev), or set --admin or --table"
        ) from None
