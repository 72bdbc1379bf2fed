"""Whether a node is heard: what one prober knows of one other node, as a pure state machine.

Probes are tiny and many, so that a lost one says nothing; silence is measured from the last answer, whoever got it
(SWIM's indirect probes: Das, Gupta, Motivala, 2002). A silent node is knocked at by TCP as well, because a kernel
that answers tells a dead agent, or a frozen host, from a cut cable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Sign(StrEnum):
    """What a node last gave to hear."""

    ANSWERS = "answers"
    REFUSES = "refuses"  # its kernel answers, its agent does not run: its containers may serve
    ACCEPTS = "accepts"  # it takes connections and answers nothing: frozen, or its agent hangs
    DEAF = "deaf"  # its own probes arrive, ours are not answered: a one-way fault
    SILENT = "silent"

    @property
    def doubtful(self) -> bool:
        """Nothing should be sent there while somebody else can serve."""
        return self in DOUBTFUL


DOUBTFUL = frozenset({Sign.ACCEPTS, Sign.DEAF, Sign.SILENT})


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds. A blip must end, and be noticed, within `give_up`; all of it plus a start is the time to heal."""

    interval: float  # between probes of a node that answers
    hurry: float  # between probes of one that does not
    doubt: float  # of silence, until it is asked for by way of others, and knocked at
    suspect: float  # of silence, until it is out of traffic
    give_up: float  # of silence, until what it ran is replaced


PACES = {
    "normal": Pace(interval=0.25, hurry=0.1, doubt=0.35, suspect=0.8, give_up=3.6),
    "fast": Pace(interval=0.15, hurry=0.1, doubt=0.3, suspect=0.5, give_up=1.6),
}
"""`failure_detection` in `desired/config`. A blip of 3 s, noticed with one interval on either side, stays below 3.6."""

KNOCK_FIRST, KNOCK_LAST = 1.0, 8.0
"""Seconds between knocks, doubling: what accepts them without answering queues them all."""

LOSS_MEMORY = 0.02
"""Weight of one probe in the share that is lost: about the last fifty count."""

LOSSY, SOUND = 0.15, 0.05
"""Shares of lost probes: above the first a network is said to drop packets, until they are below the second."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A node as its probes show it; `since`: its last answer, unless it answers; `lossy`: many probes are lost."""

    sign: Sign
    since: float = 0.0
    lossy: bool = False


@dataclass(slots=True)
class Ear:
    """One node, from one prober. Times are of one clock; None: never."""

    heard: float | None = None  # when it last answered us
    vouched: float | None = None  # when it last answered others
    judged_from: float | None = None  # asked about by somebody who has heard it: silence counts from then
    incoming: float | None = None  # when a probe of its own last arrived
    refused: float | None = None
    accepted: float | None = None
    probe_at: float = 0.0
    knock_at: float = 0.0
    knock_pause: float = KNOCK_FIRST
    lost: float = 0.0  # share of probes, from 0 to 1
    lossy: bool = False
    pending: dict[int, tuple[float, Sequence[str]]] = field(default_factory=dict)  # probe → when, and what it asked

    @property
    def last(self) -> float | None:
        """The last sign of life that counts; None: it was never heard, and silence says nothing of it."""
        known = [at for at in (self.heard, self.vouched, self.judged_from) if at is not None]
        return max(known, default=None)

    def answered(self, probe: int, now: float, pace: Pace) -> Sequence[str] | None:
        """An answer came: what its question asked about; None if it answers none."""
        if (question := self.pending.pop(probe, None)) is None:
            return None
        if self.heard is not None and now - self.heard > pace.suspect:
            self.pending.clear()  # what it did not answer was silence, and no loss on the way
        self.heard = now
        self.probe_at = now + pace.interval
        self.knock_at, self.knock_pause = 0.0, KNOCK_FIRST
        self.refused = self.accepted = None
        self._weigh(0.0)
        return question[1]

    def vouch(self, at: float) -> None:
        """Somebody else has heard it then."""
        self.vouched = at if self.vouched is None else max(at, self.vouched)

    def sent(self, probe: int, asked: Sequence[str], now: float, pace: Pace) -> None:
        """A probe is on its way; the next follows soon unless it is answered."""
        self.pending[probe] = (now, asked)
        self.probe_at = now + (pace.interval if self.heard is None else pace.hurry)
        for old in [old for old, (at, _) in self.pending.items() if now - at > pace.suspect]:
            sent_at, _ = self.pending.pop(old)
            if self.heard is not None and sent_at < self.heard:
                self._weigh(1.0)

    def _weigh(self, lost: float) -> None:
        self.lost += LOSS_MEMORY * (lost - self.lost)
        self.lossy = self.lost > (SOUND if self.lossy else LOSSY)

    def is_doubted(self, now: float, pace: Pace) -> bool:
        return self.last is not None and now - self.last > pace.doubt

    def wants_knock(self, now: float, pace: Pace) -> bool:
        """Whether to knock now, which counts as done."""
        if not self.is_doubted(now, pace) or now < self.knock_at:
            return False
        self.knock_at = now + self.knock_pause
        self.knock_pause = min(self.knock_pause * 2, KNOCK_LAST)
        return True

    def sight(self, now: float, pace: Pace) -> Sight | None:
        """What is to be thought of it; None: it was never heard."""
        last = self.last
        if last is None:
            return None
        if now - last <= pace.suspect:
            return Sight(Sign.ANSWERS, 0.0, self.lossy)
        knocks = max(KNOCK_FIRST, self.knock_pause) + pace.suspect  # the last answer to one is good until the next
        if _within(self.refused, now, knocks):
            return Sight(Sign.REFUSES, last)
        if _within(self.accepted, now, knocks):
            return Sight(Sign.ACCEPTS, last)
        return Sight(Sign.DEAF if _within(self.incoming, now, pace.suspect) else Sign.SILENT, last)


def _within(at: float | None, now: float, seconds: float) -> bool:
    return at is not None and now - at <= seconds
