"""The fields of a training policy, checked. Raises InvalidFieldError."""

from dataclasses import dataclass

from croniter import croniter
from google.protobuf.field_mask_pb2 import FieldMask
from graftwork.status import InvalidFieldError
from graftwork.v1 import training_service_pb2 as pb
from graftwork_adapters.selector import parse_name

from graftwork_trainer.jobs.catalogue import Catalogue
from graftwork_trainer.jobs.validate import parse_spec

UPDATABLE = ("spec", "min_new_feedback", "schedule", "paused")
_CRON_FIELDS = 5


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """New values of a policy's fields; None leaves a field as it is."""

    spec: pb.TrainingJobSpec | None = None
    min_new_feedback: int | None = None
    schedule: str | None = None
    paused: bool | None = None


def parse_policy(policy: pb.TrainingPolicy, catalogue: Catalogue) -> PolicyChange:
    """All fields of a new policy."""
    parse_name(policy.name, field="policy.name")
    change = _change(policy, UPDATABLE, catalogue)
    check_starts(policy.min_new_feedback, policy.schedule)
    return change


def parse_update(policy: pb.TrainingPolicy, mask: FieldMask, catalogue: Catalogue) -> PolicyChange:
    """What an UpdateTrainingPolicyRequest changes."""
    parse_name(policy.name, field="policy.name")
    known = ", ".join(UPDATABLE)
    if not mask.paths:
        raise InvalidFieldError("update_mask", f"must name any of {known}")
    for path in mask.paths:
        if path not in UPDATABLE:
            raise InvalidFieldError("update_mask", f"{path[:80]!r} cannot be updated; {known} can")
    return _change(policy, tuple(mask.paths), catalogue)


def check_starts(min_new_feedback: int, schedule: str) -> None:
    """A policy that would never start anything is a mistake."""
    if not min_new_feedback and not schedule:
        raise InvalidFieldError(
            "policy.min_new_feedback", "must be above 0, or policy.schedule must be set"
        )


def _change(
    policy: pb.TrainingPolicy, paths: tuple[str, ...], catalogue: Catalogue
) -> PolicyChange:
    if "spec" in paths:
        parse_spec(policy.spec, catalogue, path="policy.spec")
        if policy.spec.dataset.snapshot:
            raise InvalidFieldError(
                "policy.spec.dataset.snapshot",
                "never changes, so that a policy would train the same again: set selection instead",
            )
    if "min_new_feedback" in paths and policy.min_new_feedback < 0:
        raise InvalidFieldError("policy.min_new_feedback", "must not be negative")
    if "schedule" in paths:
        _check_schedule(policy.schedule)
    return PolicyChange(
        spec=policy.spec if "spec" in paths else None,
        min_new_feedback=policy.min_new_feedback if "min_new_feedback" in paths else None,
        schedule=policy.schedule if "schedule" in paths else None,
        paused=policy.paused if "paused" in paths else None,
    )


def _check_schedule(schedule: str) -> None:
    if not schedule:
        return
    if len(schedule.split()) != _CRON_FIELDS or not croniter.is_valid(schedule):
        raise InvalidFieldError(
            "policy.schedule",
            f"{schedule[:80]!r} is no cron expression of five fields, such as "
            '"0 3 * * *" for three o\'clock each night in UTC',
        )
