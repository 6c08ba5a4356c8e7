"""What training jobs take and return: frozen values, free of protobuf.

Names and meanings are those of `graftwork/v1/training_service.proto`.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypedDict

from graftwork.feedback_types import Source
from graftwork.types import Origin


class JobState(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # the candidate passed the gate and was promoted as asked
    REFUSED = "refused"  # the candidate is registered, but the gate refused it
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # a state that this client is too old to know

    @property
    def is_final(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING, JobState.UNKNOWN)


class SelectionOptions(TypedDict, total=False):
    """Which examples of the journal."""

    tasks: Sequence[str]  # [all]
    format: str  # "sft", "classification", "preference", "unpaired" or "reward" [the recipe's]
    origins: Sequence[Origin]  # [users]
    sources: Sequence[Source]  # [all]
    after: datetime
    before: datetime
    reward_threshold: float


class DatasetOptions(TypedDict, total=False):
    selection: SelectionOptions
    snapshot: str  # digest of an earlier one, used as it is; excludes everything else
    scrub: bool  # replace personal data and secrets [True]
    validation_share: float  # [0.1]
    golden_share: float  # [0.05]
    duplicate_similarity: float  # at which two prompts count as one; 1 is exact only [0.9]
    max_per_class: int  # few-shot; 0 is all [0]
    mixture: Mapping[str, float]  # weights by task [by size]
    augmentation: int  # noisy copies of each example [0]
    balance: float  # classes below this share of the largest are repeated up to it [0]


class HyperparameterOptions(TypedDict, total=False):
    learning_rate: float  # [by method]
    epochs: float  # [1]
    max_steps: int
    batch_size: int  # [8]
    gradient_accumulation: int  # [1]
    max_length: int  # tokens [512]
    warmup: float  # share of the steps [0.05]
    weight_decay: float  # [0]
    max_gradient_norm: float  # [1]
    schedule: str  # "linear", "cosine" or "constant" ["linear"]
    seed: int  # [0]
    train_on_prompt: bool  # [False]
    frozen_layers: int  # [0]
    shifted_attention_group: int  # tokens; 0 is plain attention [0]


class SearchOptions(TypedDict, total=False):
    trials: int
    parameters: Sequence[str]  # of "learning_rate", "rank", "epochs", "batch_size" [all]
    steps_per_trial: int


class GateOptions(TypedDict, total=False):
    min_accuracy: float
    min_f1: float
    max_regression: float  # against the incumbent [0.01]
    min_gain_over_base: float  # [0]
    max_other_task_regression: float  # [0.02]
    max_examples: int  # [200]
    few_shot: int  # examples in the prompt that it is compared with [4]


class PromotionOptions(TypedDict, total=False):
    mode: str  # "live", "canary" or "none" ["live"]
    canary_percent: int  # [10]
    canary_feedback: int  # items [20]
    canary_tolerance: float  # in share of bad feedback [0.1]


class LimitOptions(TypedDict, total=False):
    max_duration: timedelta  # [24 h]
    max_memory_bytes: int  # [none]
    max_retries: int  # [2]


class TrainingOptions(TypedDict, total=False):
    """What a job is to do. What is left out takes the default in brackets."""

    recipe: str  # ["sft"]
    method: str  # PEFT's name ["LORA"]
    method_config: Mapping[str, Any]  # fields of PEFT's config that differ from the defaults
    initial_version: str  # to go on from; excludes method and method_config
    dataset: DatasetOptions
    hyperparameters: HyperparameterOptions
    search: SearchOptions
    gate: GateOptions
    promotion: PromotionOptions
    limits: LimitOptions
    recipe_options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Where a job is; figures that its phase does not have are 0."""

    phase: str  # "dataset", "search", "training", "evaluation" or "promotion"
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_second: float
    remaining_s: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    id: str
    adapter: str
    spec: Mapping[str, Any]  # as it was sent, in the form of TrainingOptions
    state: JobState
    progress: JobProgress
    message: str  # why it failed or was refused, and what to do
    version: str  # "name@version" of the candidate, "" before there is one
    snapshot: str  # digest of the data set, "" before there is one
    policy: str  # that started it, if one did
    attempt: int
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """The evaluation that decided about a job's candidate."""

    markdown: str
    json: str
    plots: Mapping[str, bytes]  # PNG by filename


@dataclass(frozen=True, slots=True)
class TrainingPolicy:
    """Starts jobs by itself."""

    name: str
    adapter: str
    spec: Mapping[str, Any]
    min_new_feedback: int  # 0: not by count
    schedule: str  # five-field cron expression in UTC; "": not by time
    paused: bool
    create_time: datetime
    last_job: str
    last_start_time: datetime | None
