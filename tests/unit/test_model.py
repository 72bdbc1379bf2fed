"""The state machine of a replica: forward only, but for ready falling back to running."""

from itertools import product

import pytest

from mesh.model import ENDED, ReplicaState, may_follow

ORDER = list(ReplicaState)


@pytest.mark.parametrize(("old", "new"), list(product(ORDER, ORDER)))
def test_states_move_forward_only(old: ReplicaState, new: ReplicaState) -> None:
    if old in ENDED:
        assert may_follow(old, new) == (old is new)
    elif (old, new) == (ReplicaState.READY, ReplicaState.RUNNING):
        assert may_follow(old, new)
    else:
        assert may_follow(old, new) == (ORDER.index(new) >= ORDER.index(old))
