"""Writing wishes into the store, and following what becomes of them."""

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mesh import console
from mesh.cli import status
from mesh.cli.base import Failed, Mesh
from mesh.spec.errors import SpecError
from mesh.spec.service import ServiceSpec, parse_spec_json
from mesh.store import MAX_TXN_OPS, MAX_VALUE, Entry, Op
from mesh.view import View

_ATTEMPTS = 5
_TXN_BYTES = MAX_VALUE // 2
"""Of values in one transaction: its body has Consul's limit for one value, and base64 takes a third more."""


async def write(mesh: Mesh, specs: Sequence[ServiceSpec]) -> dict[str, str]:
    """Writes what differs from what is there; for each service `created`, `changed` or `unchanged`.

    All or nothing, as far as one transaction goes: 64 services, or as many as have 256 KiB.

    Raises:
        Failed: if others write the same services all the time.
    """
    bodies = {spec.name: json.dumps(spec.canonical(), indent=2, ensure_ascii=False).encode() for spec in specs}
    results: dict[str, str] = {}
    for batch in _batches(specs, bodies):
        for _ in range(_ATTEMPTS):
            there = (await mesh.store.list(mesh.keys.services)).entries
            operations = []
            for spec in batch:
                key = mesh.keys.service(spec.name)
                entry = there.get(key)
                results[spec.name] = _result(spec, entry)
                if results[spec.name] != "unchanged":
                    operations.append(Op("cas", key, bodies[spec.name], index=entry.modify_index if entry else 0))
            if not operations or (await mesh.store.txn(operations)).ok:
                break
        else:
            names = ", ".join(spec.name for spec in batch)
            raise Failed(f"{names}: others are writing them at the same time; try again")
    return results


def _result(spec: ServiceSpec, entry: Entry | None) -> str:
    """What becomes of the key when the spec is written."""
    if entry is None:
        return "created"
    try:
        return "unchanged" if parse_spec_json(entry.value, spec.name) == spec else "changed"
    except SpecError:
        return "changed"


def _batches(specs: Iterable[ServiceSpec], bodies: Mapping[str, bytes]) -> Iterator[list[ServiceSpec]]:
    """As many at a time as one transaction takes."""
    batch: list[ServiceSpec] = []
    size = 0
    for spec in specs:
        if batch and (len(batch) == MAX_TXN_OPS or size + len(bodies[spec.name]) > _TXN_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(spec)
        size += len(bodies[spec.name])
    if batch:
        yield batch


async def remove(mesh: Mesh, names: Iterable[str]) -> None:
    keys = [key for name in names for key in (mesh.keys.service(name), mesh.keys.scale(name))]
    for start in range(0, len(keys), MAX_TXN_OPS):
        result = await mesh.store.txn([Op("delete", key) for key in keys[start : start + MAX_TXN_OPS]])
        if not result.ok:
            raise Failed(f"the store refused: {'; '.join(result.errors)}")


async def follow_rollouts(mesh: Mesh, specs: Sequence[ServiceSpec], before: View, longest: float) -> None:
    """Prints how far each spec has come until all are in force.

    Raises:
        Failed: with the reasons, as soon as every one has ended and one has failed, or after `longest` seconds.
    """
    releases = {name: plan.releases[-1].number for name, plan in before.plans.items() if plan.releases}
    said: dict[str, str] = {}
    steps: dict[str, status.Progress] = {}
    try:
        async with asyncio.timeout(longest):
            async for view in mesh.views():
                for spec in specs:
                    step = status.progress(view, spec, before=releases.get(spec.name, 0))
                    steps[spec.name] = step
                    if said.get(spec.name) != step.text:
                        said[spec.name] = step.text
                        console.note(f"{spec.name}: {step.text}")
                if all(step.done or step.faults for step in steps.values()):
                    break
    except TimeoutError:
        waiting = [f"{name}: {step.text}" for name, step in steps.items() if not (step.done or step.faults)]
        raise Failed(*waiting, f"not done after {longest:g} s; it goes on: mesh status") from None
    if faults := [f"{name}: {fault}" for name, step in steps.items() for fault in step.faults]:
        raise Failed(*faults)


async def follow_removal(mesh: Mesh, names: Sequence[str], longest: float) -> None:
    """Waits until nothing of these services runs.

    Raises:
        Failed: if something is left after `longest` seconds.
    """
    left: list[str] = []
    started = time.monotonic()
    try:
        async with asyncio.timeout(longest):
            async for view in mesh.views():
                left = [replica.id for name in names for replica in status.service_status(view, name).replicas]
                if not left and not view.plans.keys() & set(names):
                    break
    except TimeoutError:
        raise Failed(f"after {time.monotonic() - started:.0f} s still there: {', '.join(left) or 'the plan'}") from None
