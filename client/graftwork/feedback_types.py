"""What the calls of `client.feedback` take and return: frozen values, free of protobuf."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from graftwork.types import Conversation, FinishReason, Message, Origin, ServedBy


class Source(enum.Enum):
    """Who or what gave feedback."""

    HUMAN = "human"
    MODEL = "model"  # one that judges
    CODE = "code"  # a program that checks
    IMPLICIT = "implicit"  # drawn from behaviour, such as a copied or an abandoned answer
    UNKNOWN = "unknown"  # one that this client is too old to know


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the answers that are compared: a text, or a generation of the journal."""

    text: str = ""
    generation_id: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """Which of two answers is better, by how much on the giver's own scale; or that neither is."""

    chosen: Answer
    rejected: Answer
    margin: float | None = None
    tie: bool = False


@dataclass(frozen=True, slots=True)
class Ranking:
    """Answers to one prompt, best first; those of one rank are equally good."""

    ranks: Sequence[Sequence[Answer]]


# A string is a prompt as it is; messages are a conversation. One that ends with the assistant
# brings the answer that thumbs, a reward or a correction is about.
InlineInput = str | Sequence[Message | Mapping[str, str]] | Conversation


@dataclass(frozen=True, slots=True)
class InlinePrompt:
    """A prompt that the journal holds no generation of."""

    input: str | Conversation
    task: str = ""
    episode_id: str = ""


class FeedbackOptions(TypedDict, total=False):
    """One item of feedback: exactly one target and one value."""

    # Targets. With a prompt, `episode_id` and `task` are the prompt's.
    generation_id: str
    group_id: str  # all answers of one request
    episode_id: str  # a whole conversation or task
    prompt: InlineInput
    task: str
    # Values.
    thumbs: bool  # True is up
    reward: float  # finite; higher is better
    label: str  # the right class
    correction: str  # what the generation should have said
    demonstration: str  # what to say to the prompt, whatever was generated
    preference: Preference
    ranking: Ranking
    remark: str  # for people
    # Beside them.
    source: Source  # default: a human
    author: str  # an opaque id of the caller's
    comment: str
    supersedes: str  # the id of this author's earlier feedback on this target, to replace it
    request_id: str  # a UUID: repeated with the same one, the first answer comes back


FeedbackValue = bool | float | str | Preference | Ranking


@dataclass(frozen=True, slots=True)
class Feedback:
    """Feedback as the journal keeps it. One of the targets is set."""

    id: str
    kind: str  # the name of its value among `FeedbackOptions`
    value: FeedbackValue
    source: Source
    author: str
    comment: str
    supersedes: str
    create_time: datetime
    generation_id: str = ""
    group_id: str = ""
    episode_id: str = ""
    prompt: InlinePrompt | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one item of a batch was not taken."""

    code: int  # a google.rpc.Code
    reason: str
    message: str
    field: str  # within the item, "" where none is at fault


@dataclass(frozen=True, slots=True)
class LoggedGeneration:
    """A generation as the journal keeps it."""

    id: str
    group_id: str
    episode_id: str
    task: str
    origin: Origin
    served_by: ServedBy
    input: str | Conversation | tuple[int, ...]
    completion: str
    prompt_token_ids: tuple[int, ...]  # as the model saw them, virtual tokens left out
    completion_token_ids: tuple[int, ...]
    completion_logprobs: tuple[float, ...]  # nats, one for each completion token
    sampling: Mapping[str, float | int | Mapping[int, float]]
    finish_reason: FinishReason | None
    create_time: datetime
    finish_time: datetime
    template_hash: str


@dataclass(frozen=True, slots=True)
class Deletion:
    num_generations: int
    num_feedback: int
    trained_versions: tuple[str, ...]  # "name@version" of adapters that learned from them


class FeedbackQuery(TypedDict, total=False):
    """Which feedback to list; what is left out allows everything."""

    generation_id: str
    group_id: str
    episode_id: str
    task: str
    author: str
    kinds: Sequence[str]
    sources: Sequence[Source]
    after: datetime  # from this time on; aware
    before: datetime  # up to, but not at, this time; aware
    include_superseded: bool


class GenerationQuery(TypedDict, total=False):
    """Which generations to list; what is left out allows everything."""

    ids: Sequence[str]
    group_id: str
    episode_id: str
    task: str
    adapter: str  # "base" the base alone, "name" any version, "name@version" one
    origins: Sequence[Origin]
    after: datetime  # begun from this time on; aware
    before: datetime
    with_feedback: bool


class ExampleQuery(TypedDict, total=False):
    """Which examples to export."""

    tasks: Sequence[str]  # default: all
    origins: Sequence[Origin]  # default: users
    sources: Sequence[Source]  # default: all
    after: datetime
    before: datetime
    reward_threshold: float  # for "unpaired": rewards at or above it count as thumbs up
