from graftwork.v1 import generation_service_pb2 as _generation_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JudgeRequest(_message.Message):
    __slots__ = ("conversation", "text", "token_ids", "completions")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    conversation: _generation_service_pb2.Conversation
    text: str
    token_ids: _generation_service_pb2.TokenIds
    completions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, conversation: _Optional[_Union[_generation_service_pb2.Conversation, _Mapping]] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[_generation_service_pb2.TokenIds, _Mapping]] = ..., completions: _Optional[_Iterable[str]] = ...) -> None: ...

class JudgeResponse(_message.Message):
    __slots__ = ("rewards",)
    class Reward(_message.Message):
        __slots__ = ("value",)
        VALUE_FIELD_NUMBER: _ClassVar[int]
        value: float
        def __init__(self, value: _Optional[float] = ...) -> None: ...
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    rewards: _containers.RepeatedCompositeFieldContainer[JudgeResponse.Reward]
    def __init__(self, rewards: _Optional[_Iterable[_Union[JudgeResponse.Reward, _Mapping]]] = ...) -> None: ...
