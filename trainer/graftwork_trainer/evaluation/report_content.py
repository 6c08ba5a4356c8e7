"""What a report tells: the verdict with all that led to it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graftwork_trainer.evaluation.gate import Verdict
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.evaluation.outcomes import Role
from graftwork_trainer.evaluation.summary import Summary


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Losses after an optimizer step, in nats per token; None where none was measured then."""

    step: int
    training_loss: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of hyperparameters that a search tried."""

    number: int
    parameters: Mapping[str, Any]
    loss: float | None  # on the validation split; None where the trial was pruned or failed
    state: str = "complete"


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What is told of the job that made the candidate."""

    spec: Mapping[str, Any] = field(default_factory=dict)  # the job's spec as JSON
    seed: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)  # by what they are of
    durations_s: Mapping[str, float] = field(default_factory=dict)  # seconds by phase


@dataclass(frozen=True, slots=True)
class ContenderFacts:
    """Who took part."""

    role: Role
    selector: str  # "" is the plain base
    digest: str


@dataclass(frozen=True, slots=True)
class ReportContent:
    adapter: str
    spec: GateSpec
    verdict: Verdict
    contenders: Sequence[ContenderFacts]
    summaries: Sequence[Summary]
    manifest: Mapping[str, Any]  # of the snapshot
    facts: JobFacts
    curve: Sequence[CurvePoint] = ()
    trials: Sequence[Trial] = ()

    @property
    def candidate(self) -> str:
        return next(c.selector for c in self.contenders if c.role is Role.CANDIDATE)


def strict(value: Any) -> Any:
    """The same as JSON has it: None for numbers that are not finite, lists for tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value
