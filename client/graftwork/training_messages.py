"""Between the values of training and the wire's messages, for the sync and the async client."""

import enum
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import duration_pb2, json_format, timestamp_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from graftwork import responses
from graftwork.errors import InvalidArgument
from graftwork.requests import new_request_id
from graftwork.training_types import (
    JobProgress,
    JobState,
    TrainingJob,
    TrainingPolicy,
    TrainingReport,
)
from graftwork.v1 import training_service_pb2 as pb

_STATES = {
    JobState.QUEUED: pb.JOB_STATE_QUEUED,
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.REFUSED: pb.JOB_STATE_REFUSED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}
# Fields whose values are names of an enum, and what the wire puts before them.
_PREFIXES = {"mode": "MODE_", "sources": "FEEDBACK_SOURCE_", "origins": "ORIGIN_"}
_STRUCTS = ("method_config", "recipe_options")  # not the wire's to know
_STATE_OF: dict[int, JobState] = {number: state for state, number in _STATES.items()}


def spec(adapter: str, options: Mapping[str, Any], path: str = "spec") -> pb.TrainingJobSpec:
    """Raises InvalidArgument for what the wire cannot carry, with the field's name."""
    made = pb.TrainingJobSpec()
    try:
        json_format.ParseDict({"adapter": adapter, **_plain(options)}, made)
    except json_format.ParseError as error:
        raise InvalidArgument(f"{path}: {error}", field=path) from error
    return made


def create_request(
    adapter: str, options: Mapping[str, Any], request_id: str | None
) -> pb.CreateTrainingJobRequest:
    return pb.CreateTrainingJobRequest(
        spec=spec(adapter, options), request_id=request_id or new_request_id()
    )


def list_request(
    adapter: str, states: tuple[JobState, ...], page_size: int
) -> pb.ListTrainingJobsRequest:
    return pb.ListTrainingJobsRequest(
        adapter=adapter, states=[_STATES[state] for state in states], page_size=page_size
    )


def create_policy_request(
    name: str,
    adapter: str,
    *,
    min_new_feedback: int,
    schedule: str,
    paused: bool,
    request_id: str | None,
    options: Mapping[str, Any],
) -> pb.CreateTrainingPolicyRequest:
    policy = pb.TrainingPolicy(
        name=name, schedule=schedule, paused=paused, spec=spec(adapter, options, "policy.spec")
    )
    _set_count(policy, min_new_feedback)
    return pb.CreateTrainingPolicyRequest(policy=policy, request_id=request_id or new_request_id())


def update_policy_request(
    name: str,
    *,
    min_new_feedback: int | None,
    schedule: str | None,
    paused: bool | None,
    changed: tuple[str, Mapping[str, Any]] | None,
) -> pb.UpdateTrainingPolicyRequest:
    """Masks what is not None; `changed` is the adapter and the options of a new spec."""
    policy, paths = pb.TrainingPolicy(name=name), []
    if min_new_feedback is not None:
        _set_count(policy, min_new_feedback)
        paths.append("min_new_feedback")
    if schedule is not None:
        policy.schedule = schedule
        paths.append("schedule")
    if paused is not None:
        policy.paused = paused
        paths.append("paused")
    if changed is not None:
        policy.spec.CopyFrom(spec(*changed, "policy.spec"))
        paths.append("spec")
    return pb.UpdateTrainingPolicyRequest(policy=policy, update_mask=FieldMask(paths=paths))


def changed_spec(
    adapter: str | None, options: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]] | None:
    """Raises InvalidArgument for options without the adapter that they are for."""
    if adapter is None:
        if options:
            raise InvalidArgument("policy.spec.adapter: is wanted with a new spec", field="adapter")
        return None
    return adapter, options


def job(message: pb.TrainingJob) -> TrainingJob:
    return TrainingJob(
        id=message.id,
        adapter=message.spec.adapter,
        spec=_spec_of(message.spec),
        state=_STATE_OF.get(message.state, JobState.UNKNOWN),
        progress=_progress(message.progress),
        message=message.message,
        version=message.version,
        snapshot=message.snapshot,
        policy=message.policy,
        attempt=message.attempt,
        create_time=responses.time(message.create_time),
        start_time=_time(message, "start_time"),
        end_time=_time(message, "end_time"),
    )


def report(message: pb.TrainingReport) -> TrainingReport:
    return TrainingReport(
        message.markdown, message.json, {plot.filename: plot.png for plot in message.plots}
    )


def policy(message: pb.TrainingPolicy) -> TrainingPolicy:
    return TrainingPolicy(
        name=message.name,
        adapter=message.spec.adapter,
        spec=_spec_of(message.spec),
        min_new_feedback=message.min_new_feedback,
        schedule=message.schedule,
        paused=message.paused,
        create_time=responses.time(message.create_time),
        last_job=message.last_job,
        last_start_time=_time(message, "last_start_time"),
    )


def _progress(message: pb.JobProgress) -> JobProgress:
    remaining = message.remaining.ToNanoseconds() / 1e9 if message.HasField("remaining") else None
    return JobProgress(
        phase=message.phase,
        step=message.step,
        total_steps=message.total_steps,
        epoch=message.epoch,
        loss=message.loss,
        learning_rate=message.learning_rate,
        tokens_per_second=message.tokens_per_second,
        remaining_s=remaining,
        metrics=dict(message.metrics),
    )


def _time(message: pb.TrainingJob | pb.TrainingPolicy, name: str) -> datetime | None:
    """None for a time that has not come."""
    return responses.time(getattr(message, name)) if message.HasField(name) else None


def _spec_of(message: pb.TrainingJobSpec) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    found.pop("adapter", None)
    mode = found.get("promotion", {}).get("mode")
    if mode is not None:
        found["promotion"]["mode"] = mode.removeprefix("MODE_").lower()
    return found


def _set_count(policy: pb.TrainingPolicy, count: int) -> None:
    try:
        policy.min_new_feedback = count
    except (TypeError, ValueError) as error:
        field = "policy.min_new_feedback"
        raise InvalidArgument(f"{field}: cannot be {count!r}: {error}", field=field) from error


def _plain(value: Any, name: str = "") -> Any:
    """Options as protobuf's JSON has them; `name` is the field that holds the value."""
    if isinstance(value, Mapping):
        if name in _STRUCTS:
            return value
        return {key: _plain(item, str(key)) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, name) for item in value]
    if isinstance(value, datetime | timedelta):
        return _time_text(value)
    text = value.value if isinstance(value, enum.Enum) else value
    prefix = _PREFIXES.get(name)
    if prefix is not None and isinstance(text, str) and not text.startswith(prefix):
        return prefix + text.upper()
    return text


def _time_text(value: datetime | timedelta) -> str:
    if isinstance(value, datetime):
        stamp = timestamp_pb2.Timestamp()
        stamp.FromDatetime(value)
        return stamp.ToJsonString()
    duration = duration_pb2.Duration()
    duration.FromTimedelta(value)
    return duration.ToJsonString()
