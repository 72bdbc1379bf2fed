"""What operators do to a cluster: they apply, scale, delete, drain, promote, and in the end mend what they broke."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from mesh.keys import Keys
from mesh.model import RolloutState, ServicePlan
from mesh.view import decode_document
from tests.simulation.clock import EPOCH
from tests.simulation.cluster import Cluster
from tests.simulation.engine import BAD, FINISHING, GOOD

KEYS = Keys()

SERVICES: dict[str, dict[str, Any]] = {
    "web": {"ports": {"http": {"port": 80}}},
    "api": {"ports": {"http": {"port": 80}}},
    "edge": {"kind": "global", "ports": {"http": {"port": 80}}},
    "mail": {"ports": {"smtp": {"port": 25, "host_port": 2525}}},
    "data": {"ports": {"db": {"port": 5432}}, "volumes": {"files": {"path": "/files"}}},
}
"""Service → what is special about it."""

WORK = {"completions": 3, "parallelism": 2, "retries": 30, "deadline": "120s"}
EVERY_MINUTE, SELDOM = "* * * * *", "0 3 1 1 *"

EXTRAS: dict[str, dict[str, dict[str, Any]]] = {
    "jobs": {
        "batch": {"kind": "job", "job": WORK},
        "nightly": {"kind": "cron", "job": {**WORK, "completions": 2}, "schedule": {"cron": EVERY_MINUTE}},
    },
    "canaries": {},
    "drains": {},
    "priorities": {
        "bulk": {"placement": {"priority": 10}, "resources": {"memory": "1500Mi"}},
        "prime": {"placement": {"priority": 80}, "resources": {"memory": "1500Mi"}},
    },
    "singletons": {
        "sole": {"singleton": True, "replicas": 1},
        "kept": {"on_return": "keep-old", "ports": {"http": {"port": 80}}},
    },
    "load": {
        "elastic": {
            "ports": {"http": {"port": 80, "protocol": "http"}},
            "scale": {"min": 1, "max": 4, "metrics": [{"in_flight": 2}], "to_zero_after": "20s"},
        },
    },
}
"""What a seed may add to the cluster's life, with the services that it brings."""

HELD = {"bulk": 1, "prime": 1, "elastic": 2}
"""So many replicas remain in the end, by hand: there is room for them, and no load changes them."""

ROLLOUT_COMMANDS = ("promote", "promote", "pause", "resume", "abort", "undo")
LOADS = (0.0, 0.0, 1.0, 5.0, 9.0)
"""Requests in flight."""

Action = tuple[int, Callable[[], None]]
"""How often it is drawn, and what it does."""


class Operators:
    """All of them. `extras`: names of `EXTRAS`."""

    def __init__(self, cluster: Cluster, choose: random.Random, extras: frozenset[str]) -> None:
        self._cluster = cluster
        self._random = choose
        self._extras = extras
        self._services = {**SERVICES}
        for extra in sorted(extras):
            self._services.update(EXTRAS[extra])
        self._version = 0
        self._images: dict[str, str] = {}  # service → how its newest image behaves

    def begin(self) -> None:
        for service in self._random.sample(sorted(SERVICES), self._random.randint(2, len(SERVICES))):
            self._apply(service, self._good(service))
        for service in sorted(self._services.keys() - SERVICES.keys()):
            self._apply(service, self._good(service))

    @property
    def actions(self) -> list[Action]:
        more: dict[str, list[Action]] = {
            "canaries": [(6, self._command), (8, self._roll)],
            "load": [(8, self._change_load)],
        }
        return [
            (4, self._roll),
            (2, self._roll_bad),
            (2, self._scale),
            (1, self._delete),
            (2, self._set_node),
            *(action for extra, actions in more.items() if extra in self._extras for action in actions),
        ]

    def heal(self) -> None:
        """All nodes work again, and what is wished for can run."""
        for name in self._cluster.hosts:
            self._availability(name, "active")
        for service, behaviour in sorted(self._images.items()):
            self._cluster.write(KEYS.scale(service), HELD.get(service))
            if "schedule" in self._services[service]:
                self._services[service] = {**self._services[service], "schedule": {"cron": SELDOM}}
                self._apply(service, self._good(service))
            elif behaviour in BAD or self._has_bad_past(service):
                self._apply(service, self._good(service))

    def tend(self) -> None:
        """What waits for people is not left waiting."""
        for service, plan in self._plans().items():
            rollout = plan.rollout
            if rollout.state is RolloutState.CANARY and not rollout.promote:
                self._order(service, "promote")
            elif rollout.state is RolloutState.PAUSED:
                self._order(service, "resume")

    def _plans(self) -> dict[str, ServicePlan]:
        read = self._cluster.read(KEYS.planned_services)
        return {service: decode_document(value, ServicePlan) for service, value in read.items()}

    def _has_bad_past(self, service: str) -> bool:
        """A release that went under in the trouble may have been rolled back to one that was never good."""
        plan = self._plans().get(service)
        return plan is not None and any(_behaviour(release.spec) in BAD for release in plan.releases)

    # ── services ─────────────────────────────────────────────────────────────────────────────

    def _good(self, service: str) -> str:
        return self._random.choice(FINISHING if "job" in self._services[service] else GOOD)

    def _apply(self, service: str, behaviour: str) -> None:
        self._version += 1
        self._images[service] = behaviour
        special = self._services[service]
        make = self._job if "job" in special else self._service
        document = {"image": f"{service}:{self._version}-{behaviour}", **make(service, special)}
        update = document.get("update", {})
        told = [f"{document.get('replicas', 1)} replicas", *(
            f"{name.removeprefix('max_')} {update[name]}"
            for name in ("max_surge", "max_unavailable", "canary") if name in update
        )]  # fmt: skip
        self._cluster.say(f"applies {service}: {document['image']}, {', '.join(told)}")
        self._cluster.write(KEYS.service(service), document)

    def _service(self, service: str, special: dict[str, Any]) -> dict[str, Any]:
        choose = self._random
        surge, unavailable = choose.choice([(1, 0), (1, 0), (2, 0), ("50%", 0), (1, 1), (0, 1)])
        update = {"min_healthy": "1s", "healthy_deadline": "15s", "progress_deadline": "30s",
                  "max_surge": surge, "max_unavailable": unavailable}  # fmt: skip
        document = {
            "replicas": 1 if special.get("kind") == "global" else choose.randint(1, self._most(service)),
            "resources": {"memory": choose.choice(["64Mi", "700Mi"])},
            "health": {"ready": {"exec": ["check"], "interval": "4s"}},
            "update": update,
            "restart": {"delay": "500ms", "max_delay": "5s"},
            "stop": {"drain": choose.choice(["0s", "1s"]), "grace": "2s"},
            **special,
        }
        if "canaries" in self._extras and special.get("kind") != "global" and choose.random() < 0.8:
            update["canary"] = choose.choice([1, 1, "50%", "100%"])
            update["auto_promote"] = choose.random() < 0.4
        return document

    def _job(self, service: str, special: dict[str, Any]) -> dict[str, Any]:
        schedule = special.get("schedule")
        overlap = {"overlap": self._random.choice(["skip", "allow", "replace"])}
        return {
            "resources": {"memory": "64Mi"},
            "restart": {"delay": "500ms", "max_delay": "5s"},
            "stop": {"drain": "0s", "grace": "2s"},
            **special,
            **({"schedule": {**schedule, **overlap}} if schedule else {}),
        }

    def _most(self, service: str) -> int:
        """As many replicas as there is room for: one per node where the port is the node's."""
        if service == "bulk":
            return 5 * min(4, len(self._cluster.hosts))
        return min(3, len(self._cluster.hosts)) if service == "mail" else 3

    def _roll(self) -> None:
        service = self._random.choice(sorted(self._services))
        self._apply(service, self._good(service))

    def _roll_bad(self) -> None:
        if self._images:
            self._apply(self._random.choice(sorted(self._images)), self._random.choice(BAD))

    def _scale(self) -> None:
        if self._images:
            service, count = self._random.choice(sorted(self._images)), self._random.randint(0, 4)
            if self._may_scale(service, count):
                self._cluster.say(f"scales {service} to {count}")
                self._cluster.write(KEYS.scale(service), count)

    def _may_scale(self, service: str, count: int) -> bool:
        return "job" not in self._services[service] and not (service == "sole" and count > 1)

    def _delete(self) -> None:
        if len(self._images) > 1:
            service = self._random.choice(sorted(self._images))
            del self._images[service]
            self._cluster.say(f"deletes {service}")
            self._cluster.write(KEYS.service(service), None)
            self._cluster.write(KEYS.scale(service), None)

    def _command(self) -> None:
        rolling = [service for service, plan in self._plans().items() if plan.rollout.state is not RolloutState.IDLE]
        services = rolling or sorted(self._images)
        if services:
            self._order(self._random.choice(services), self._random.choice(ROLLOUT_COMMANDS))

    def _order(self, service: str, action: str) -> None:
        self._cluster.say(f"orders {action} of {service}")
        self._cluster.write(KEYS.rollout(service), {"action": action, "at": self._cluster.loop.time()})

    def _change_load(self) -> None:
        load = self._random.choice(LOADS)
        self._cluster.say(f"there are {load:g} requests in flight at elastic")
        self._cluster.load.change("elastic", load)

    # ── nodes ────────────────────────────────────────────────────────────────────────────────

    def _set_node(self) -> None:
        node = self._random.choice(sorted(self._cluster.hosts))
        availability = self._random.choice(["active", "drain", "pause"])
        within = 0.0
        if availability == "drain" and "drains" in self._extras:
            within = self._random.choice([0.0, 3.0, 20.0])
        self._availability(node, availability, within)

    def _availability(self, node: str, availability: str, within: float = 0.0) -> None:
        """`within`: seconds until a drain stops what has not moved; 0: never."""
        deadline = {"deadline": EPOCH + self._cluster.loop.time() + within} if within else {}
        self._cluster.say(f"sets {node} to {availability}" + (f" within {within:g} s" if within else ""))
        self._cluster.write(KEYS.node_settings(node), {"availability": availability, **deadline})


def _behaviour(spec: dict[str, Any]) -> str:
    return str(spec["image"]).rpartition("-")[2]
