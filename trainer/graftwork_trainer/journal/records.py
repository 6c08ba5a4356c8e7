"""What the journal holds, as frozen values. Times are Unix nanoseconds."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from graftwork.types import Conversation, ServedBy

Item = TypeVar("Item")


class Origin(enum.StrEnum):
    USER = "user"
    ROLLOUT = "rollout"
    EVALUATION = "evaluation"


class Source(enum.StrEnum):
    HUMAN = "human"
    MODEL = "model"
    CODE = "code"
    IMPLICIT = "implicit"


class Kind(enum.StrEnum):
    """The names are those of the fields of the wire's Feedback."""

    THUMBS = "thumbs"
    REWARD = "reward"
    LABEL = "label"
    CORRECTION = "correction"
    DEMONSTRATION = "demonstration"
    PREFERENCE = "preference"
    RANKING = "ranking"
    REMARK = "remark"


class TargetKind(enum.StrEnum):
    GENERATION = "generation"
    GROUP = "group"
    EPISODE = "episode"
    PROMPT = "prompt"


# What a request gave: a text, a conversation, or token ids.
Input = str | Conversation | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    id: str
    group_id: str
    episode_id: str
    task: str
    origin: Origin
    served_by: ServedBy
    input: Input
    completion: str
    prompt_token_ids: tuple[int, ...]  # without virtual tokens
    completion_token_ids: tuple[int, ...]
    completion_logprobs: tuple[float, ...]  # nats, under the model itself
    sampling: Mapping[str, Any]  # the set fields of the wire's SamplingParams
    finish_reason: str  # "stop", "length" or "cancelled"
    template_hash: str
    create_time_ns: int
    finish_time_ns: int


@dataclass(frozen=True, slots=True)
class InlinePrompt:
    """A prompt that the journal holds no generation of. A conversation that ends with the assistant
    brings along the answer that a thumbs or reward judges."""

    input: str | Conversation
    task: str = ""
    episode_id: str = ""

    @property
    def answer(self) -> str | None:
        """What the assistant said last, where that ends the conversation."""
        if isinstance(self.input, str):
            return None
        last = self.input.messages[-1]
        role, content = (
            (last["role"], last["content"])
            if isinstance(last, Mapping)
            else (last.role, last.content)
        )
        return content if role == "assistant" else None


@dataclass(frozen=True, slots=True)
class Target:
    """What feedback is about: an id, or an inline prompt."""

    kind: TargetKind
    id: str = ""  # "" for a prompt
    prompt: InlinePrompt | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the two is set."""

    generation_id: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Thumbs:
    up: bool


@dataclass(frozen=True, slots=True)
class Reward:
    value: float  # finite


@dataclass(frozen=True, slots=True)
class Label:
    label: str


@dataclass(frozen=True, slots=True)
class Correction:
    text: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    text: str


@dataclass(frozen=True, slots=True)
class Preference:
    chosen: Answer
    rejected: Answer
    margin: float | None = None
    tie: bool = False


@dataclass(frozen=True, slots=True)
class Ranking:
    ranks: tuple[tuple[Answer, ...], ...]  # best first; answers of one rank are equally good


@dataclass(frozen=True, slots=True)
class Remark:
    text: str


Value = Thumbs | Reward | Label | Correction | Demonstration | Preference | Ranking | Remark

_KINDS: dict[type, Kind] = {
    Thumbs: Kind.THUMBS,
    Reward: Kind.REWARD,
    Label: Kind.LABEL,
    Correction: Kind.CORRECTION,
    Demonstration: Kind.DEMONSTRATION,
    Preference: Kind.PREFERENCE,
    Ranking: Kind.RANKING,
    Remark: Kind.REMARK,
}


@dataclass(frozen=True, slots=True)
class Draft:
    """Feedback as it was submitted, its own fields checked and nothing else yet."""

    target: Target
    value: Value
    source: Source = Source.HUMAN
    author: str = ""
    comment: str = ""
    supersedes: str = ""
    request_id: str = ""
    fingerprint: str = ""  # of all that came with the request_id

    @property
    def kind(self) -> Kind:
        return _KINDS[type(self.value)]

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Those that it compares."""
        return answers_of(self.value)


@dataclass(frozen=True, slots=True)
class Feedback:
    id: str
    target: Target
    value: Value
    source: Source
    author: str
    comment: str
    supersedes: str
    superseded_by: str  # "" while it counts
    task: str  # of the generation, group or prompt; of an episode where it has but one
    group_id: str  # of the generation or group that it is about, else ""
    episode_id: str
    create_time_ns: int

    @property
    def kind(self) -> Kind:
        return _KINDS[type(self.value)]

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Those that it compares."""
        return answers_of(self.value)


def answers_of(value: Value) -> tuple[Answer, ...]:
    match value:
        case Preference(chosen, rejected):
            return (chosen, rejected)
        case Ranking(ranks):
            return tuple(answer for rank in ranks for answer in rank)
        case _:
            return ()


@dataclass(frozen=True, slots=True)
class FeedbackFilter:
    """What is empty or None allows everything."""

    generation_id: str = ""
    group_id: str = ""
    episode_id: str = ""
    tasks: Sequence[str] = ()
    author: str = ""
    kinds: Sequence[Kind] = ()
    sources: Sequence[Source] = ()
    after_ns: int | None = None  # inclusive
    before_ns: int | None = None  # exclusive
    include_superseded: bool = False


@dataclass(frozen=True, slots=True)
class GenerationFilter:
    """What is empty or None allows everything."""

    ids: Sequence[str] = ()
    group_id: str = ""
    episode_id: str = ""
    task: str = ""
    adapter: str | None = None  # None any, "" the base alone
    version: int | None = None
    origins: Sequence[Origin] = ()
    after_ns: int | None = None  # inclusive
    before_ns: int | None = None  # exclusive
    with_feedback: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A part of a list, newest first."""

    items: tuple[Item, ...] = field(default=())
    next_page_token: str = ""  # "" on the last page


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion took away, and the versions that had learned from it."""

    num_generations: int
    num_feedback: int
    trained_versions: tuple[str, ...] = ()  # "name@version", sorted
    items: frozenset[str] = frozenset()  # ids of generations and feedback
