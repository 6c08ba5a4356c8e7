"""Between feedback's values and the wire's messages, for the sync and the async client alike."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from graftwork import responses
from graftwork.errors import InvalidArgument
from graftwork.feedback_types import (
    Answer,
    Deletion,
    ExampleQuery,
    Feedback,
    FeedbackOptions,
    FeedbackQuery,
    FeedbackValue,
    GenerationQuery,
    InlinePrompt,
    LoggedGeneration,
    Preference,
    Ranking,
    Refusal,
    Source,
)
from graftwork.requests import ORIGINS, new_request_id, set_conversation, set_field
from graftwork.types import Conversation, Document, Message, Origin
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb

MAX_BATCH = 1000  # items
MAX_BATCH_BYTES = 4 * 2**20

_VALUES = (
    "thumbs",
    "reward",
    "label",
    "correction",
    "demonstration",
    "preference",
    "ranking",
    "remark",
)
_TARGETS = ("generation_id", "group_id", "episode_id", "prompt")
_SOURCES = {
    Source.HUMAN: pb.FEEDBACK_SOURCE_HUMAN,
    Source.MODEL: pb.FEEDBACK_SOURCE_MODEL,
    Source.CODE: pb.FEEDBACK_SOURCE_CODE,
    Source.IMPLICIT: pb.FEEDBACK_SOURCE_IMPLICIT,
}
_SOURCE_OF: dict[int, Source] = {number: source for source, number in _SOURCES.items()}
_ORIGIN_OF: dict[int, Origin] = {number: origin for origin, number in ORIGINS.items()}


def submit_request(options: FeedbackOptions) -> pb.SubmitFeedbackRequest:
    """Raises InvalidArgument for what the wire cannot carry, TypeError for an unknown option."""
    values: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    unknown = values.keys() - FeedbackOptions.__optional_keys__
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    request = pb.SubmitFeedbackRequest()
    set_field(request, "request_id", values.get("request_id") or new_request_id(), "request_id")
    message = request.feedback
    message.SetInParent()
    _set_target(message, values)
    given = [name for name in _VALUES if name in values]
    if len(given) > 1:
        raise InvalidArgument(f"feedback: {' and '.join(given)} exclude one another", field="value")
    for name in given:
        _set_value(message, name, values[name])
    for name in ("author", "comment", "supersedes"):
        if name in values:
            set_field(message, name, values[name], f"feedback.{name}")
    if "source" in values:
        message.source = _source(values["source"])
    return request


def batches(items: Iterable[FeedbackOptions]) -> Iterator[pb.BatchSubmitFeedbackRequest]:
    """As few requests as their sizes allow."""
    batch, size = pb.BatchSubmitFeedbackRequest(), 0
    for item in items:
        request = submit_request(item)
        length = request.ByteSize()
        if batch.requests and (len(batch.requests) == MAX_BATCH or size + length > MAX_BATCH_BYTES):
            yield batch
            batch, size = pb.BatchSubmitFeedbackRequest(), 0
        batch.requests.append(request)
        size += length
    if batch.requests:
        yield batch


def outcomes(response: pb.BatchSubmitFeedbackResponse) -> list[Feedback | Refusal]:
    found: list[Feedback | Refusal] = []
    for result in response.results:
        if result.HasField("feedback"):
            found.append(feedback(result.feedback))
        else:
            error = result.error
            found.append(Refusal(error.code, error.reason, error.message, error.field))
    return found


def list_request(query: FeedbackQuery, page_size: int) -> pb.ListFeedbackRequest:
    values = _query(query, FeedbackQuery.__optional_keys__)
    wanted = pb.FeedbackFilter(sources=[_source(s) for s in values.pop("sources", ())])
    _set_query(wanted, values)
    return pb.ListFeedbackRequest(filter=wanted, page_size=page_size)


def generations_request(query: GenerationQuery, page_size: int) -> pb.ListGenerationsRequest:
    values = _query(query, GenerationQuery.__optional_keys__)
    wanted = pb.GenerationFilter(origins=[ORIGINS[o] for o in values.pop("origins", ())])
    _set_query(wanted, values)
    return pb.ListGenerationsRequest(filter=wanted, page_size=page_size)


def export_request(
    format_name: str, query: ExampleQuery, scrub: bool | None
) -> pb.ExportDatasetRequest:
    values = _query(query, ExampleQuery.__optional_keys__)
    selection = pb.ExampleSelection(
        format=format_name,
        origins=[ORIGINS[o] for o in values.pop("origins", ())],
        sources=[_source(s) for s in values.pop("sources", ())],
    )
    _set_query(selection, values)
    request = pb.ExportDatasetRequest(selection=selection)
    if scrub is not None:
        request.scrub = scrub
    return request


def feedback(message: pb.Feedback) -> Feedback:
    kind = message.WhichOneof("value") or ""
    target = message.WhichOneof("target")
    return Feedback(
        id=message.id,
        kind=kind,
        value=_value(message, kind),
        source=_SOURCE_OF.get(message.source, Source.UNKNOWN),
        author=message.author,
        comment=message.comment,
        supersedes=message.supersedes,
        create_time=responses.time(message.create_time),
        generation_id=message.generation_id,
        group_id=message.group_id,
        episode_id=message.episode_id,
        prompt=_prompt(message.prompt) if target == "prompt" else None,
    )


def generation(message: pb.Generation) -> LoggedGeneration:
    sampling = {field.name: value for field, value in message.sampling.ListFields()}
    if message.sampling.logit_bias:
        sampling["logit_bias"] = dict(message.sampling.logit_bias)
    source: str | Conversation | tuple[int, ...] = message.text
    match message.WhichOneof("input"):
        case "conversation":
            source = _conversation(message.conversation)
        case "token_ids":
            source = tuple(message.token_ids.ids)
    return LoggedGeneration(
        id=message.id,
        group_id=message.group_id,
        episode_id=message.episode_id,
        task=message.task,
        origin=_ORIGIN_OF.get(message.origin, Origin.UNKNOWN),
        served_by=responses.served_by(message.served_by),
        input=source,
        completion=message.completion,
        prompt_token_ids=tuple(message.prompt_token_ids),
        completion_token_ids=tuple(message.completion_token_ids),
        completion_logprobs=tuple(message.completion_logprobs),
        sampling=sampling,
        finish_reason=responses.finish_reason(message.finish_reason),
        create_time=responses.time(message.create_time),
        finish_time=responses.time(message.finish_time),
        template_hash=message.template_hash,
    )


def deletion(message: pb.DeleteGenerationsResponse) -> Deletion:
    return Deletion(message.num_generations, message.num_feedback, tuple(message.trained_versions))


def _set_target(message: pb.Feedback, values: Mapping[str, Any]) -> None:
    if "prompt" not in values:
        given = [name for name in _TARGETS if name in values]
        if len(given) > 1:
            raise InvalidArgument(
                f"feedback: {' and '.join(given)} exclude one another", field="target"
            )
        for name in given:
            set_field(message, name, values[name], f"feedback.{name}")
        if "task" in values:
            raise InvalidArgument("task: goes with a prompt only", field="task")
        return
    for name in ("generation_id", "group_id"):
        if name in values:
            raise InvalidArgument(f"feedback: prompt and {name} exclude one another", field=name)
    prompt, given_prompt = message.prompt, values["prompt"]
    prompt.SetInParent()
    if isinstance(given_prompt, str):
        set_field(prompt, "text", given_prompt, "feedback.prompt.text")
    else:
        conversation = given_prompt
        if not isinstance(conversation, Conversation):
            conversation = Conversation(given_prompt)
        set_conversation(prompt.conversation, conversation)
    for name in ("task", "episode_id"):
        if name in values:
            set_field(prompt, name, values[name], f"feedback.prompt.{name}")


def _set_value(message: pb.Feedback, name: str, value: Any) -> None:
    if name == "thumbs":
        message.thumbs = pb.THUMBS_UP if value else pb.THUMBS_DOWN
    elif isinstance(value, Preference):
        preference = message.preference
        preference.chosen.CopyFrom(_answer_message(value.chosen))
        preference.rejected.CopyFrom(_answer_message(value.rejected))
        preference.tie = value.tie
        if value.margin is not None:
            set_field(preference, "margin", value.margin, "feedback.preference.margin")
    elif isinstance(value, Ranking):
        message.ranking.SetInParent()
        for rank in value.ranks:
            message.ranking.ranks.add(answers=[_answer_message(answer) for answer in rank])
    else:
        set_field(message, name, value, f"feedback.{name}")


def _answer_message(answer: Answer) -> pb.Answer:
    if answer.generation_id:
        return pb.Answer(generation_id=answer.generation_id)
    return pb.Answer(text=answer.text)


def _source(source: Source) -> pb.FeedbackSource:
    if source not in _SOURCES:
        raise InvalidArgument(f"source: cannot be {source}", field="source")
    return _SOURCES[source]


def _query(query: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    values = {key: value for key, value in query.items() if value is not None}
    if unknown := values.keys() - known:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    return values


def _set_query(
    wanted: pb.FeedbackFilter | pb.GenerationFilter | pb.ExampleSelection,
    values: Mapping[str, Any],
) -> None:
    for name, value in values.items():
        if name in ("after", "before"):
            getattr(wanted, name).CopyFrom(_timestamp(name, value))
        else:
            set_field(wanted, name, value, name)


def _timestamp(name: str, time: datetime) -> Timestamp:
    if time.tzinfo is None:
        raise InvalidArgument(f"{name}: a time with a time zone is wanted", field=name)
    stamp = Timestamp()
    stamp.FromDatetime(time.astimezone(UTC))
    return stamp


def _value(message: pb.Feedback, kind: str) -> FeedbackValue:
    if kind == "thumbs":
        return message.thumbs == pb.THUMBS_UP
    if kind == "preference":
        sent = message.preference
        margin = sent.margin if sent.HasField("margin") else None
        return Preference(_answer(sent.chosen), _answer(sent.rejected), margin, sent.tie)
    if kind == "ranking":
        return Ranking(
            tuple(tuple(_answer(a) for a in rank.answers) for rank in message.ranking.ranks)
        )
    value: float | str = getattr(message, kind) if kind else ""
    return value


def _answer(message: pb.Answer) -> Answer:
    return Answer(message.text, message.generation_id)


def _prompt(message: pb.InlinePrompt) -> InlinePrompt:
    source: str | Conversation = message.text
    if message.WhichOneof("input") == "conversation":
        source = _conversation(message.conversation)
    return InlinePrompt(source, message.task, message.episode_id)


def _conversation(message: generation_pb.Conversation) -> Conversation:
    return Conversation(
        tuple(Message(m.role, m.content) for m in message.messages),
        tuple(Document(d.text, d.title) for d in message.documents),
    )
