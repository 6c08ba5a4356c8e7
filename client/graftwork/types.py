"""What calls take and return: frozen values, free of protobuf.

Log-probabilities are in nats and the model's own: before penalties, bias, constraint, temperature
and filters. Times are aware datetimes in UTC.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: "system", "user" or "assistant", and what it says."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """A retrieved passage that the answer may draw on."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns to render with the base's chat template, with retrieved context."""

    messages: Sequence[Message | Mapping[str, str]]
    documents: Sequence[Document] = ()


# A string is tokenized as it is; messages go through the base's chat template; integers are token
# ids.
Prompt = str | Sequence[int] | Sequence[Message | Mapping[str, str]] | Conversation


class FinishReason(enum.Enum):
    STOP = "stop"  # an end token, a stop token or string, or a complete constraint
    LENGTH = "length"  # max_tokens or the context length
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # a reason that this client is too old to know


class Origin(enum.Enum):
    """What a generation is made for."""

    USER = "user"
    ROLLOUT = "rollout"  # by a policy in training
    EVALUATION = "evaluation"
    UNKNOWN = "unknown"  # one that this client is too old to know


class Residency(enum.Enum):
    """The fastest tier that holds a version's weights."""

    DISK = "disk"
    HOST = "host"
    DEVICE = "device"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Component:
    """A version that took part in an answer, and what its change of the base was multiplied by."""

    adapter: str
    version: int
    digest: str
    weight: float

    def __str__(self) -> str:
        return f"{self.adapter}@{self.version}:{self.weight:g}"


@dataclass(frozen=True, slots=True)
class ServedBy:
    """The exact version that served a request; `adapter` is "" for the base and for several.

    `components` are there where adapters were combined or scaled; `digest` is over all of them.
    """

    adapter: str
    version: int
    digest: str
    base_digest: str
    components: tuple[Component, ...] = ()

    def __str__(self) -> str:
        if self.components:
            return " + ".join(map(str, self.components))
        return f"{self.adapter}@{self.version}" if self.adapter else "base"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_prompt_tokens: int  # of prompt_tokens, taken from the prefix cache
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Alternative:
    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    token: str
    logprob: float | None  # None for the first prompt token, which nothing predicts
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `generation_id` is what feedback refers to."""

    index: int
    generation_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None  # None while a stream has not come to its end
    stop_string: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """The answers to one request, in order of their index."""

    group_id: str
    served_by: ServedBy
    choices: tuple[Choice, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]
    usage: Usage | None  # None where a stream ended early
    create_time: datetime
    seed: int  # the request's, or the one that the server drew

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].text if self.choices else ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A part of one answer; the parts of one index in order make up its Choice."""

    index: int
    generation_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None  # set on the last part
    stop_string: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ClassScore:
    label: str
    logit: float
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """What a classifier or reward model says of prompt and completion."""

    classes: tuple[ClassScore, ...]
    reward: float | None  # the logit of the only label, where there is but one

    @property
    def label(self) -> str:
        """The likeliest."""
        return max(self.classes, key=lambda scored: scored.logit).label


@dataclass(frozen=True, slots=True)
class CompletionScore:
    logprobs: tuple[TokenLogprob, ...]
    total_logprob: float
    classification: Classification | None = None  # instead, from a classifier or reward model


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """One score for each completion, in order; one of the prompt where there are none."""

    served_by: ServedBy
    scores: tuple[CompletionScore, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Tokenization:
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    text: str  # what was tokenized: the text, or the conversation as the template rendered it


@dataclass(frozen=True, slots=True)
class Limits:
    max_context_tokens: int
    max_new_tokens: int
    default_max_tokens: int
    max_n: int
    max_logprobs: int
    max_stop_strings: int
    max_queued_requests: int
    max_adapter_rank: int
    max_device_adapters: int
    max_completions: int
    max_prompt_lookup_tokens: int


@dataclass(frozen=True, slots=True)
class Model:
    """The base model and the limits of a server."""

    name: str
    digest: str  # over the weights as they are in memory, quantized
    quantization: str
    device: str
    architecture: str
    num_parameters: int
    weight_bytes: int
    limits: Limits
    server_version: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """A name that points at versions."""

    name: str
    live_version: int  # 0 when none is live yet
    traffic_split: Mapping[int, int]  # percent by version; overrides live_version unless empty
    pinned: bool
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """An immutable, content-addressed set of weights."""

    adapter: str
    version: int
    digest: str
    method: str  # PEFT's name, such as "LORA"
    rank: int  # the largest, 0 for methods without one
    num_virtual_tokens: int
    num_parameters: int
    size_bytes: int
    base_digest: str
    base_verified: bool  # whether the files themselves name base_digest
    residency: Residency
    create_time: datetime
    source: str
    labels: tuple[str, ...] = ()  # of a classifier; one of a reward model
    ephemeral: bool = False  # gone with its owner's next version, or with the server

    @property
    def selector(self) -> str:
        """ "name@version", which names this version in any request."""
        return f"{self.adapter}@{self.version}"
