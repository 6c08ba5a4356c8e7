"""What can be wrong with a training job. Every leaf knows its gRPC code and its reason.

TrainerError                   errors.py
└── JobError
    ├── UnknownJob             NOT_FOUND            no job under this id
    ├── UnknownPolicy          NOT_FOUND            no policy of this name
    ├── PolicyExists           ALREADY_EXISTS       a policy of this name is there
    ├── NoReport               FAILED_PRECONDITION  the job has not been evaluated
    ├── NothingToTrainOn       FAILED_PRECONDITION  the selection takes no example
    └── WrongTransition        INTERNAL             our own mistake: a final state left
"""

from collections.abc import Iterable

import grpc

from graftwork_trainer.errors import TrainerError
from graftwork_trainer.jobs.states import JobState


class JobError(TrainerError):
    """Root of the errors of training jobs."""


class UnknownJob(JobError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_JOB"

    def __init__(self, job_id: str, *, field: str = "id") -> None:
        super().__init__(f'there is no training job "{job_id[:80]}"', field=field)


class UnknownPolicy(JobError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_POLICY"

    def __init__(self, name: str, *, field: str = "name") -> None:
        super().__init__(f'there is no training policy "{name[:80]}"', field=field)


class PolicyExists(JobError):
    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "POLICY_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(
            f'there is a training policy "{name}" already: update it, or choose another name',
            field="policy.name",
        )


class NoReport(JobError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NO_REPORT"

    def __init__(self, job_id: str, state: JobState) -> None:
        then = "it never will be" if state.is_final else "wait for its end"
        super().__init__(
            f'training job "{job_id}" is {state.value} and was not evaluated: {then}',
            field="job_id",
        )


class NothingToTrainOn(JobError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_TRAIN_ON"

    def __init__(self, tasks: Iterable[str], example_format: str) -> None:
        named = ", ".join(f'"{task}"' for task in tasks) or "any task"
        super().__init__(
            f'spec.dataset.selection: the journal holds no "{example_format}" example of {named} '
            "that it takes: submit feedback first, or widen the selection",
            field="spec.dataset.selection",
        )


class WrongTransition(JobError):
    """A caller in this room moved a job that it does not hold."""

    def __init__(self, job_id: str, state: JobState, wanted: JobState) -> None:
        super().__init__(f"training job {job_id} is {state.value} and cannot be {wanted.value}")
