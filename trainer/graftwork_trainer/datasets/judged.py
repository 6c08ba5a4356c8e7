"""Feedback with what it is about: the prompt that was asked, and the answers that it judges."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, TypeAlias

from graftwork.v1 import feedback_service_pb2, generation_service_pb2
from graftwork.v1.feedback_service_pb2 import Feedback, Generation

from graftwork_trainer.datasets import prompts

# Feedback that no other supersedes, with every generation that it is about: the one or those of
# the group or episode that it targets, and those that its answers name. Of a generation are read
# `id`, `group_id`, `episode_id`, `task`, `input`, `completion` and `finish_reason`.
Judged: TypeAlias = tuple[Feedback, Sequence[Generation]]

_SOURCES = {
    feedback_service_pb2.FEEDBACK_SOURCE_UNSPECIFIED: "human",
    feedback_service_pb2.FEEDBACK_SOURCE_HUMAN: "human",
    feedback_service_pb2.FEEDBACK_SOURCE_MODEL: "model",
    feedback_service_pb2.FEEDBACK_SOURCE_CODE: "code",
    feedback_service_pb2.FEEDBACK_SOURCE_IMPLICIT: "implicit",
}
_JUDGES_ANSWER = {"thumbs", "reward", "correction"}
_COMPLETE = {
    generation_service_pb2.FINISH_REASON_UNSPECIFIED,
    generation_service_pb2.FINISH_REASON_STOP,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked; without a generation for inline prompts."""

    prompt: prompts.Prompt
    task: str
    episode_id: str
    generation: Generation | None = None
    answer: "Answer | None" = None  # the generation's, or what ends an inline conversation


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    generation: Generation | None = None

    @property
    def truncated(self) -> bool:
        return self.generation is not None and self.generation.finish_reason not in _COMPLETE


class Nothing(Exception):
    """Feedback gives no example; the reason is the argument."""


@dataclass(frozen=True, slots=True)
class Item:
    feedback: Feedback
    kind: str
    asked: tuple[Asked, ...]  # one per generation that is targeted; empty where none is left
    generations: dict[str, Generation]

    @classmethod
    def of(cls, feedback: Feedback, generations: Sequence[Generation]) -> "Item":
        kind = feedback.WhichOneof("value") or ""
        by_id = {generation.id: generation for generation in generations}
        return cls(feedback, kind, tuple(_asked(feedback, by_id)), by_id)

    def one(self) -> Asked:
        """What was asked, where that is one thing. Raises Nothing."""
        if not self.asked:
            raise Nothing("no_prompt")
        if len({(asked.prompt, asked.task) for asked in self.asked}) > 1:
            raise Nothing("several_prompts")
        return self.asked[0]

    def answered(self) -> list[tuple[Asked, Answer]]:
        """Each targeted generation, or what ends an inline conversation. Raises Nothing."""
        if not self.asked:
            raise Nothing("no_prompt")
        answers = [(asked, asked.answer) for asked in self.asked if asked.answer is not None]
        if not answers:
            raise Nothing("no_answer")
        return answers

    def common(self, asked: Asked, answers: Iterable[Answer]) -> dict[str, Any]:
        """The fields of `Example` itself."""
        feedback, used = self.feedback, [a for a in answers if a.generation is not None]
        ids = dict.fromkeys(a.generation.id for a in used if a.generation is not None)
        if asked.generation is not None and not ids:
            ids = {asked.generation.id: None}
        return {
            "id": feedback.id,
            "task": asked.task,
            "prompt": asked.prompt,
            "create_time": feedback.create_time.ToDatetime(tzinfo=UTC),
            "source": _SOURCES[feedback.source],
            "author": feedback.author,
            "episode_id": asked.episode_id,
            "group_id": "" if asked.generation is None else asked.generation.group_id,
            "generation_ids": tuple(ids),
            "feedback_ids": (feedback.id,),
            "truncated": any(a.truncated for a in used),
        }

    def answer(self, sent: feedback_service_pb2.Answer) -> Answer:
        """Raises Nothing where the generation that it names is gone."""
        if sent.WhichOneof("answer") == "text":
            return Answer(sent.text)
        if (generation := self.generations.get(sent.generation_id)) is None:
            raise Nothing("no_answer")
        return Answer(generation.completion, generation)

    def ranks(self) -> list[list[Answer]]:
        """Answers, best first, ties together. Raises Nothing."""
        if self.kind == "preference":
            sides = [self.feedback.preference.chosen, self.feedback.preference.rejected]
            sent = [sides] if self.feedback.preference.tie else [[side] for side in sides]
        else:
            sent = [list(rank.answers) for rank in self.feedback.ranking.ranks]
        return [[self.answer(answer) for answer in rank] for rank in sent]


def _asked(feedback: Feedback, by_id: dict[str, Generation]) -> Iterator[Asked]:
    target = feedback.WhichOneof("target")
    if target == "prompt":
        prompt, answer = prompts.of_input(feedback.prompt), None
        if feedback.WhichOneof("value") in _JUDGES_ANSWER and prompt is not None:
            prompt, answer = _without_answer(prompt)
        if prompt is not None:
            where = feedback.prompt
            yield Asked(prompt, where.task, where.episode_id, answer=answer)
        return
    for generation in by_id.values():
        hit = {
            "generation_id": generation.id == feedback.generation_id,
            "group_id": generation.group_id == feedback.group_id,
            "episode_id": generation.episode_id == feedback.episode_id,
        }[target or "generation_id"]
        if hit and (prompt := prompts.of_input(generation)) is not None:
            answer = Answer(generation.completion, generation)
            yield Asked(prompt, generation.task, generation.episode_id, generation, answer)


def _without_answer(prompt: prompts.Prompt) -> tuple[prompts.Prompt, Answer | None]:
    """A conversation up to the assistant's last message, and that message."""
    match prompt:
        case prompts.Conversation((*before, last), documents) if last.role == "assistant":
            return prompts.Conversation(tuple(before), documents), Answer(last.content)
    return prompt, None
