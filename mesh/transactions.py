"""What the scheduler decided, as writes that the store takes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from mesh.keys import Keys
from mesh.model import ClusterPlan, NodePlan, ScaleState, ServicePlan
from mesh.scheduler.plan import Outcome
from mesh.store import MAX_TXN_OPS, Op
from mesh.store.marks import marked
from mesh.view import View, encode_document

log = logging.getLogger(__name__)

MAX_TXN_BYTES = 350 * 1024
"""Of values in one transaction: Consul takes 512 KiB of JSON, in which they travel as base64."""


def transactions(outcome: Outcome, view: View, keys: Keys) -> Iterator[list[Op]]:
    """The writes, each guarded by what was read, in as few transactions as the store allows.

    Services come before nodes: a node's plan names releases that must be known when it is read again.
    A document that no transaction can hold stays unwritten; the core bounds them, so this is a mistake of ours.
    """
    writes = [
        *([_write(keys.scale_state(name), state, view)] for name, state in sorted(outcome.scaled.items())),
        *([_remove(keys.scale_state(name), view)] for name in sorted(outcome.removed_scaled)),
        *(marked(_write(keys.service_plan(name), plan, view)) for name, plan in sorted(outcome.services.items())),
        *([_write(keys.node_plan(name), plan, view)] for name, plan in sorted(outcome.nodes.items())),
        *([_remove(keys.node_plan(name), view)] for name in sorted(outcome.removed_nodes)),
        *(marked(_remove(keys.service_plan(name), view)) for name in sorted(outcome.removed_services)),
        *([[_write(keys.cluster, outcome.cluster, view)]] if outcome.cluster else []),
    ]
    batch: list[Op] = []
    size = 0
    for ops in writes:
        op = ops[0]
        if len(op.value) > MAX_TXN_BYTES:
            log.error("%s has %d bytes, more than one write may have: it stays as it is", op.key, len(op.value))
            continue
        if batch and (len(batch) + len(ops) >= MAX_TXN_OPS or size + len(op.value) > MAX_TXN_BYTES):
            yield batch
            batch, size = [], 0
        batch += ops
        size += len(op.value)
    if batch:
        yield batch


def _write(key: str, plan: ServicePlan | NodePlan | ClusterPlan | ScaleState, view: View) -> Op:
    return Op("cas", key, encode_document(plan), index=view.plan_indexes.get(key, 0))


def _remove(key: str, view: View) -> Op:
    return Op("delete-cas", key, index=view.plan_indexes[key])
