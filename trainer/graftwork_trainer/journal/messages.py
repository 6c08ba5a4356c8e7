"""Between the wire's messages and the journal's values."""

from collections.abc import Sequence

from google.protobuf import timestamp_pb2
from graftwork.types import Conversation, ServedBy
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb

from graftwork_trainer.journal.records import (
    Answer,
    Correction,
    Demonstration,
    Feedback,
    Generation,
    InlinePrompt,
    Input,
    Label,
    Origin,
    Preference,
    Ranking,
    Remark,
    Reward,
    Source,
    TargetKind,
    Thumbs,
    Value,
)
from graftwork_trainer.journal.rows import FINISH_REASONS, message_pair

SOURCES = {
    pb.FEEDBACK_SOURCE_UNSPECIFIED: Source.HUMAN,
    pb.FEEDBACK_SOURCE_HUMAN: Source.HUMAN,
    pb.FEEDBACK_SOURCE_MODEL: Source.MODEL,
    pb.FEEDBACK_SOURCE_CODE: Source.CODE,
    pb.FEEDBACK_SOURCE_IMPLICIT: Source.IMPLICIT,
}
_SOURCE_NUMBERS = {source: number for number, source in SOURCES.items()}
_ORIGIN_NUMBERS = {
    Origin.USER: generation_pb.ORIGIN_USER,
    Origin.ROLLOUT: generation_pb.ORIGIN_ROLLOUT,
    Origin.EVALUATION: generation_pb.ORIGIN_EVALUATION,
}
_REASON_NUMBERS = {name: number for number, name in FINISH_REASONS.items()}


def generation_message(generation: Generation) -> pb.Generation:
    message = pb.Generation(
        id=generation.id,
        group_id=generation.group_id,
        episode_id=generation.episode_id,
        task=generation.task,
        origin=_ORIGIN_NUMBERS[generation.origin],
        served_by=_served_by_message(generation.served_by),
        completion=generation.completion,
        prompt_token_ids=generation.prompt_token_ids,
        completion_token_ids=generation.completion_token_ids,
        completion_logprobs=generation.completion_logprobs,
        finish_reason=_REASON_NUMBERS[generation.finish_reason],
        create_time=timestamp(generation.create_time_ns),
        finish_time=timestamp(generation.finish_time_ns),
        template_hash=generation.template_hash,
    )
    _set_input(message, generation.input)
    for name, value in generation.sampling.items():
        if name == "logit_bias":
            for token, bias in value.items():
                message.sampling.logit_bias[int(token)] = bias
        else:
            setattr(message.sampling, name, value)
    return message


def feedback_message(feedback: Feedback) -> pb.Feedback:
    message = pb.Feedback(
        id=feedback.id,
        source=_SOURCE_NUMBERS[feedback.source],
        author=feedback.author,
        comment=feedback.comment,
        supersedes=feedback.supersedes,
        create_time=timestamp(feedback.create_time_ns),
    )
    match feedback.target.kind:
        case TargetKind.GENERATION:
            message.generation_id = feedback.target.id
        case TargetKind.GROUP:
            message.group_id = feedback.target.id
        case TargetKind.EPISODE:
            message.episode_id = feedback.target.id
    if feedback.target.prompt is not None:
        message.prompt.CopyFrom(_prompt_message(feedback.target.prompt))
    _set_value(message, feedback.value)
    return message


def timestamp(time_ns: int) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromNanoseconds(time_ns)
    return stamp


def _set_value(message: pb.Feedback, value: Value) -> None:
    match value:
        case Thumbs(up):
            message.thumbs = pb.THUMBS_UP if up else pb.THUMBS_DOWN
        case Reward(number):
            message.reward = number
        case Label(text):
            message.label = text
        case Correction(text):
            message.correction = text
        case Demonstration(text):
            message.demonstration = text
        case Remark(text):
            message.remark = text
        case Preference(chosen, rejected, margin, tie):
            message.preference.chosen.CopyFrom(_answer_message(chosen))
            message.preference.rejected.CopyFrom(_answer_message(rejected))
            message.preference.tie = tie
            if margin is not None:
                message.preference.margin = margin
        case Ranking(ranks):
            for rank in ranks:
                message.ranking.ranks.add(answers=[_answer_message(answer) for answer in rank])


def _answer_message(answer: Answer) -> pb.Answer:
    if answer.generation_id:
        return pb.Answer(generation_id=answer.generation_id)
    return pb.Answer(text=answer.text)


def _prompt_message(prompt: InlinePrompt) -> pb.InlinePrompt:
    message = pb.InlinePrompt(task=prompt.task, episode_id=prompt.episode_id)
    if isinstance(prompt.input, str):
        message.text = prompt.input
    else:
        message.conversation.CopyFrom(_conversation_message(prompt.input))
    return message


def _set_input(message: pb.Generation, source: Input) -> None:
    match source:
        case str():
            message.text = source
        case Conversation():
            message.conversation.CopyFrom(_conversation_message(source))
        case _:
            message.token_ids.CopyFrom(generation_pb.TokenIds(ids=source))


def _conversation_message(conversation: Conversation) -> generation_pb.Conversation:
    pairs: Sequence[Sequence[str]] = [message_pair(m) for m in conversation.messages]
    return generation_pb.Conversation(
        messages=[generation_pb.Message(role=role, content=content) for role, content in pairs],
        documents=[
            generation_pb.Document(title=d.title, text=d.text) for d in conversation.documents
        ],
    )


def _served_by_message(served_by: ServedBy) -> generation_pb.ServedBy:
    return generation_pb.ServedBy(
        adapter=served_by.adapter,
        version=served_by.version,
        digest=served_by.digest,
        base_digest=served_by.base_digest,
        components=[
            generation_pb.ServedBy.Component(
                adapter=c.adapter, version=c.version, digest=c.digest, weight=c.weight
            )
            for c in served_by.components
        ],
    )
