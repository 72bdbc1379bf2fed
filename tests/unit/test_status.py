"""How far a spec that was just written has come: `mesh apply --wait`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from mesh.cli.status import Progress, node_statuses, progress, service_names, service_status
from mesh.model import (
    Assignment,
    ClusterPlan,
    NodeDoubt,
    NodePlan,
    NodeReport,
    Release,
    ReplicaReport,
    ReplicaState,
    Rollout,
    RolloutState,
    Run,
    RunState,
    ServicePlan,
    Want,
)
from mesh.spec.service import parse_spec
from mesh.view import NodeView, View, Wish

SPEC = parse_spec({"name": "web", "image": "web:2", "replicas": 2})
OLD = parse_spec({"name": "web", "image": "web:1", "replicas": 2})


def release(number: int, spec: Any) -> Release:
    return Release(number=number, hash=spec.digest(), spec=spec.canonical())


def view(plan: ServicePlan, ready: int = 0, **more: Any) -> View:
    replicas = [ReplicaReport(id=f"web-{slot}-aaaa", service="web", slot=slot, release=plan.releases[-1].number,
                              state=ReplicaState.READY) for slot in range(1, ready + 1)]  # fmt: skip
    node = NodeView(NodeReport(node="n1", address="10.0.0.1", replicas=replicas), held=True, index=1)
    return View(plans={"web": plan}, nodes={"n1": node}, **more)


def plan(*releases: Release, desired: int = 2, **more: Any) -> ServicePlan:
    return ServicePlan(service="web", desired=desired, releases=list(releases), **more)


def test_it_waits_while_the_scheduler_has_not_seen_it() -> None:
    assert progress(View(), SPEC, before=0) == Progress("waits for the scheduler")
    assert progress(view(plan(release(1, OLD)), 2), SPEC, before=1) == Progress("waits for the scheduler")


def test_it_is_done_when_all_replicas_of_its_release_are_ready() -> None:
    both = plan(release(1, OLD), release(2, SPEC))
    assert progress(view(both, 1), SPEC, before=1) == Progress("release 2: 1/2 ready")
    assert progress(view(both, 2), SPEC, before=1) == Progress("release 2: 2/2 ready", done=True)
    rolling = plan(release(2, SPEC), rollout=Rollout(state=RolloutState.ROLLING))
    assert not progress(view(rolling, 2), SPEC, before=1).done


def test_a_count_that_mesh_scale_holds_is_what_it_waits_for() -> None:
    held = plan(release(2, SPEC), desired=1)
    assert progress(view(held, 1, scale={"web": 1}), SPEC, before=1).done
    assert not progress(view(held, 1), SPEC, before=1).done  # the new count is not in force yet


def test_a_rollback_is_a_failure_with_its_reason() -> None:
    rolled_back = plan(release(1, OLD), release(2, SPEC), release(3, OLD), rollout=Rollout(message="2 of 2 crashed"))
    assert progress(view(rolled_back, 2), SPEC, before=1).faults == ["2 of 2 crashed"]


def test_a_spec_that_was_taken_back_before_it_was_written_again_is_not_waited_for() -> None:
    back = msgspec.structs.replace(release(3, OLD), rollback_of=2)
    known = plan(release(1, OLD), release(2, SPEC), back, rollout=Rollout(message="2 of 2 crashed"))
    (fault,) = progress(view(known, 2), SPEC, before=3).faults
    assert fault == "2 of 2 crashed; the same spec is not tried again until it is changed"
    assert not progress(view(known, 2), parse_spec({"name": "web", "image": "web:3"}), before=3).faults


def test_replicas_that_a_release_took_over_as_they_were_count() -> None:
    again = plan(release(1, SPEC), release(2, OLD), release(3, SPEC))
    kept = view(plan(release(1, SPEC)), 2)
    assert progress(replace(kept, plans={"web": again}), SPEC, before=2).done


def test_what_the_scheduler_refuses_is_a_failure() -> None:
    refused = plan(release(1, OLD), errors=["image: no such image"], spec_index=7)
    assert progress(view(refused, 2), SPEC, before=1) == Progress("refused", faults=["image: no such image"])
    later = view(refused, 2, wishes={"web": Wish(SPEC, (), 8)})
    assert progress(later, SPEC, before=1) == Progress("waits for the scheduler"), "that was of another spec"


def test_what_is_left_of_a_service_is_still_shown() -> None:
    left = View(nodes=view(plan(release(1, OLD)), 1).nodes)
    assert service_names(left) == ["web"]
    assert service_status(left, "web").rollout == "deleting"


JOB = parse_spec({"name": "web", "image": "web:2", "kind": "job", "job": {"completions": 10, "parallelism": 2}})


def job(**run: Any) -> View:
    planned = [Assignment(id="web-1-aaaa", service="web", slot=1, release=1, run=1),
               Assignment(id="web-9-aaaa", service="web", slot=9, release=1, run=1, want=Want.KEEP)]  # fmt: skip
    known = Run(number=1, release=1, completions=10, **run)
    return view(
        plan(release(1, JOB), kind="job", runs=[known]), 1, node_plans={"n1": NodePlan(node="n1", replicas=planned)}
    )


def test_a_job_tells_how_far_it_has_come() -> None:
    (run,) = service_status(job(completed="4-6"), "web").runs
    assert run.text == "3/10 done, 1 running"
    assert progress(job(completed="4-6"), JOB, before=0) == Progress("run 1: 3/10 done, 1 running")
    assert progress(job(completed="1-10", state=RunState.SUCCEEDED), JOB, before=0).done


def test_a_job_that_failed_is_a_failure_with_its_reason() -> None:
    failed = job(completed="2", state=RunState.FAILED, message="not done within 1h (job.deadline)")
    assert progress(failed, JOB, before=0).faults == ["run 1 failed: not done within 1h (job.deadline)"]
    assert service_status(failed, "web").problems == ["run 1 failed: not done within 1h (job.deadline)"]
    assert service_status(failed, "web").runs[0].text == "1/10 done, failed"


def test_what_ran_on_a_node_that_was_given_up_is_lost_whatever_it_said_last() -> None:
    both = view(plan(release(1, SPEC)), 2)
    gone = replace(both, cluster=ClusterPlan(nodes={"n1": NodeDoubt(state="lost", why="does not answer")}))
    assert (service_status(both, "web").ready, service_status(gone, "web").ready) == (2, 0)
    assert {one.state for one in service_status(gone, "web").replicas} == {ReplicaState.LOST}


def test_what_is_only_kept_for_its_output_reserves_nothing() -> None:
    (node,) = node_statuses(job())
    assert (node.reserved.cpu, node.overhead.cpu) == (100, 0)
