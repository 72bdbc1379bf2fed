"""The keys of the store. Each prefix has exactly one kind of writer (see docs/keys.md)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys under one root; `root` has no slashes at its ends."""

    root: str = "mesh"

    @property
    def desired(self) -> str:
        return f"{self.root}/desired/"

    @property
    def planned(self) -> str:
        return f"{self.root}/planned/"

    @property
    def observed(self) -> str:
        return f"{self.root}/observed/"

    @property
    def config(self) -> str:
        return f"{self.desired}config"

    @property
    def leader(self) -> str:
        return f"{self.planned}leader"

    @property
    def cluster(self) -> str:
        """What the scheduler thinks of the nodes."""
        return f"{self.planned}cluster"

    @property
    def services(self) -> str:
        return f"{self.desired}services/"

    @property
    def planned_services(self) -> str:
        return f"{self.planned}services/"

    @property
    def planned_nodes(self) -> str:
        return f"{self.planned}nodes/"

    @property
    def observed_nodes(self) -> str:
        return f"{self.observed}nodes/"

    def service(self, service: str) -> str:
        return f"{self.services}{service}"

    def route(self, name: str) -> str:
        return f"{self.desired}routes/{name}"

    def node_settings(self, node: str) -> str:
        return f"{self.desired}nodes/{node}"

    def scale(self, service: str) -> str:
        return f"{self.desired}scale/{service}"

    def rollout(self, service: str) -> str:
        return f"{self.desired}rollouts/{service}"

    def secret(self, name: str) -> str:
        return f"{self.desired}secrets/{name}"

    def config_value(self, name: str) -> str:
        return f"{self.desired}configs/{name}"

    def service_plan(self, service: str) -> str:
        return f"{self.planned_services}{service}"

    def scale_state(self, service: str) -> str:
        """What the autoscaler decided; what an operator says is under `scale`."""
        return f"{self.planned}scale/{service}"

    def node_plan(self, node: str) -> str:
        return f"{self.planned_nodes}{node}"

    def node_report(self, node: str) -> str:
        return f"{self.observed_nodes}{node}"
