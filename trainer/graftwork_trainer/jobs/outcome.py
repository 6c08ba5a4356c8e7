"""What follows the end of a worker: a pure function of how it ended."""

import enum
from dataclasses import dataclass

from graftwork_trainer.jobs.events import Failed, Finished
from graftwork_trainer.jobs.records import CanaryDraft
from graftwork_trainer.jobs.states import JobState


class StopReason(enum.Enum):
    """Why the supervisor ended a worker."""

    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    OUT_OF_TIME = "out of time"
    OUT_OF_MEMORY = "out of memory"
    LEASE_LOST = "lease lost"  # the job is another server's now; nothing follows here


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a worker ended."""

    result: Finished | Failed | None  # None where it told none
    stopped: StopReason | None  # None where it ended by itself
    how: str  # such as "killed by signal 9 (SIGKILL)", with the last line of its log


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one job."""

    max_duration_s: float
    max_memory_bytes: int  # 0: none
    max_retries: int


@dataclass(frozen=True, slots=True)
class End:
    """The job ends."""

    state: JobState
    message: str
    canary: CanaryDraft | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Another worker goes on from the checkpoint."""

    message: str


@dataclass(frozen=True, slots=True)
class Requeue:
    """The next server goes on with it."""

    message: str


def what_follows(end: WorkerEnd, limits: Limits, *, crashes: int) -> End | Retry | Requeue:
    """`crashes` counts the workers of this job that died before this one.

    A result counts whatever came after it: the candidate may be live already.
    """
    match end.result:
        case Finished(state, message, canary):
            return End(state, message, canary)
        case Failed(message):
            return End(JobState.FAILED, message)
    if end.stopped is StopReason.SHUTDOWN:
        return Requeue("goes on when the server runs again")
    if end.stopped is not None:
        state = JobState.CANCELLED if end.stopped is StopReason.CANCELLED else JobState.FAILED
        return End(state, _why_stopped(end.stopped, limits))
    if crashes < limits.max_retries:
        return Retry(f"the worker failed and was started again: {end.how}")
    attempts = "1 attempt" if crashes == 0 else f"{crashes + 1} attempts"
    return End(JobState.FAILED, f"the worker failed in {attempts}: {end.how}")


def _why_stopped(reason: StopReason, limits: Limits) -> str:
    match reason:
        case StopReason.OUT_OF_TIME:
            return (
                f"it ran for longer than the {limits.max_duration_s:g} s that it may: raise "
                "limits.max_duration, or give it less to do"
            )
        case StopReason.OUT_OF_MEMORY:
            return (
                f"it took more than the {limits.max_memory_bytes} bytes that it may: raise "
                "limits.max_memory_bytes, or lower hyperparameters.batch_size or max_length"
            )
    return "cancelled while it ran"
