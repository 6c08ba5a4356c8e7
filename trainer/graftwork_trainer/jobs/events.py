"""What a worker tells its supervisor: one JSON object a line, on its standard output.

    {"event": "progress", "phase": "training", "step": 3, "total_steps": 60, "loss": 2.1, ...}
    {"event": "snapshot", "digest": "sha256:..."}
    {"event": "version", "version": "name@3"}
    {"event": "finished", "state": "succeeded", "message": "...", "canary": {...} or null}
    {"event": "failed", "message": "..."}

The last two end a job. A worker that ends without either crashed, and may be started again.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from graftwork_trainer.jobs.records import CanaryDraft, Progress
from graftwork_trainer.jobs.states import JobState


@dataclass(frozen=True, slots=True)
class Snapshot:
    digest: str


@dataclass(frozen=True, slots=True)
class Version:
    version: str  # "name@version" of the candidate


@dataclass(frozen=True, slots=True)
class Finished:
    """The candidate was judged: SUCCEEDED or REFUSED."""

    state: JobState
    message: str = ""
    canary: CanaryDraft | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The job cannot succeed, however often it is tried."""

    message: str


Event: TypeAlias = Progress | Snapshot | Version | Finished | Failed


class NotAnEvent(ValueError):
    """A line that no worker of ours wrote."""


def to_line(event: Event) -> str:
    """One line, its end included."""
    match event:
        case Progress():
            value = {"event": "progress", **asdict(event)}
            value["metrics"] = {name: _finite(x) for name, x in event.metrics.items()}
            value |= {name: _finite(x) for name, x in value.items() if isinstance(x, float)}
        case Snapshot():
            value = {"event": "snapshot", **asdict(event)}
        case Version():
            value = {"event": "version", **asdict(event)}
        case Finished():
            value = {"event": "finished", **asdict(event), "state": event.state.value}
        case Failed():
            value = {"event": "failed", **asdict(event)}
    return json.dumps(value, allow_nan=False) + "\n"


def parse_line(line: str | bytes) -> Event:
    """Raises NotAnEvent."""
    try:
        value = json.loads(line)
        return _event(value.pop("event"), value)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NotAnEvent(str(error)) from error


def _event(kind: str, value: dict[str, Any]) -> Event:
    match kind:
        case "progress":
            return Progress(**value)
        case "snapshot":
            return Snapshot(**value)
        case "version":
            return Version(**value)
        case "finished":
            canary = value.pop("canary")
            state = JobState(value.pop("state"))
            return Finished(state, canary=CanaryDraft(**canary) if canary else None, **value)
        case "failed":
            return Failed(**value)
    raise NotAnEvent(f"no such event: {kind!r}")


def _finite(value: float) -> float:
    """A diverged loss is no number, which JSON cannot say; its curve ends at the largest float."""
    if math.isfinite(value):
        return value
    return math.copysign(1.7976931348623157e308, 1.0 if math.isnan(value) else value)
