"""From a call's arguments to the wire's messages, for the sync and the async client alike.

Only what the wire cannot carry is refused here, with the field's name; the server judges values.
"""

import json
import os
import reprlib
import uuid
from collections.abc import Mapping, Sequence, Sized
from typing import Any, SupportsIndex, TypedDict

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message as Protobuf

from graftwork.errors import InvalidArgument
from graftwork.types import Conversation, Message, Origin, Prompt
from graftwork.v1 import adapter_service_pb2 as adapter_pb
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork.v1 import judge_service_pb2 as judge_pb


class GenerateOptions(TypedDict, total=False):
    """How to generate. What is left out, or None, takes the default in brackets."""

    adapter: str  # "" the base, "name" its live version or split, "name@version" exactly that [""]
    adapters: Mapping[str, float] | None  # instead, several selectors with their weights [none]
    adapter_scale: float | None  # multiplies the weights of the adapters; not 0 [1]
    temperature: float | None  # 0 is greedy; at most 100 [0]
    top_p: float | None  # smallest set of tokens whose probability reaches this; in (0, 1] [1]
    top_k: int | None  # only the likeliest tokens; 0 is all [0]
    min_p: float | None  # only tokens at least this times as likely as the likeliest [0]
    repetition_penalty: float | None  # scales logits of tokens seen in prompt or output [1]
    presence_penalty: float | None  # subtracted once from those of tokens in the output [0]
    frequency_penalty: float | None  # subtracted for each time a token is in the output [0]
    seed: int | None  # same seed and request, same tokens [drawn by the server]
    logit_bias: Mapping[int, float] | None  # added to the logits, by token id [none]
    max_tokens: int | None  # most tokens to generate [the server's]
    min_tokens: int | None  # fewest tokens before a stop token may end the answer [0]
    stop: str | Sequence[str] | None  # the answer ends before the first of these [none]
    stop_token_ids: Sequence[int] | None  # the answer ends after the first of these [none]
    ignore_eos: bool  # go on past the model's own end tokens [False]
    n: int | None  # how many answers to sample [1]
    logprobs: int | None  # log-probability of each token, with this many alternatives [none]
    prompt_logprobs: int | None  # the same for the tokens of the prompt [none]
    json_schema: Mapping[str, Any] | str | None  # the output matches this JSON schema
    regex: str | None  # the whole output matches this regular expression
    choice: Sequence[str] | None  # the output is one of these strings
    priority: int | None  # higher goes first; in [-100, 100] [0]
    episode_id: str  # ties the generations of one conversation or task together [""]
    store: bool | None  # whether the generation may be kept in the journal [True]
    task: str  # what it is for: feedback on one task trains one adapter [the adapter's name]
    origin: Origin | None  # what it is made for [a user]
    prompt_lookup_tokens: int | None  # most tokens to guess from the prompt in a step [0]


ORIGINS = {
    Origin.USER: generation_pb.ORIGIN_USER,
    Origin.ROLLOUT: generation_pb.ORIGIN_ROLLOUT,
    Origin.EVALUATION: generation_pb.ORIGIN_EVALUATION,
}
SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
)
_PLAIN_FIELDS = (
    "adapter",
    "adapter_scale",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "n",
    "logprobs",
    "prompt_logprobs",
    "priority",
    "episode_id",
    "store",
    "task",
    "prompt_lookup_tokens",
)
_CONSTRAINT_FIELDS = ("json_schema", "regex", "choice")


def generate_request(prompt: Prompt, options: GenerateOptions) -> generation_pb.GenerateRequest:
    """Raises InvalidArgument for what the wire cannot carry, TypeError for an unknown option."""
    values: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    unknown = values.keys() - GenerateOptions.__optional_keys__
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    request = generation_pb.GenerateRequest()
    _set_prompt(request, prompt)
    _set_adapters(request, values.get("adapters", {}))
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    for name in _PLAIN_FIELDS:
        if name in values:
            set_field(request, name, values[name], name)
    for name in SAMPLING_FIELDS:
        if name in values:
            set_field(request.sampling, name, values[name], f"sampling.{name}")
    if "origin" in values:
        request.origin = _origin(values["origin"])
    _set_constraint(request.constraint, values)
    return request


def _origin(origin: Origin) -> generation_pb.Origin:
    if origin not in ORIGINS:
        raise InvalidArgument(f"origin: cannot be {reprlib.repr(origin)}", field="origin")
    return ORIGINS[origin]


def _set_adapters(
    request: generation_pb.GenerateRequest | generation_pb.ScoreRequest,
    adapters: Mapping[str, float],
) -> None:
    if not isinstance(adapters, Mapping):
        raise InvalidArgument(
            f"adapters: selectors with their weights are wanted, not {reprlib.repr(adapters)}",
            field="adapters",
        )
    for index, (selector, weight) in enumerate(adapters.items()):
        part, path = request.adapters.add(), f"adapters[{index}]"
        set_field(part, "adapter", selector, f"{path}.adapter")
        set_field(part, "weight", weight, f"{path}.weight")


def _set_constraint(constraint: generation_pb.Constraint, values: Mapping[str, Any]) -> None:
    given = [name for name in _CONSTRAINT_FIELDS if name in values]
    if len(given) > 1:
        raise InvalidArgument(
            f"constraint: {' and '.join(given)} exclude one another", field="constraint"
        )
    for name in given:
        path, value = f"constraint.{name}", values[name]
        if name == "choice":
            set_field(constraint.choice, "values", value, path)
        elif name == "json_schema" and not isinstance(value, str):
            set_field(constraint, name, _to_json(value, path), path)
        else:
            set_field(constraint, name, value, path)


def _to_json(schema: Mapping[str, Any], path: str) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{path}: not JSON: {error}", field=path) from error


def score_request(
    prompt: Prompt,
    completions: Sequence[str | Sequence[int]],
    adapter: str = "",
    adapters: Mapping[str, float] | None = None,
    adapter_scale: float | None = None,
) -> generation_pb.ScoreRequest:
    """Completions are texts or lists of token ids."""
    if isinstance(completions, str):
        raise InvalidArgument("completions: a list is wanted, not one string", field="completions")
    request = generation_pb.ScoreRequest()
    set_field(request, "adapter", adapter, "adapter")
    _set_adapters(request, {} if adapters is None else adapters)
    if adapter_scale is not None:
        set_field(request, "adapter_scale", adapter_scale, "adapter_scale")
    _set_prompt(request, prompt)
    for index, completion in enumerate(completions):
        part, path = request.completions.add(), f"completions[{index}]"
        if isinstance(completion, str):
            set_field(part, "text", completion, path)
        else:
            part.token_ids.SetInParent()
            set_field(part.token_ids, "ids", completion, path)
    return request


def tokenize_request(prompt: Prompt) -> generation_pb.TokenizeRequest:
    request = generation_pb.TokenizeRequest()
    if _are_token_ids(prompt):
        raise InvalidArgument("text: these are token ids already", field="text")
    _set_prompt(request, prompt)
    return request


def judge_request(prompt: Prompt, completions: Sequence[str]) -> judge_pb.JudgeRequest:
    request = judge_pb.JudgeRequest()
    _set_prompt(request, prompt)
    set_field(request, "completions", completions, "completions")
    return request


def _set_prompt(
    request: generation_pb.GenerateRequest
    | generation_pb.ScoreRequest
    | generation_pb.TokenizeRequest
    | judge_pb.JudgeRequest,
    prompt: Prompt,
) -> None:
    if isinstance(prompt, str):
        set_field(request, "text", prompt, "text")
    elif isinstance(prompt, Conversation):
        set_conversation(request.conversation, prompt)
    elif _are_token_ids(prompt):
        set_field(request.token_ids, "ids", prompt, "token_ids")  # type: ignore[union-attr]
    elif isinstance(prompt, Sequence) and len(prompt):
        set_conversation(request.conversation, Conversation(prompt))  # type: ignore[arg-type]
    else:
        raise InvalidArgument(
            f"prompt: a string, messages or token ids are wanted, not {reprlib.repr(prompt)}",
            field="prompt",
        )


def _are_token_ids(prompt: Prompt) -> bool:
    """Whether these are integers of any kind, those of array libraries included."""
    if isinstance(prompt, str | Conversation) or not isinstance(prompt, Sized) or not len(prompt):
        return False
    return all(isinstance(item, SupportsIndex) for item in prompt)


def set_conversation(target: generation_pb.Conversation, conversation: Conversation) -> None:
    target.SetInParent()
    for index, message in enumerate(conversation.messages):
        path = f"conversation.messages[{index}]"
        part = target.messages.add()
        if isinstance(message, Message):
            role, content = message.role, message.content
        elif isinstance(message, Mapping) and message.keys() == {"role", "content"}:
            role, content = message["role"], message["content"]
        else:
            raise InvalidArgument(
                f'{path}: a Message or {{"role": ..., "content": ...}} is wanted,'
                f" not {reprlib.repr(message)}",
                field=path,
            )
        set_field(part, "role", role, f"{path}.role")
        set_field(part, "content", content, f"{path}.content")
    for index, document in enumerate(conversation.documents):
        passage, path = target.documents.add(), f"conversation.documents[{index}]"
        set_field(passage, "title", document.title, f"{path}.title")
        set_field(passage, "text", document.text, f"{path}.text")


def create_version_request(
    adapter: str,
    source: str | os.PathLike[str],
    make_live: bool | None,
    request_id: str | None,
    task_id: int | None = None,
) -> adapter_pb.CreateAdapterVersionRequest:
    request = adapter_pb.CreateAdapterVersionRequest(request_id=request_id or new_request_id())
    set_field(request, "adapter", adapter, "adapter")
    set_field(request, "source", os.fspath(source), "source")
    if make_live is not None:
        request.make_live = make_live
    if task_id is not None:
        set_field(request, "task_id", task_id, "task_id")
    return request


def upload_header(
    adapter: str,
    make_live: bool | None,
    request_id: str | None,
    task_id: int | None = None,
    ephemeral_owner: str = "",
) -> adapter_pb.UploadAdapterVersionRequest:
    request = adapter_pb.UploadAdapterVersionRequest()
    request.header.request_id = request_id or new_request_id()
    set_field(request.header, "adapter", adapter, "header.adapter")
    set_field(request.header, "ephemeral_owner", ephemeral_owner, "header.ephemeral_owner")
    if make_live is not None:
        request.header.make_live = make_live
    if task_id is not None:
        set_field(request.header, "task_id", task_id, "header.task_id")
    return request


def update_request(
    name: str,
    *,
    live_version: int | None,
    traffic_split: Mapping[int, int] | None,
    pinned: bool | None,
    request_id: str | None,
) -> adapter_pb.UpdateAdapterRequest:
    """Masks what is not None; an empty split ends the split."""
    request = adapter_pb.UpdateAdapterRequest(request_id=request_id or new_request_id())
    paths: list[str] = []
    set_field(request.adapter, "name", name, "adapter.name")
    if live_version is not None:
        set_field(request.adapter, "live_version", live_version, "adapter.live_version")
        paths.append("live_version")
    if traffic_split is not None:
        for version, percent in traffic_split.items():
            share = request.adapter.traffic_split.add()
            set_field(share, "version", version, "adapter.traffic_split.version")
            set_field(share, "percent", percent, "adapter.traffic_split.percent")
        paths.append("traffic_split")
    if pinned is not None:
        request.adapter.pinned = pinned
        paths.append("pinned")
    if not paths:
        raise InvalidArgument("update_mask: nothing to update", field="update_mask")
    request.update_mask.CopyFrom(FieldMask(paths=paths))
    return request


def delete_version_request(
    selector: str, request_id: str | None
) -> adapter_pb.DeleteAdapterVersionRequest:
    return adapter_pb.DeleteAdapterVersionRequest(
        adapter=selector, request_id=request_id or new_request_id()
    )


def rollback_request(name: str, request_id: str | None) -> adapter_pb.RollbackAdapterRequest:
    return adapter_pb.RollbackAdapterRequest(name=name, request_id=request_id or new_request_id())


def new_request_id() -> str:
    return str(uuid.uuid4())


def set_field(message: Protobuf, name: str, value: Any, path: str) -> None:
    """Sets a scalar, repeated or map field. Protobuf's own errors name no field."""
    try:
        target = getattr(message, name)
        if hasattr(target, "MergeFrom"):  # repeated and map containers
            target.update(value) if isinstance(value, Mapping) else target.extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgument(
            f"{path}: cannot be {reprlib.repr(value)}: {error}", field=path
        ) from error
