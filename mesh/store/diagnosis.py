"""What `mesh doctor` asks of the store: who leads, how fast it writes, and what decides how fast it heals."""

from __future__ import annotations

import contextlib
import secrets
import statistics
import time
from dataclasses import dataclass
from typing import Any

from mesh.settings import StoreSettings
from mesh.store import StoreError, StoreRejected
from mesh.store.consul import ConsulStore
from mesh.units import parse_duration

WRITES = 5
"""How many writes are timed."""
SHORT_TTL = 1.0


@dataclass(frozen=True, slots=True)
class StoreDiagnosis:
    """Plain findings; None where the store does not show it (to this token, or on a client agent)."""

    address: str
    error: str | None = None
    """Why it cannot be used: not reachable, no leader, denied."""
    version: str | None = None
    leader: str | None = None
    write_seconds: float | None = None
    """The median of a few writes."""
    short_sessions: bool | None = None
    """Whether a session of one second can be made (`session_ttl_min`)."""
    session_ttl_min: float | None = None
    raft_multiplier: float | None = None
    """1: writes pause 2.4–3.8 s in an election; 5, Consul's default: 11–19 s."""
    max_connections_per_client: int | None = None
    """Consul's default of 200 bounds how many watches may come from one address."""


async def diagnose(settings: StoreSettings) -> StoreDiagnosis:
    """Asks the store; writes and removes one key beside the mesh's own. Raises nothing of the store's."""
    try:
        store = ConsulStore(settings)
    except StoreError as error:
        return StoreDiagnosis(settings.address, error=str(error))
    try:
        return await _examine(store, settings.root)
    except StoreError as error:
        return StoreDiagnosis(store.address, error=str(error))
    finally:
        await store.close()


async def _examine(store: ConsulStore, root: str) -> StoreDiagnosis:
    leader = await store.leader()
    if leader is None:
        return StoreDiagnosis(store.address, error=f"the store at {store.address} has no leader: are most servers up?")
    about: dict[str, Any] = {}
    with contextlib.suppress(StoreError):  # needs `agent:read`, which the mesh itself does not
        about = await store.about()
    config, debug = about.get("Config", {}), about.get("DebugConfig", {})
    return StoreDiagnosis(
        store.address,
        version=config.get("Version"),
        leader=leader,
        write_seconds=await _write_seconds(store, f"{root}/doctor-{secrets.token_hex(4)}"),
        short_sessions=await _takes_short_sessions(store),
        session_ttl_min=_seconds(debug.get("SessionTTLMin")),
        raft_multiplier=_raft_multiplier(debug) if config.get("Server") else None,
        max_connections_per_client=debug.get("HTTPMaxConnsPerClient"),
    )


async def _write_seconds(store: ConsulStore, key: str) -> float:
    took = []
    for n in range(WRITES):
        began = time.monotonic()
        await store.put(key, str(n).encode())
        took.append(time.monotonic() - began)
    await store.delete(key)
    return statistics.median(took)


async def _takes_short_sessions(store: ConsulStore) -> bool:
    try:
        session = await store.create_session("mesh doctor", SHORT_TTL)
    except StoreRejected:
        return False
    await store.destroy_session(session)
    return True


def _raft_multiplier(debug: dict[str, Any]) -> float | None:
    """Consul scales its election timeout of 1 s by it; a `-dev` agent is faster still."""
    timeout = _seconds(debug.get("ConsulRaftElectionTimeout"))
    return None if timeout is None else max(timeout, 1.0)


def _seconds(text: Any) -> float | None:
    try:
        return parse_duration(text)
    except ValueError:
        return None
