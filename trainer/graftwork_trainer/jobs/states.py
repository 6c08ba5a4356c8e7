"""The states of a training job, and which may follow which."""

import enum
from collections.abc import Mapping


class JobState(enum.Enum):
    """The value is what the database holds."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # the candidate passed the gate and was promoted as asked
    REFUSED = "refused"  # the candidate is registered, but the gate refused it
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return not TRANSITIONS[self]

    def may_become(self, other: "JobState") -> bool:
        return other in TRANSITIONS[self]


# A running job goes back to the queue where its server stops.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(JobState) - {JobState.RUNNING},
    JobState.SUCCEEDED: frozenset(),
    JobState.REFUSED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
