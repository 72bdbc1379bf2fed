"""Our own placement and repack on the same requests, through the functions that the scheduler calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mesh.model import Capacity
from mesh.scheduler.blueprint import Blueprint, draw
from mesh.scheduler.placement import Holding, Node, Placement, Request, place
from mesh.scheduler.repack import repack
from mesh.spec.service import ServiceSpec

Integers = NDArray[np.int64]

ROUND = 256
"""Requests decided together, as they come in one look of the scheduler: it knows what runs and these, not the rest."""
MI = 2**20
GPU = "gpu-milli"


def blueprints(sizes: Integers) -> list[Blueprint]:
    """One service for each class of millicores, MiB and, if there is a third column, thousandths of GPUs."""
    made = []
    for number, size in enumerate(sizes):
        resources = {"cpu": f"{size[0]}m", "memory": int(size[1]) * MI}
        if len(size) > 2 and size[2]:
            resources[GPU] = int(size[2])
        written: dict[str, Any] = {"name": f"class-{number}", "image": "bench", "resources": resources}
        made.append(draw(ServiceSpec.model_validate(written), written))
    return made


def empty_nodes(rooms: Integers) -> list[Node]:
    """A node for each row: millicores, MiB, and perhaps thousandths of GPUs."""
    nodes = []
    for number, room in enumerate(rooms):
        resources = {GPU: int(room[2])} if room[2:].any() else {}
        capacity = Capacity(cpu=int(room[0]), memory=int(room[1]) * MI, resources=resources)
        nodes.append(Node(f"n{number:06}", capacity, {"runtime": "docker"}))
    return nodes


def place_in_rounds(nodes: Sequence[Node], plans: Sequence[Blueprint], classes: Integers) -> tuple[list[Node], int]:
    """The nodes with what has been put on them, and how many requests found no place. `classes` index `plans`."""
    holdings: dict[str, list[Holding]] = {node.name: [] for node in nodes}
    refused = 0
    for begin in range(0, len(classes), ROUND):
        numbered = enumerate(classes[begin : begin + ROUND], begin)
        requests = [Request(plans[kind].spec.name, at + 1, plans[kind]) for at, kind in numbered]
        now = [replace(node, holdings=holdings[node.name]) for node in nodes]
        for answer in place(requests, now, "binpack"):
            if isinstance(answer, Placement):
                one = answer.request
                held = Holding(one.service, one.blueprint.demand, id=f"{one.service}-{one.slot}", slot=one.slot)
                holdings[answer.node].append(held)
            else:
                refused += 1
    return [replace(node, holdings=holdings[node.name]) for node in nodes], refused


def without_some(nodes: Sequence[Node], share: float) -> list[Node]:
    """The nodes when this share of the replicas, drawn at random, has gone."""
    chance = np.random.default_rng(0)
    return [replace(node, holdings=[held for held in node.holdings if chance.random() >= share]) for node in nodes]


def in_use(nodes: Sequence[Node]) -> int:
    return sum(bool(node.holdings) for node in nodes)


def repacked(nodes: Sequence[Node], plans: Sequence[Blueprint], share: float) -> tuple[list[Node], int]:
    """The nodes after all moves of one plan, and how many these were."""
    by_service = {plan.spec.name: plan for plan in plans}
    known = {held.id: by_service[held.service] for node in nodes for held in node.holdings}
    moves = repack(nodes, known, share=share, strategy="binpack")
    target = {move.id: move.target for move in moves}
    holdings: dict[str, list[Holding]] = {node.name: [] for node in nodes}
    for node in nodes:
        for held in node.holdings:
            holdings[target.get(held.id, node.name)].append(held)
    return [replace(node, holdings=holdings[node.name]) for node in nodes], len(moves)
