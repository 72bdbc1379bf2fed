"""The Table of a node: what the store says, with what the node itself knows better."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

from mesh.agent import vip_route
from mesh.agent.localise import Localiser
from mesh.agent.route_secrets import RouteSecrets
from mesh.agent.vip_route import VipMode
from mesh.dataplane.workers import Workers
from mesh.endpoints import TableBuilder
from mesh.hearing import Sight, Sign
from mesh.keys import Keys
from mesh.model import NodeReport
from mesh.settings import AgentSettings
from mesh.store import Store
from mesh.view import NodeView, View

log = logging.getLogger(__name__)


class Publisher:
    """Gives Tables to the workers. `vips`: how virtual IPs are answered for; None until it has been chosen."""

    def __init__(self, settings: AgentSettings, store: Store, keys: Keys, workers: Workers) -> None:
        self.vips: VipMode | None = None
        self._settings = settings
        self._workers = workers
        self._vip_range = ""
        self._build_table = TableBuilder()
        self._localise = Localiser("route", 1)
        self._route_secrets = RouteSecrets(store, keys, workers.give_secrets)

    async def choose_vips(self, vip_range: str) -> None:
        if vip_range == self._vip_range:
            return
        self._vip_range = vip_range
        self.vips = await vip_route.choose(self._settings.vips, vip_range)
        if self.vips.added:
            (self._settings.state / "vip_route").write_text(vip_range)  # for whoever tidies up
        log.info("virtual IPs: %s: %s", self.vips.mode, self.vips.why)
        self._localise = Localiser(self.vips.mode, vip_route.first_port())

    def publish(self, view: View, own: NodeReport, sights: Mapping[str, Sight]) -> int:
        """Gives the Table of `view`, with this node's replicas as they are now, and others as they are heard.

        Returns its number, which the workers acknowledge.
        """
        nodes = {name: _as_heard(seen, sights.get(name)) for name, seen in view.nodes.items()}
        nodes[self._settings.node] = NodeView(own, held=True, index=view.index)
        table = self._build_table(dataclasses.replace(view, nodes=nodes))
        self._route_secrets.follow(table.routes)
        return self._workers.publish(self._localise(table))

    async def close(self) -> None:
        await self._route_secrets.close()


def _as_heard(seen: NodeView, sight: Sight | None) -> NodeView:
    """What this node hears of another counts for its Table; of one that it has not heard, what its session says."""
    if sight is None or sight.sign is Sign.REFUSES:
        return seen
    return dataclasses.replace(seen, held=not sight.sign.doubtful)
