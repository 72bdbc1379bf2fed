"""What specs change in the store, field by field; and whether the store still is what a plan was made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh import console
from mesh.cli.base import Failed, Mesh
from mesh.cli.wishes import Spec, key_of, label, parsed
from mesh.spec.route import RouteSpec
from mesh.store import Entry

_SIGNS = {"created": ("+", "green"), "changed": ("~", "yellow"), "unchanged": ("=", "")}


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a spec before and after; None where it is not there."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one service or route: `created`, `changed` or `unchanged`, and where it differs."""

    spec: Spec
    result: str
    fields: Sequence[Field]

    def json(self) -> dict[str, Any]:
        kind = "route" if isinstance(self.spec, RouteSpec) else "service"
        fields = [{"path": field.path, "before": field.before, "after": field.after} for field in self.fields]
        return {kind: self.spec.name, "result": self.result, "fields": fields}


@dataclass(frozen=True, slots=True)
class Desired:
    """All that is wished, at one index: it grows with every change, whoever made it."""

    index: int
    entries: Mapping[str, Entry]


async def desired(mesh: Mesh) -> Desired:
    """What is wished now. Where nothing is, the store has no index of its own for that: it is 0."""
    listing = await mesh.store.list(mesh.keys.desired)
    return Desired(listing.index if listing.entries else 0, listing.entries)


async def unchanged_since(mesh: Mesh, index: int) -> Desired:
    """What is wished, as it was at that index.

    Raises:
        Failed: if anything was changed since, with what.
    """
    now = await desired(mesh)
    if now.index == index:
        return now
    changed = sorted(key.removeprefix(mesh.keys.desired) for key, entry in now.entries.items()
                     if entry.modify_index > index)  # fmt: skip
    what = f"changed since: {', '.join(changed[:5])}" if changed else "or something was deleted since"
    raise Failed(f"the plan is of index {index}, the store is at {now.index} ({what}); nothing was written: plan again")


def changes(mesh: Mesh, specs: Sequence[Spec], there: Mapping[str, Entry]) -> list[Change]:
    """What writing these specs would change."""
    return [_change(spec, there.get(key_of(mesh, spec))) for spec in specs]


def _change(spec: Spec, entry: Entry | None) -> Change:
    before = parsed(spec, entry) if entry is not None else None
    fields = list(differences("", before.canonical() if before else None, spec.canonical()))
    if entry is None:
        return Change(spec, "created", fields)
    return Change(spec, "unchanged" if before == spec else "changed", fields)


def differences(path: str, before: Any, after: Any) -> Iterator[Field]:
    """Where two values below `path` differ. Objects and lists of objects are gone into; all else is a value."""
    if before == after:
        return
    old, new = _parts(before), _parts(after)
    if (old is None and before is not None) or (new is None and after is not None) or (old is None and new is None):
        yield Field(path, before, after)
        return
    old, new = old or {}, new or {}
    for key in [*old, *(key for key in new if key not in old)]:
        yield from differences(f"{path}.{key}" if path else key, old.get(key), new.get(key))


def _parts(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return {str(number): item for number, item in enumerate(value)}
    return None


def show(found: Sequence[Change]) -> None:
    for change in found:
        sign, colour = _SIGNS[change.result]
        print(console.paint(console.printable(f"{sign} {label(change.spec)} ({change.result})"), colour), flush=True)
        for field in change.fields if change.result == "changed" else ():
            show_field(field)


def show_field(field: Field) -> None:
    if field.before is None:
        text, colour = f"    + {field.path}: {_text(field.after)}", "green"
    elif field.after is None:
        text, colour = f"    - {field.path}: {_text(field.before)}", "red"
    else:
        text, colour = f"    ~ {field.path}: {_text(field.before)} → {_text(field.after)}", "yellow"
    print(console.paint(console.printable(text), colour), flush=True)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
