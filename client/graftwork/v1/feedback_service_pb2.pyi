import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from graftwork.v1 import generation_service_pb2 as _generation_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeedbackSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_SOURCE_UNSPECIFIED: _ClassVar[FeedbackSource]
    FEEDBACK_SOURCE_HUMAN: _ClassVar[FeedbackSource]
    FEEDBACK_SOURCE_MODEL: _ClassVar[FeedbackSource]
    FEEDBACK_SOURCE_CODE: _ClassVar[FeedbackSource]
    FEEDBACK_SOURCE_IMPLICIT: _ClassVar[FeedbackSource]

class Thumbs(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THUMBS_UNSPECIFIED: _ClassVar[Thumbs]
    THUMBS_UP: _ClassVar[Thumbs]
    THUMBS_DOWN: _ClassVar[Thumbs]
FEEDBACK_SOURCE_UNSPECIFIED: FeedbackSource
FEEDBACK_SOURCE_HUMAN: FeedbackSource
FEEDBACK_SOURCE_MODEL: FeedbackSource
FEEDBACK_SOURCE_CODE: FeedbackSource
FEEDBACK_SOURCE_IMPLICIT: FeedbackSource
THUMBS_UNSPECIFIED: Thumbs
THUMBS_UP: Thumbs
THUMBS_DOWN: Thumbs

class InlinePrompt(_message.Message):
    __slots__ = ("conversation", "text", "task", "episode_id")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    conversation: _generation_service_pb2.Conversation
    text: str
    task: str
    episode_id: str
    def __init__(self, conversation: _Optional[_Union[_generation_service_pb2.Conversation, _Mapping]] = ..., text: _Optional[str] = ..., task: _Optional[str] = ..., episode_id: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("generation_id", "text")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    text: str
    def __init__(self, generation_id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Preference(_message.Message):
    __slots__ = ("chosen", "rejected", "margin", "tie")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    TIE_FIELD_NUMBER: _ClassVar[int]
    chosen: Answer
    rejected: Answer
    margin: float
    tie: bool
    def __init__(self, chosen: _Optional[_Union[Answer, _Mapping]] = ..., rejected: _Optional[_Union[Answer, _Mapping]] = ..., margin: _Optional[float] = ..., tie: _Optional[bool] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("ranks",)
    class Rank(_message.Message):
        __slots__ = ("answers",)
        ANSWERS_FIELD_NUMBER: _ClassVar[int]
        answers: _containers.RepeatedCompositeFieldContainer[Answer]
        def __init__(self, answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ...) -> None: ...
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedCompositeFieldContainer[Ranking.Rank]
    def __init__(self, ranks: _Optional[_Iterable[_Union[Ranking.Rank, _Mapping]]] = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("id", "generation_id", "group_id", "episode_id", "prompt", "thumbs", "reward", "label", "correction", "demonstration", "preference", "ranking", "remark", "source", "author", "comment", "supersedes", "create_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    THUMBS_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    DEMONSTRATION_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    REMARK_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    generation_id: str
    group_id: str
    episode_id: str
    prompt: InlinePrompt
    thumbs: Thumbs
    reward: float
    label: str
    correction: str
    demonstration: str
    preference: Preference
    ranking: Ranking
    remark: str
    source: FeedbackSource
    author: str
    comment: str
    supersedes: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., generation_id: _Optional[str] = ..., group_id: _Optional[str] = ..., episode_id: _Optional[str] = ..., prompt: _Optional[_Union[InlinePrompt, _Mapping]] = ..., thumbs: _Optional[_Union[Thumbs, str]] = ..., reward: _Optional[float] = ..., label: _Optional[str] = ..., correction: _Optional[str] = ..., demonstration: _Optional[str] = ..., preference: _Optional[_Union[Preference, _Mapping]] = ..., ranking: _Optional[_Union[Ranking, _Mapping]] = ..., remark: _Optional[str] = ..., source: _Optional[_Union[FeedbackSource, str]] = ..., author: _Optional[str] = ..., comment: _Optional[str] = ..., supersedes: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SubmitFeedbackRequest(_message.Message):
    __slots__ = ("feedback", "request_id")
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    feedback: Feedback
    request_id: str
    def __init__(self, feedback: _Optional[_Union[Feedback, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class BatchSubmitFeedbackRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[SubmitFeedbackRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[SubmitFeedbackRequest, _Mapping]]] = ...) -> None: ...

class BatchSubmitFeedbackResponse(_message.Message):
    __slots__ = ("results",)
    class Result(_message.Message):
        __slots__ = ("feedback", "error")
        FEEDBACK_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        feedback: Feedback
        error: FeedbackError
        def __init__(self, feedback: _Optional[_Union[Feedback, _Mapping]] = ..., error: _Optional[_Union[FeedbackError, _Mapping]] = ...) -> None: ...
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchSubmitFeedbackResponse.Result]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchSubmitFeedbackResponse.Result, _Mapping]]] = ...) -> None: ...

class FeedbackError(_message.Message):
    __slots__ = ("code", "reason", "message", "field")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    field: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...

class ListFeedbackRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: FeedbackFilter
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[_Union[FeedbackFilter, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class FeedbackFilter(_message.Message):
    __slots__ = ("generation_id", "group_id", "episode_id", "task", "author", "kinds", "sources", "after", "before", "include_superseded")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    group_id: str
    episode_id: str
    task: str
    author: str
    kinds: _containers.RepeatedScalarFieldContainer[str]
    sources: _containers.RepeatedScalarFieldContainer[FeedbackSource]
    after: _timestamp_pb2.Timestamp
    before: _timestamp_pb2.Timestamp
    include_superseded: bool
    def __init__(self, generation_id: _Optional[str] = ..., group_id: _Optional[str] = ..., episode_id: _Optional[str] = ..., task: _Optional[str] = ..., author: _Optional[str] = ..., kinds: _Optional[_Iterable[str]] = ..., sources: _Optional[_Iterable[_Union[FeedbackSource, str]]] = ..., after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., include_superseded: _Optional[bool] = ...) -> None: ...

class ListFeedbackResponse(_message.Message):
    __slots__ = ("feedback", "next_page_token")
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    feedback: _containers.RepeatedCompositeFieldContainer[Feedback]
    next_page_token: str
    def __init__(self, feedback: _Optional[_Iterable[_Union[Feedback, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("id", "group_id", "episode_id", "task", "origin", "served_by", "conversation", "text", "token_ids", "completion", "prompt_token_ids", "completion_token_ids", "completion_logprobs", "sampling", "finish_reason", "create_time", "finish_time", "template_hash")
    ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_HASH_FIELD_NUMBER: _ClassVar[int]
    id: str
    group_id: str
    episode_id: str
    task: str
    origin: _generation_service_pb2.Origin
    served_by: _generation_service_pb2.ServedBy
    conversation: _generation_service_pb2.Conversation
    text: str
    token_ids: _generation_service_pb2.TokenIds
    completion: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    completion_token_ids: _containers.RepeatedScalarFieldContainer[int]
    completion_logprobs: _containers.RepeatedScalarFieldContainer[float]
    sampling: _generation_service_pb2.SamplingParams
    finish_reason: _generation_service_pb2.FinishReason
    create_time: _timestamp_pb2.Timestamp
    finish_time: _timestamp_pb2.Timestamp
    template_hash: str
    def __init__(self, id: _Optional[str] = ..., group_id: _Optional[str] = ..., episode_id: _Optional[str] = ..., task: _Optional[str] = ..., origin: _Optional[_Union[_generation_service_pb2.Origin, str]] = ..., served_by: _Optional[_Union[_generation_service_pb2.ServedBy, _Mapping]] = ..., conversation: _Optional[_Union[_generation_service_pb2.Conversation, _Mapping]] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[_generation_service_pb2.TokenIds, _Mapping]] = ..., completion: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., completion_token_ids: _Optional[_Iterable[int]] = ..., completion_logprobs: _Optional[_Iterable[float]] = ..., sampling: _Optional[_Union[_generation_service_pb2.SamplingParams, _Mapping]] = ..., finish_reason: _Optional[_Union[_generation_service_pb2.FinishReason, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., template_hash: _Optional[str] = ...) -> None: ...

class ListGenerationsRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: GenerationFilter
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[_Union[GenerationFilter, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class GenerationFilter(_message.Message):
    __slots__ = ("ids", "group_id", "episode_id", "task", "adapter", "origins", "after", "before", "with_feedback")
    IDS_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    WITH_FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    group_id: str
    episode_id: str
    task: str
    adapter: str
    origins: _containers.RepeatedScalarFieldContainer[_generation_service_pb2.Origin]
    after: _timestamp_pb2.Timestamp
    before: _timestamp_pb2.Timestamp
    with_feedback: bool
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., group_id: _Optional[str] = ..., episode_id: _Optional[str] = ..., task: _Optional[str] = ..., adapter: _Optional[str] = ..., origins: _Optional[_Iterable[_Union[_generation_service_pb2.Origin, str]]] = ..., after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., with_feedback: _Optional[bool] = ...) -> None: ...

class ListGenerationsResponse(_message.Message):
    __slots__ = ("generations", "next_page_token")
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    generations: _containers.RepeatedCompositeFieldContainer[Generation]
    next_page_token: str
    def __init__(self, generations: _Optional[_Iterable[_Union[Generation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteGenerationsRequest(_message.Message):
    __slots__ = ("ids", "author", "episode_id")
    IDS_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    author: str
    episode_id: str
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., author: _Optional[str] = ..., episode_id: _Optional[str] = ...) -> None: ...

class DeleteGenerationsResponse(_message.Message):
    __slots__ = ("num_generations", "num_feedback", "trained_versions")
    NUM_GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    TRAINED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    num_generations: int
    num_feedback: int
    trained_versions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, num_generations: _Optional[int] = ..., num_feedback: _Optional[int] = ..., trained_versions: _Optional[_Iterable[str]] = ...) -> None: ...

class ExampleSelection(_message.Message):
    __slots__ = ("tasks", "format", "origins", "sources", "after", "before", "reward_threshold")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    REWARD_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    format: str
    origins: _containers.RepeatedScalarFieldContainer[_generation_service_pb2.Origin]
    sources: _containers.RepeatedScalarFieldContainer[FeedbackSource]
    after: _timestamp_pb2.Timestamp
    before: _timestamp_pb2.Timestamp
    reward_threshold: float
    def __init__(self, tasks: _Optional[_Iterable[str]] = ..., format: _Optional[str] = ..., origins: _Optional[_Iterable[_Union[_generation_service_pb2.Origin, str]]] = ..., sources: _Optional[_Iterable[_Union[FeedbackSource, str]]] = ..., after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reward_threshold: _Optional[float] = ...) -> None: ...

class ExportDatasetRequest(_message.Message):
    __slots__ = ("selection", "scrub")
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    SCRUB_FIELD_NUMBER: _ClassVar[int]
    selection: ExampleSelection
    scrub: bool
    def __init__(self, selection: _Optional[_Union[ExampleSelection, _Mapping]] = ..., scrub: _Optional[bool] = ...) -> None: ...

class ExportDatasetResponse(_message.Message):
    __slots__ = ("jsonl", "num_examples")
    JSONL_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    jsonl: bytes
    num_examples: int
    def __init__(self, jsonl: _Optional[bytes] = ..., num_examples: _Optional[int] = ...) -> None: ...
