"""What keeps one service's scaling from its work, once it has lasted: pure."""

from __future__ import annotations

from mesh.model import ReplicaState
from mesh.scheduler.autoscale.model import Reading

NEVER_READY = 30.0
"""Seconds that requests may wait without a replica becoming ready, before that is told."""

STANDS = 5.0
"""Seconds that a metric must fail, or be well again, before that is told."""


class Troubles:
    """What is wrong with one service's scaling, for long enough to be told."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[float, str]] = {}  # by metric: since when, and the first sentence
        self._well: dict[str, float] = {}
        self._unready = 0.0

    def update(self, reading: Reading, now: float) -> list[str]:
        """The sentences that hold. A node that does not answer is no matter of one service, and is told elsewhere."""
        for key, sample in reading.metrics.items():
            if sample.value is None and key.startswith("prometheus"):
                self._well.pop(key, None)
                since, sentence = self._faults.get(key, (now, ""))
                if now - since < STANDS:
                    sentence = f"{key}: {sample.fault}: nothing is scaled down meanwhile"
                self._faults[key] = (since, sentence)
            elif key in self._faults and now - self._well.setdefault(key, now) >= STANDS:
                del self._faults[key], self._well[key]
        self._faults = {key: fault for key, fault in self._faults.items() if key in reading.metrics}
        told = [sentence for since, sentence in self._faults.values() if now - since >= STANDS]
        ready = any(replica.state is ReplicaState.READY for replica in reading.replicas)
        if ready or not reading.waiting or not reading.current:
            self._unready = 0.0
        else:
            self._unready = self._unready or now
            if now - self._unready >= NEVER_READY:
                told.append(f"requests wait, and none of its replicas has become ready for {NEVER_READY:g} s")
        return told
