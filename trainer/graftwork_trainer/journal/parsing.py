"""Turns feedback off the wire into drafts, or refuses it by the name of the field at fault.

What depends on the journal is judged by judge.py.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from graftwork.status import InvalidFieldError
from graftwork.types import Conversation, Document, Message
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork_adapters.messages import check_request_id
from graftwork_adapters.selector import parse_name

from graftwork_trainer.journal.messages import SOURCES
from graftwork_trainer.journal.records import (
    Answer,
    Correction,
    Demonstration,
    Draft,
    InlinePrompt,
    Kind,
    Label,
    Preference,
    Ranking,
    Remark,
    Reward,
    Target,
    TargetKind,
    Thumbs,
    Value,
)

MAX_TEXT_CHARACTERS = 1_000_000
MAX_ID_CHARACTERS = 256
MAX_ANSWERS = 64
ROLES = ("system", "user", "assistant")

# What can be said of what. Thumbs and rewards of a prompt need a conversation with its answer.
_FITTING = {
    TargetKind.GENERATION: frozenset(Kind),
    TargetKind.GROUP: frozenset(Kind) - {Kind.CORRECTION},
    TargetKind.EPISODE: frozenset({Kind.THUMBS, Kind.REWARD, Kind.LABEL, Kind.REMARK}),
    TargetKind.PROMPT: frozenset(Kind),
}
_NEEDS_ANSWER = frozenset({Kind.THUMBS, Kind.REWARD, Kind.CORRECTION})


def parse_submission(request: pb.SubmitFeedbackRequest) -> Draft:
    """Raises InvalidFieldError."""
    if not request.HasField("feedback"):
        raise InvalidFieldError("feedback", "is missing")
    sent = request.feedback
    request_id = check_request_id(request.request_id).lower()
    if sent.source not in SOURCES:
        raise InvalidFieldError("feedback.source", f"{sent.source} is no source that is known")
    draft = Draft(
        target=_target(sent),
        value=_value(sent),
        source=SOURCES[sent.source],
        author=_plain("feedback.author", sent.author, MAX_ID_CHARACTERS),
        comment=_plain("feedback.comment", sent.comment, MAX_TEXT_CHARACTERS),
        supersedes=_plain("feedback.supersedes", sent.supersedes, MAX_ID_CHARACTERS),
        request_id=request_id,
        fingerprint=_fingerprint(request) if request_id else "",
    )
    _check_fit(draft)
    return draft


def _check_fit(draft: Draft) -> None:
    kind, target = draft.kind, draft.target
    if kind not in _FITTING[target.kind]:
        fitting = ", ".join(k.value for k in Kind if k in _FITTING[target.kind])
        raise InvalidFieldError(
            f"feedback.{kind}", f"cannot be given on a whole {target.kind}: {fitting} can"
        )
    if target.prompt is not None and kind in _NEEDS_ANSWER and target.prompt.answer is None:
        raise InvalidFieldError(
            f"feedback.{kind}",
            "judges an answer, and the prompt has none: end its conversation with the "
            "assistant's message",
        )


def _target(sent: pb.Feedback) -> Target:
    match sent.WhichOneof("target"):
        case "generation_id":
            _check_given("feedback.generation_id", sent.generation_id)
            return Target(TargetKind.GENERATION, sent.generation_id)
        case "group_id":
            _check_given("feedback.group_id", sent.group_id)
            return Target(TargetKind.GROUP, sent.group_id)
        case "episode_id":
            _check_given("feedback.episode_id", sent.episode_id)
            return Target(TargetKind.EPISODE, sent.episode_id)
        case "prompt":
            return Target(TargetKind.PROMPT, prompt=_prompt(sent.prompt))
        case _:
            raise InvalidFieldError(
                "feedback.target",
                "is missing: give a generation_id, group_id, episode_id or prompt",
            )


def _prompt(sent: pb.InlinePrompt) -> InlinePrompt:
    if sent.task:
        parse_name(sent.task, field="feedback.prompt.task")
    episode_id = _plain("feedback.prompt.episode_id", sent.episode_id, MAX_ID_CHARACTERS)
    match sent.WhichOneof("input"):
        case "text":
            text = _text("feedback.prompt.text", sent.text)
            return InlinePrompt(text, sent.task, episode_id)
        case "conversation":
            conversation = _conversation(sent.conversation)
            return InlinePrompt(conversation, sent.task, episode_id)
        case _:
            raise InvalidFieldError(
                "feedback.prompt.input", "is missing: give a conversation or text"
            )


def _conversation(sent: generation_pb.Conversation) -> Conversation:
    field = "feedback.prompt.conversation"
    if not sent.messages:
        raise InvalidFieldError(f"{field}.messages", "is empty: give at least one message")
    for index, message in enumerate(sent.messages):
        if message.role not in ROLES:
            known = ", ".join(repr(role) for role in ROLES)
            raise InvalidFieldError(
                f"{field}.messages[{index}].role",
                f"is {message.role[:40]!r}, and must be one of {known}",
            )
        _check_length(f"{field}.messages[{index}].content", message.content, MAX_TEXT_CHARACTERS)
    for index, document in enumerate(sent.documents):
        _text(f"{field}.documents[{index}].text", document.text)
    return Conversation(
        tuple(Message(m.role, m.content) for m in sent.messages),
        tuple(Document(d.text, d.title) for d in sent.documents),
    )


_TEXTS: dict[str, Callable[[str], Value]] = {
    "label": Label,
    "correction": Correction,
    "demonstration": Demonstration,
    "remark": Remark,
}


def _value(sent: pb.Feedback) -> Value:
    kind = sent.WhichOneof("value")
    match kind:
        case None:
            raise InvalidFieldError("feedback.value", f"is missing: give one of {', '.join(Kind)}")
        case "thumbs":
            value = _thumbs(sent.thumbs)
        case "reward":
            value = _reward(sent.reward)
        case "preference":
            value = _preference(sent.preference)
        case "ranking":
            value = _ranking(sent.ranking)
        case _:
            value = _TEXTS[kind](_text(f"feedback.{kind}", getattr(sent, kind)))
    return value


def _thumbs(sent: int) -> Value:
    if sent not in (pb.THUMBS_UP, pb.THUMBS_DOWN):
        raise InvalidFieldError("feedback.thumbs", "must be THUMBS_UP or THUMBS_DOWN")
    return Thumbs(sent == pb.THUMBS_UP)


def _reward(sent: float) -> Value:
    if not math.isfinite(sent):
        raise InvalidFieldError("feedback.reward", f"is {sent}, and must be a finite number")
    return Reward(sent)


def _preference(sent: pb.Preference) -> Preference:
    field = "feedback.preference"
    margin = sent.margin if sent.HasField("margin") else None
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        raise InvalidFieldError(
            f"{field}.margin", f"is {margin}, and must be a finite number of at least 0"
        )
    if sent.tie and margin:
        raise InvalidFieldError(f"{field}.margin", "cannot go with a tie: leave one out")
    chosen = _answer(f"{field}.chosen", sent.chosen)
    rejected = _answer(f"{field}.rejected", sent.rejected)
    if chosen == rejected:
        raise InvalidFieldError(f"{field}.rejected", "is the same answer as the chosen one")
    return Preference(chosen, rejected, margin, sent.tie)


def _ranking(sent: pb.Ranking) -> Ranking:
    field = "feedback.ranking.ranks"
    ranks: list[tuple[Answer, ...]] = []
    seen: set[Answer] = set()
    for index, rank in enumerate(sent.ranks):
        if not rank.answers:
            raise InvalidFieldError(f"{field}[{index}].answers", "is empty")
        answers: list[Answer] = []
        for place, one in enumerate(rank.answers):
            path = f"{field}[{index}].answers[{place}]"
            answer = _answer(path, one)
            if answer in seen:
                raise InvalidFieldError(path, "is ranked already")
            seen.add(answer)
            answers.append(answer)
        ranks.append(tuple(answers))
    if not 2 <= len(seen) <= MAX_ANSWERS:
        raise InvalidFieldError(field, f"has {len(seen)} answers, and must have 2 to {MAX_ANSWERS}")
    return Ranking(tuple(ranks))


def _answer(field: str, sent: pb.Answer) -> Answer:
    match sent.WhichOneof("answer"):
        case "generation_id":
            _check_given(f"{field}.generation_id", sent.generation_id)
            return Answer(generation_id=sent.generation_id)
        case "text":
            return Answer(text=_text(f"{field}.text", sent.text))
        case _:
            raise InvalidFieldError(field, "is missing: give a generation_id or text")


def _check_given(field: str, value: str) -> None:
    if not value:
        raise InvalidFieldError(field, "is empty")
    _plain(field, value, MAX_ID_CHARACTERS)


def _text(field: str, value: str) -> str:
    if not value.strip():
        raise InvalidFieldError(field, "is empty")
    _check_length(field, value, MAX_TEXT_CHARACTERS)
    return value


def _plain(field: str, value: str, most: int) -> str:
    """For columns of text, which in PostgreSQL cannot hold a null character."""
    if "\0" in value:
        raise InvalidFieldError(field, "has a null character in it")
    _check_length(field, value, most)
    return value


def _check_length(field: str, value: Sequence[Any], most: int) -> None:
    if len(value) > most:
        raise InvalidFieldError(
            field, f"has {len(value)} characters, and at most {most} are allowed"
        )


def _fingerprint(request: pb.SubmitFeedbackRequest) -> str:
    sent = request.feedback.SerializeToString(deterministic=True)
    return hashlib.sha256(sent).hexdigest()
