"""What `mesh rollout simulate` prints."""

from mesh import console
from mesh.scheduler.service.rehearsal import Rehearsal


def show_rehearsal(found: Rehearsal) -> None:
    """Each step with its time, what happened, what was done about it and why."""
    for step in found.steps:
        counts = f"{step.healthy} of {step.desired} healthy on release {step.release}, {step.ready} ready"
        console.say(f"{step.at:>9.3f}  {step.state}: {counts}")
        for sentence in step.happened:
            console.say(f"           · {sentence}")
        for action in step.actions:
            who = f"{action.replica} on {action.node} (release {action.release})" if action.replica else ""
            console.say(f"           {action.action} {who or f'release {action.release}'}: {action.text}")
        for sentence in step.said if not step.actions else ():
            console.say(f"           {sentence}")
    rest = "; there is more, the time was up" if found.cut else ""
    console.say(f"release {found.release} is {found.state} after {found.at:g} s{rest}")
