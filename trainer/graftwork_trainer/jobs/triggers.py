"""When a training policy starts a job: pure functions of the policy, the counts and the time."""

from dataclasses import dataclass
from datetime import UTC, datetime

from croniter import croniter
from graftwork.v1 import training_service_pb2 as pb

from graftwork_trainer.jobs.records import PolicyRecord


@dataclass(frozen=True, slots=True)
class PolicySituation:
    """What a policy decides by."""

    active_jobs: int  # of this policy, waiting or running
    new_feedback: int  # items that its selection takes
    now_ns: int


def is_due(policy: PolicyRecord, situation: PolicySituation) -> bool:
    """By count or by time, and never while one of its jobs waits or runs.

    A schedule starts one job for however many of its times have passed, and none where there is
    nothing new to train on.
    """
    if policy.paused or situation.active_jobs:
        return False
    if policy.min_new_feedback and situation.new_feedback >= policy.min_new_feedback:
        return True
    if not policy.schedule or not situation.new_feedback:
        return False
    since_ns = max(policy.last_start_time_ns, policy.create_time_ns)
    return next_time_ns(policy.schedule, since_ns) <= situation.now_ns


def next_time_ns(schedule: str, after_ns: int) -> int:
    """The first time of a cron expression, in UTC, that is later than `after_ns`."""
    after = datetime.fromtimestamp(after_ns / 1e9, UTC)
    return int(croniter(schedule, after).get_next(float) * 1e9)


def next_spec(policy: PolicyRecord, began_ns: int) -> pb.TrainingJobSpec:
    """What the policy starts after a job with feedback until `began_ns`: its spec, with feedback
    from then on."""
    spec = pb.TrainingJobSpec()
    spec.CopyFrom(policy.spec)
    spec.dataset.selection.after.FromNanoseconds(began_ns)
    return spec
