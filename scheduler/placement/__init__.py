"""Where replicas go, and why: from a batch of requests and the nodes to placements and refusals."""

from mesh.scheduler.placement.engine import explain, place
from mesh.scheduler.placement.model import Holding, Node, Placement, Refusal, Request, Verdict

__all__ = ["Holding", "Node", "Placement", "Refusal", "Request", "Verdict", "explain", "place"]
