import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from graftwork.v1 import feedback_service_pb2 as _feedback_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_REFUSED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_REFUSED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class DatasetSpec(_message.Message):
    __slots__ = ("selection", "snapshot", "scrub", "validation_share", "golden_share", "duplicate_similarity", "max_per_class", "mixture", "augmentation", "balance")
    class MixtureEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SCRUB_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_SHARE_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_SHARE_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_CLASS_FIELD_NUMBER: _ClassVar[int]
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    AUGMENTATION_FIELD_NUMBER: _ClassVar[int]
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    selection: _feedback_service_pb2.ExampleSelection
    snapshot: str
    scrub: bool
    validation_share: float
    golden_share: float
    duplicate_similarity: float
    max_per_class: int
    mixture: _containers.ScalarMap[str, float]
    augmentation: int
    balance: float
    def __init__(self, selection: _Optional[_Union[_feedback_service_pb2.ExampleSelection, _Mapping]] = ..., snapshot: _Optional[str] = ..., scrub: _Optional[bool] = ..., validation_share: _Optional[float] = ..., golden_share: _Optional[float] = ..., duplicate_similarity: _Optional[float] = ..., max_per_class: _Optional[int] = ..., mixture: _Optional[_Mapping[str, float]] = ..., augmentation: _Optional[int] = ..., balance: _Optional[float] = ...) -> None: ...

class Hyperparameters(_message.Message):
    __slots__ = ("learning_rate", "epochs", "max_steps", "batch_size", "gradient_accumulation", "max_length", "warmup", "weight_decay", "max_gradient_norm", "schedule", "seed", "train_on_prompt", "frozen_layers", "shifted_attention_group")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ACCUMULATION_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    WARMUP_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MAX_GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TRAIN_ON_PROMPT_FIELD_NUMBER: _ClassVar[int]
    FROZEN_LAYERS_FIELD_NUMBER: _ClassVar[int]
    SHIFTED_ATTENTION_GROUP_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    epochs: float
    max_steps: int
    batch_size: int
    gradient_accumulation: int
    max_length: int
    warmup: float
    weight_decay: float
    max_gradient_norm: float
    schedule: str
    seed: int
    train_on_prompt: bool
    frozen_layers: int
    shifted_attention_group: int
    def __init__(self, learning_rate: _Optional[float] = ..., epochs: _Optional[float] = ..., max_steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., gradient_accumulation: _Optional[int] = ..., max_length: _Optional[int] = ..., warmup: _Optional[float] = ..., weight_decay: _Optional[float] = ..., max_gradient_norm: _Optional[float] = ..., schedule: _Optional[str] = ..., seed: _Optional[int] = ..., train_on_prompt: _Optional[bool] = ..., frozen_layers: _Optional[int] = ..., shifted_attention_group: _Optional[int] = ...) -> None: ...

class SearchSpec(_message.Message):
    __slots__ = ("trials", "parameters", "steps_per_trial")
    TRIALS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_TRIAL_FIELD_NUMBER: _ClassVar[int]
    trials: int
    parameters: _containers.RepeatedScalarFieldContainer[str]
    steps_per_trial: int
    def __init__(self, trials: _Optional[int] = ..., parameters: _Optional[_Iterable[str]] = ..., steps_per_trial: _Optional[int] = ...) -> None: ...

class GateSpec(_message.Message):
    __slots__ = ("min_accuracy", "min_f1", "max_regression", "min_gain_over_base", "max_other_task_regression", "max_examples", "few_shot")
    MIN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    MIN_F1_FIELD_NUMBER: _ClassVar[int]
    MAX_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    MIN_GAIN_OVER_BASE_FIELD_NUMBER: _ClassVar[int]
    MAX_OTHER_TASK_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    MAX_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    FEW_SHOT_FIELD_NUMBER: _ClassVar[int]
    min_accuracy: float
    min_f1: float
    max_regression: float
    min_gain_over_base: float
    max_other_task_regression: float
    max_examples: int
    few_shot: int
    def __init__(self, min_accuracy: _Optional[float] = ..., min_f1: _Optional[float] = ..., max_regression: _Optional[float] = ..., min_gain_over_base: _Optional[float] = ..., max_other_task_regression: _Optional[float] = ..., max_examples: _Optional[int] = ..., few_shot: _Optional[int] = ...) -> None: ...

class PromotionSpec(_message.Message):
    __slots__ = ("mode", "canary_percent", "canary_feedback", "canary_tolerance")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[PromotionSpec.Mode]
        MODE_NONE: _ClassVar[PromotionSpec.Mode]
        MODE_LIVE: _ClassVar[PromotionSpec.Mode]
        MODE_CANARY: _ClassVar[PromotionSpec.Mode]
    MODE_UNSPECIFIED: PromotionSpec.Mode
    MODE_NONE: PromotionSpec.Mode
    MODE_LIVE: PromotionSpec.Mode
    MODE_CANARY: PromotionSpec.Mode
    MODE_FIELD_NUMBER: _ClassVar[int]
    CANARY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    CANARY_FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    CANARY_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    mode: PromotionSpec.Mode
    canary_percent: int
    canary_feedback: int
    canary_tolerance: float
    def __init__(self, mode: _Optional[_Union[PromotionSpec.Mode, str]] = ..., canary_percent: _Optional[int] = ..., canary_feedback: _Optional[int] = ..., canary_tolerance: _Optional[float] = ...) -> None: ...

class JobLimits(_message.Message):
    __slots__ = ("max_duration", "max_memory_bytes", "max_retries")
    MAX_DURATION_FIELD_NUMBER: _ClassVar[int]
    MAX_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    max_duration: _duration_pb2.Duration
    max_memory_bytes: int
    max_retries: int
    def __init__(self, max_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_memory_bytes: _Optional[int] = ..., max_retries: _Optional[int] = ...) -> None: ...

class TrainingJobSpec(_message.Message):
    __slots__ = ("adapter", "recipe", "method", "method_config", "dataset", "hyperparameters", "initial_version", "search", "gate", "promotion", "limits", "recipe_options")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    METHOD_CONFIG_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    PROMOTION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    recipe: str
    method: str
    method_config: _struct_pb2.Struct
    dataset: DatasetSpec
    hyperparameters: Hyperparameters
    initial_version: str
    search: SearchSpec
    gate: GateSpec
    promotion: PromotionSpec
    limits: JobLimits
    recipe_options: _struct_pb2.Struct
    def __init__(self, adapter: _Optional[str] = ..., recipe: _Optional[str] = ..., method: _Optional[str] = ..., method_config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., dataset: _Optional[_Union[DatasetSpec, _Mapping]] = ..., hyperparameters: _Optional[_Union[Hyperparameters, _Mapping]] = ..., initial_version: _Optional[str] = ..., search: _Optional[_Union[SearchSpec, _Mapping]] = ..., gate: _Optional[_Union[GateSpec, _Mapping]] = ..., promotion: _Optional[_Union[PromotionSpec, _Mapping]] = ..., limits: _Optional[_Union[JobLimits, _Mapping]] = ..., recipe_options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class JobProgress(_message.Message):
    __slots__ = ("phase", "step", "total_steps", "epoch", "loss", "learning_rate", "tokens_per_second", "remaining", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_second: float
    remaining: _duration_pb2.Duration
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, phase: _Optional[str] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., epoch: _Optional[float] = ..., loss: _Optional[float] = ..., learning_rate: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., remaining: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class TrainingJob(_message.Message):
    __slots__ = ("id", "spec", "state", "progress", "message", "version", "snapshot", "policy", "attempt", "create_time", "start_time", "end_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    spec: TrainingJobSpec
    state: JobState
    progress: JobProgress
    message: str
    version: str
    snapshot: str
    policy: str
    attempt: int
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., spec: _Optional[_Union[TrainingJobSpec, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., progress: _Optional[_Union[JobProgress, _Mapping]] = ..., message: _Optional[str] = ..., version: _Optional[str] = ..., snapshot: _Optional[str] = ..., policy: _Optional[str] = ..., attempt: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateTrainingJobRequest(_message.Message):
    __slots__ = ("spec", "request_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    spec: TrainingJobSpec
    request_id: str
    def __init__(self, spec: _Optional[_Union[TrainingJobSpec, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetTrainingJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ListTrainingJobsRequest(_message.Message):
    __slots__ = ("adapter", "states", "page_size", "page_token")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    states: _containers.RepeatedScalarFieldContainer[JobState]
    page_size: int
    page_token: str
    def __init__(self, adapter: _Optional[str] = ..., states: _Optional[_Iterable[_Union[JobState, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTrainingJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[TrainingJob]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[TrainingJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelTrainingJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WatchTrainingJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WatchTrainingJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ...) -> None: ...

class GetTrainingReportRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class TrainingReport(_message.Message):
    __slots__ = ("markdown", "json", "plots")
    class Plot(_message.Message):
        __slots__ = ("filename", "png")
        FILENAME_FIELD_NUMBER: _ClassVar[int]
        PNG_FIELD_NUMBER: _ClassVar[int]
        filename: str
        png: bytes
        def __init__(self, filename: _Optional[str] = ..., png: _Optional[bytes] = ...) -> None: ...
    MARKDOWN_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    PLOTS_FIELD_NUMBER: _ClassVar[int]
    markdown: str
    json: str
    plots: _containers.RepeatedCompositeFieldContainer[TrainingReport.Plot]
    def __init__(self, markdown: _Optional[str] = ..., json: _Optional[str] = ..., plots: _Optional[_Iterable[_Union[TrainingReport.Plot, _Mapping]]] = ...) -> None: ...

class TrainingPolicy(_message.Message):
    __slots__ = ("name", "spec", "min_new_feedback", "schedule", "paused", "create_time", "last_job", "last_start_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MIN_NEW_FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_JOB_FIELD_NUMBER: _ClassVar[int]
    LAST_START_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: TrainingJobSpec
    min_new_feedback: int
    schedule: str
    paused: bool
    create_time: _timestamp_pb2.Timestamp
    last_job: str
    last_start_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[TrainingJobSpec, _Mapping]] = ..., min_new_feedback: _Optional[int] = ..., schedule: _Optional[str] = ..., paused: _Optional[bool] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_job: _Optional[str] = ..., last_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateTrainingPolicyRequest(_message.Message):
    __slots__ = ("policy", "request_id")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    policy: TrainingPolicy
    request_id: str
    def __init__(self, policy: _Optional[_Union[TrainingPolicy, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetTrainingPolicyRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListTrainingPoliciesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTrainingPoliciesResponse(_message.Message):
    __slots__ = ("policies", "next_page_token")
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[TrainingPolicy]
    next_page_token: str
    def __init__(self, policies: _Optional[_Iterable[_Union[TrainingPolicy, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateTrainingPolicyRequest(_message.Message):
    __slots__ = ("policy", "update_mask")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    policy: TrainingPolicy
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, policy: _Optional[_Union[TrainingPolicy, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class DeleteTrainingPolicyRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...
