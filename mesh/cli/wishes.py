"""Writing wishes into the store, and following what becomes of them."""

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mesh import console
from mesh.cli import status
from mesh.cli.base import Failed, Mesh
from mesh.spec.errors import SpecError
from mesh.spec.route import RouteSpec, parse_route_json
from mesh.spec.service import ServiceSpec, parse_spec_json
from mesh.store import MAX_TXN_OPS, MAX_VALUE, Entry, Op
from mesh.suggestion import suggestion
from mesh.view import View

_ATTEMPTS = 5
_TXN_BYTES = MAX_VALUE // 2
"""Of values in one transaction: its body has Consul's limit for one value, and base64 takes a third more."""


Spec = ServiceSpec | RouteSpec


def label(spec: Spec) -> str:
    """How it is called where services and routes stand side by side."""
    return f"route/{spec.name}" if isinstance(spec, RouteSpec) else spec.name


async def write(mesh: Mesh, specs: Sequence[Spec], seen: Mapping[str, Entry] | None = None) -> dict[str, str]:
    """Writes what differs from what is there; for each label `created`, `changed` or `unchanged`.

    All or nothing, as far as one transaction goes: 64 keys, or as many as have 256 KiB.

    Args:
        mesh: where to.
        specs: what.
        seen: what must still be there for the specs' keys; without it, whatever is there is written over.

    Raises:
        Failed: if others write the same keys all the time, or wrote one that was `seen` differently.
    """
    bodies = {key_of(mesh, spec): json.dumps(spec.canonical(), indent=2, ensure_ascii=False).encode() for spec in specs}
    results: dict[str, str] = {}
    for batch in _batches(mesh, specs, bodies):
        for _ in range(_ATTEMPTS if seen is None else 1):
            there = seen if seen is not None else {
                **(await mesh.store.list(mesh.keys.services)).entries,
                **(await mesh.store.list(mesh.keys.route(""))).entries,
            }  # fmt: skip
            operations = []
            for spec in batch:
                key = key_of(mesh, spec)
                entry = there.get(key)
                results[label(spec)] = _result(spec, entry)
                if results[label(spec)] != "unchanged":
                    operations.append(Op("cas", key, bodies[key], index=entry.modify_index if entry else 0))
            if not operations or (await mesh.store.txn(operations)).ok:
                break
        else:
            names = ", ".join(map(label, batch))
            raise Failed(f"{names}: others are writing them at the same time; try again")
    return results


def key_of(mesh: Mesh, spec: Spec) -> str:
    return mesh.keys.route(spec.name) if isinstance(spec, RouteSpec) else mesh.keys.service(spec.name)


def _result(spec: Spec, entry: Entry | None) -> str:
    """What becomes of the key when the spec is written."""
    if entry is None:
        return "created"
    return "unchanged" if parsed(spec, entry) == spec else "changed"


def parsed(spec: Spec, entry: Entry) -> Spec | None:
    """What is there in place of a spec; None if it is none."""
    try:
        if isinstance(spec, RouteSpec):
            return parse_route_json(entry.value, spec.name)
        return parse_spec_json(entry.value, spec.name)
    except SpecError:
        return None


def _batches(mesh: Mesh, specs: Iterable[Spec], bodies: Mapping[str, bytes]) -> Iterator[list[Spec]]:
    """As many at a time as one transaction takes."""
    batch: list[Spec] = []
    size = 0
    for spec in specs:
        length = len(bodies[key_of(mesh, spec)])
        if batch and (len(batch) == MAX_TXN_OPS or size + length > _TXN_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(spec)
        size += length
    if batch:
        yield batch


def lost_targets(routes: Sequence[RouteSpec], services: Sequence[ServiceSpec], view: View) -> list[str]:
    """Where routes lead to a port that no service has, neither one in the store nor one of `services`."""
    known = {name: wish.spec for name, wish in view.wishes.items()} | {spec.name: spec for spec in services}
    lost = []
    for route in routes:
        for number, rule in enumerate(route.rules):
            for target in rule.to:
                where = f"route {route.name}: rules.{number}: there is no"
                if target.service not in known:
                    lost.append(f"{where} service {target.service!r}{suggestion(target.service, known)}")
                elif (spec := known[target.service]) is not None and target.port not in spec.ports:
                    lost.append(f"{where} port {target.service}.{target.port}{suggestion(target.port, spec.ports)}")
    return list(dict.fromkeys(lost))


async def remove(mesh: Mesh, services: Iterable[str], routes: Iterable[str]) -> None:
    keys = [
        key for name in services for key in (mesh.keys.service(name), mesh.keys.scale(name), mesh.keys.rollout(name))
    ]
    keys += map(mesh.keys.route, routes)
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
