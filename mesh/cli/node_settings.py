"""What operators say of nodes, read and written: what is not meant to change stays as it is."""

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from mesh.cli.base import Failed, Mesh
from mesh.suggestion import suggestion

if TYPE_CHECKING:
    from mesh.view import View

_ATTEMPTS = 5


def known_nodes(view: "View", names: Collection[str]) -> list[str]:
    """The names, each once.

    Raises:
        Failed: for names that are no node; one that is down is.
    """
    known = sorted(view.nodes.keys() | view.node_plans.keys() | view.settings.keys())
    if unknown := [name for name in names if name not in known]:
        raise Failed(*(f"there is no node {name!r}{suggestion(name, known)}" for name in unknown))
    return list(dict.fromkeys(names))


async def change_settings(mesh: Mesh, node: str, **fields: object) -> None:
    """Writes these fields of a node's settings; None takes a field away.

    Raises:
        Failed: if what is there cannot be read, or others write it all the time.
    """
    key = mesh.keys.node_settings(node)
    for _ in range(_ATTEMPTS):
        entry = await mesh.store.get(key)
        try:
            settings = json.loads(entry.value) if entry else {}
        except ValueError:
            settings = None
        if not isinstance(settings, dict):
            raise Failed(f"{key} cannot be read: mend it first, or delete it")
        body = {name: value for name, value in {**settings, **fields}.items() if value is not None}
        if await mesh.store.put(key, json.dumps(body).encode(), cas=entry.modify_index if entry else 0):
            return
    raise Failed(f"{node}: others are writing {key} at the same time; try again")
