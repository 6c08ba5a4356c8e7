"""Between the journal's values and its rows. The columns are those of schema.py."""

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping
from sys import byteorder
from typing import Any

from graftwork.types import Component, Conversation, Document, Message, ServedBy
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb

from graftwork_trainer.journal.records import (
    Answer,
    Correction,
    Demonstration,
    Draft,
    Feedback,
    Generation,
    InlinePrompt,
    Input,
    Kind,
    Label,
    Origin,
    Preference,
    Ranking,
    Remark,
    Reward,
    Source,
    Target,
    TargetKind,
    Thumbs,
    Value,
)

Row = dict[str, Any]

ORIGINS = {
    generation_pb.ORIGIN_UNSPECIFIED: Origin.USER,
    generation_pb.ORIGIN_USER: Origin.USER,
    generation_pb.ORIGIN_ROLLOUT: Origin.ROLLOUT,
    generation_pb.ORIGIN_EVALUATION: Origin.EVALUATION,
}
FINISH_REASONS = {
    generation_pb.FINISH_REASON_STOP: "stop",
    generation_pb.FINISH_REASON_LENGTH: "length",
    generation_pb.FINISH_REASON_CANCELLED: "cancelled",
}


def generation_row(sent: pb.Generation) -> Row:
    """The row of a generation as the server logs it."""
    served_by = sent.served_by
    source = to_json(_input_of(sent))
    return {
        "id": sent.id,
        "group_id": sent.group_id,
        "episode_id": sent.episode_id,
        "task": sent.task,
        "origin": ORIGINS[sent.origin].value,
        "adapter": served_by.adapter,
        "version": served_by.version,
        "is_composed": bool(served_by.components),
        "served_by": to_json(_served_by_json(served_by)),
        "input": source,
        "input_digest": digest(source),
        "completion": to_json(sent.completion),
        "prompt_token_ids": _pack("i", sent.prompt_token_ids),
        "completion_token_ids": _pack("i", sent.completion_token_ids),
        "completion_logprobs": _pack("f", sent.completion_logprobs),
        "sampling": to_json(_sampling_json(sent.sampling)),
        "finish_reason": FINISH_REASONS[sent.finish_reason],
        "template_hash": sent.template_hash,
        "create_time_ns": sent.create_time.ToNanoseconds(),
        "finish_time_ns": sent.finish_time.ToNanoseconds(),
    }


def to_generation(row: Mapping[Any, Any]) -> Generation:
    served_by = json.loads(row["served_by"])
    components = tuple(Component(**part) for part in served_by.pop("components", ()))
    return Generation(
        id=row["id"],
        group_id=row["group_id"],
        episode_id=row["episode_id"],
        task=row["task"],
        origin=Origin(row["origin"]),
        served_by=ServedBy(**served_by, components=components),
        input=input_from_json(json.loads(row["input"])),
        completion=json.loads(row["completion"]),
        prompt_token_ids=_unpack("i", row["prompt_token_ids"]),
        completion_token_ids=_unpack("i", row["completion_token_ids"]),
        completion_logprobs=_unpack("f", row["completion_logprobs"]),
        sampling=json.loads(row["sampling"]),
        finish_reason=row["finish_reason"],
        template_hash=row["template_hash"],
        create_time_ns=row["create_time_ns"],
        finish_time_ns=row["finish_time_ns"],
    )


def feedback_row(feedback: Feedback, draft: Draft, target_id: str, statement: str) -> Row:
    prompt = feedback.target.prompt
    return {
        "id": feedback.id,
        "target_kind": feedback.target.kind.value,
        "target_id": target_id,
        "prompt": "" if prompt is None else to_json(prompt_json(prompt)),
        "group_id": feedback.group_id,
        "episode_id": feedback.episode_id,
        "task": feedback.task,
        "kind": feedback.kind.value,
        "value": to_json(value_json(feedback.value)),
        "source": feedback.source.value,
        "author": feedback.author,
        "comment": feedback.comment,
        "supersedes": feedback.supersedes,
        "superseded_by": feedback.superseded_by,
        "statement": statement,
        "request_id": draft.request_id or None,
        "fingerprint": draft.fingerprint,
        "create_time_ns": feedback.create_time_ns,
    }


def to_feedback(row: Mapping[Any, Any]) -> Feedback:
    kind = TargetKind(row["target_kind"])
    if kind is TargetKind.PROMPT:
        target = Target(kind, prompt=_prompt_from_json(json.loads(row["prompt"])))
    else:
        target = Target(kind, row["target_id"])
    return Feedback(
        id=row["id"],
        target=target,
        value=_value_from_json(Kind(row["kind"]), json.loads(row["value"])),
        source=Source(row["source"]),
        author=row["author"],
        comment=row["comment"],
        supersedes=row["supersedes"],
        superseded_by=row["superseded_by"],
        task=row["task"],
        group_id=row["group_id"],
        episode_id=row["episode_id"],
        create_time_ns=row["create_time_ns"],
    )


def to_json(value: Any) -> str:
    """Compact, and the same text for the same value."""
    return json.dumps(value, separators=(",", ":"))


def digest(text: str) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def input_json(source: Input) -> Any:
    """The same JSON for a prompt whether a generation or feedback brings it."""
    match source:
        case str():
            return {"text": source}
        case Conversation(messages, documents):
            turns = [message_pair(message) for message in messages]
            return {"messages": turns, "documents": [[d.title, d.text] for d in documents]}
        case _:
            return {"token_ids": list(source)}


def message_pair(message: Message | Mapping[str, str]) -> list[str]:
    """Role and content."""
    if isinstance(message, Message):
        return [message.role, message.content]
    return [message["role"], message["content"]]


def input_from_json(value: Mapping[str, Any]) -> Input:
    if "text" in value:
        return str(value["text"])
    if "messages" in value:
        return Conversation(
            tuple(Message(role, content) for role, content in value["messages"]),
            tuple(Document(text, title) for title, text in value["documents"]),
        )
    return tuple(value["token_ids"])


def prompt_json(prompt: InlinePrompt) -> Any:
    return {
        "input": input_json(prompt.input),
        "task": prompt.task,
        "episode_id": prompt.episode_id,
    }


def value_json(value: Value) -> Any:
    match value:
        case Thumbs(up):
            return up
        case Reward(number):
            return number
        case Label(text) | Correction(text) | Demonstration(text) | Remark(text):
            return text
        case Preference(chosen, rejected, margin, tie):
            return {
                "chosen": _answer_json(chosen),
                "rejected": _answer_json(rejected),
                "margin": margin,
                "tie": tie,
            }
        case Ranking(ranks):
            return [[_answer_json(answer) for answer in rank] for rank in ranks]


def _value_from_json(kind: Kind, value: Any) -> Value:
    if kind is Kind.PREFERENCE:
        chosen, rejected = Answer(**value["chosen"]), Answer(**value["rejected"])
        return Preference(chosen, rejected, value["margin"], value["tie"])
    if kind is Kind.RANKING:
        return Ranking(tuple(tuple(Answer(**answer) for answer in rank) for rank in value))
    return _SCALARS[kind](value)


_SCALARS: dict[Kind, Callable[[Any], Value]] = {
    Kind.THUMBS: Thumbs,
    Kind.REWARD: Reward,
    Kind.LABEL: Label,
    Kind.CORRECTION: Correction,
    Kind.DEMONSTRATION: Demonstration,
    Kind.REMARK: Remark,
}


def _answer_json(answer: Answer) -> dict[str, str]:
    if answer.generation_id:
        return {"generation_id": answer.generation_id}
    return {"text": answer.text}


def _prompt_from_json(value: Mapping[str, Any]) -> InlinePrompt:
    source = input_from_json(value["input"])
    if not isinstance(source, str | Conversation):
        raise TypeError("an inline prompt of token ids")
    return InlinePrompt(source, value["task"], value["episode_id"])


def _input_of(sent: pb.Generation) -> Any:
    match sent.WhichOneof("input"):
        case "conversation":
            return conversation_json(sent.conversation)
        case "text":
            return {"text": sent.text}
        case _:
            return {"token_ids": list(sent.token_ids.ids)}


def conversation_json(sent: generation_pb.Conversation) -> Any:
    return {
        "messages": [[message.role, message.content] for message in sent.messages],
        "documents": [[document.title, document.text] for document in sent.documents],
    }


def _served_by_json(sent: generation_pb.ServedBy) -> Row:
    served_by: Row = {
        "adapter": sent.adapter,
        "version": sent.version,
        "digest": sent.digest,
        "base_digest": sent.base_digest,
    }
    if sent.components:
        served_by["components"] = [
            {"adapter": c.adapter, "version": c.version, "digest": c.digest, "weight": c.weight}
            for c in sent.components
        ]
    return served_by


def _sampling_json(sent: generation_pb.SamplingParams) -> Row:
    values: Row = {field.name: value for field, value in sent.ListFields()}
    if sent.logit_bias:
        values["logit_bias"] = {str(token): bias for token, bias in sent.logit_bias.items()}
    return values


def _pack(code: str, values: Any) -> bytes:
    packed = array(code, values)
    if byteorder != "little":
        packed.byteswap()
    return packed.tobytes()


def _unpack(code: str, data: bytes) -> tuple[Any, ...]:
    values = array(code)
    values.frombytes(bytes(data))
    if byteorder != "little":
        values.byteswap()
    return tuple(values)
