"""From the queue's records to the wire's messages."""

from google.protobuf import duration_pb2, timestamp_pb2
from graftwork.v1 import training_service_pb2 as pb

from graftwork_trainer.jobs.records import JobRecord, PolicyRecord, Progress
from graftwork_trainer.jobs.states import JobState

_STATES = {
    JobState.QUEUED: pb.JOB_STATE_QUEUED,
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.REFUSED: pb.JOB_STATE_REFUSED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}
STATE_OF_MESSAGE = {int(value): state for state, value in _STATES.items()}


def job_message(record: JobRecord) -> pb.TrainingJob:
    return pb.TrainingJob(
        id=record.id,
        spec=record.spec,
        state=_STATES[record.state],
        progress=progress_message(record.progress),
        message=record.message,
        version=record.version,
        snapshot=record.snapshot,
        policy=record.policy,
        attempt=record.attempt,
        create_time=_timestamp(record.create_time_ns),
        start_time=_timestamp(record.start_time_ns),
        end_time=_timestamp(record.end_time_ns),
    )


def progress_message(progress: Progress) -> pb.JobProgress:
    remaining = None
    if progress.remaining_s is not None:
        remaining = duration_pb2.Duration()
        remaining.FromNanoseconds(int(progress.remaining_s * 1e9))
    return pb.JobProgress(
        phase=progress.phase,
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=progress.epoch,
        loss=progress.loss,
        learning_rate=progress.learning_rate,
        tokens_per_second=progress.tokens_per_second,
        remaining=remaining,
        metrics=progress.metrics,
    )


def policy_message(record: PolicyRecord) -> pb.TrainingPolicy:
    return pb.TrainingPolicy(
        name=record.name,
        spec=record.spec,
        min_new_feedback=record.min_new_feedback,
        schedule=record.schedule,
        paused=record.paused,
        create_time=_timestamp(record.create_time_ns),
        last_job=record.last_job,
        last_start_time=_timestamp(record.last_start_time_ns),
    )


def _timestamp(time_ns: int) -> timestamp_pb2.Timestamp | None:
    """None, which leaves the field unset, for a time that has not come."""
    if time_ns == 0:
        return None
    stamp = timestamp_pb2.Timestamp()
    stamp.FromNanoseconds(time_ns)
    return stamp
