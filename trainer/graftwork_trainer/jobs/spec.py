"""What a training job is to do: the wire's TrainingJobSpec, checked, with every default filled in.

`validate.py` makes these; nothing downstream checks again.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graftwork_trainer.datasets.settings import DatasetSettings
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.recipes.hyperparameters import Hyperparameters


class PromotionMode(enum.Enum):
    NONE = "none"  # registered only
    LIVE = "live"
    CANARY = "canary"


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One of the two is set."""

    settings: DatasetSettings | None = None
    snapshot: str = ""  # digest of an earlier one, used as it is


@dataclass(frozen=True, slots=True)
class SearchSpec:
    trials: int
    parameters: tuple[str, ...]
    steps_per_trial: int | None  # None: a quarter of the job's


@dataclass(frozen=True, slots=True)
class PromotionSpec:
    mode: PromotionMode = PromotionMode.LIVE
    canary_percent: int = 10
    canary_feedback: int = 20  # items
    canary_tolerance: float = 0.1  # in share of bad feedback


@dataclass(frozen=True, slots=True)
class LimitsSpec:
    max_duration_s: float = 24 * 3600.0
    max_memory_bytes: int = 0  # 0: none
    max_retries: int = 2


@dataclass(frozen=True, slots=True)
class JobSpec:
    adapter: str
    recipe: str
    method: str  # PEFT's name; "" where it goes on from `initial_version`
    method_config: Mapping[str, Any]
    dataset: DatasetSpec
    hyperparameters: Hyperparameters
    initial_version: str  # "name@version", or "" to begin anew
    search: SearchSpec | None
    gate: GateSpec
    promotion: PromotionSpec
    limits: LimitsSpec
    recipe_options: Mapping[str, Any]
