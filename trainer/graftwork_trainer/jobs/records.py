"""What the queue keeps: frozen records. Times are nanoseconds since the epoch, 0 where unset."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from graftwork.v1 import training_service_pb2 as pb

from graftwork_trainer.jobs.states import JobState

NO_METRICS: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is. Figures that its phase does not have are 0."""

    phase: str = ""  # "dataset", "search", "training", "evaluation" or "promotion"
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float = 0.0
    learning_rate: float = 0.0
    tokens_per_second: float = 0.0
    remaining_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as it is now. `spec` is not to be changed."""

    id: str
    spec: pb.TrainingJobSpec
    state: JobState
    progress: Progress
    message: str  # why it failed or was refused, and what to do
    version: str  # "name@version" of the candidate, "" before there is one
    snapshot: str  # digest of the data set, "" before there is one
    policy: str  # that started it, "" for a caller
    attempt: int  # starts of a worker, whatever ended the one before
    crashes: int  # workers that died; what retries are counted by
    run_time_s: float  # of all attempts
    cancel_requested: bool
    create_time_ns: int
    start_time_ns: int
    end_time_ns: int


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """What starts jobs by itself. `spec` is not to be changed."""

    name: str
    spec: pb.TrainingJobSpec
    min_new_feedback: int  # 0: not by count
    schedule: str  # a cron expression in UTC; "": not by time
    paused: bool
    create_time_ns: int
    last_job: str
    last_start_time_ns: int


@dataclass(frozen=True, slots=True)
class CanaryDraft:
    """A version that gets a share of its adapter's traffic, and when to judge it."""

    adapter: str
    version: int
    incumbent: int
    percent: int  # of the traffic, to begin with
    feedback: int  # items of live feedback after which it is judged
    tolerance: float  # in share of bad feedback
    start_time_ns: int


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """A canary that still waits for feedback."""

    job_id: str
    draft: CanaryDraft
