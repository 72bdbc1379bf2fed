"""The autoscaler of a cluster: all services that follow their load, tick by tick."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mesh.scheduler.autoscale.model import Decision, Memory, Reading, Target


class Autoscaler:
    """Decides how many replicas each service should have. Times are Unix seconds, and never go back."""

    def __init__(self, started: float) -> None:
        """`started`: when this leader began: in a service's first window from then on nothing is scaled down."""
        self._started = started
        self._targets: dict[str, Target] = {}

    def restore(self, memories: Iterable[Memory]) -> None:
        """What an earlier leader has left; a memory that cannot be read is forgotten."""

    def follow(self, targets: Mapping[str, Target]) -> None:
        """From now on these services, and no others, are decided on. What is known about the ones that stay is kept,
        also when their target has changed."""
        self._targets = dict(targets)

    def tick(self, now: float, readings: Mapping[str, Reading]) -> list[Decision]:
        """The decisions that change a count. `readings`: what is news; a service that is not in it is as it was.

        Readings of services that are not followed are ignored.
        """
        return []

    def explain(self, service: str) -> Decision:
        """What the last tick decided about a service, and why; also where that was to change nothing.

        Raises:
            KeyError: for a service that is not followed, or of which nothing has been read yet.
        """
        raise KeyError(service)

    def memories(self, since: float) -> list[Memory]:
        """What the next leader should know, of those services where it has changed since then."""
        return []
