"""What became of sequences: what the scheduler tells the engine, to be published."""

import enum
from dataclasses import dataclass

from graftwork.status import WireError

from graftwork_server.plan import TokenLogprob
from graftwork_server.request import FinishReason


class FinishCause(enum.Enum):
    """Why a sequence finished, finer than its FinishReason."""

    STOP_TOKEN = enum.auto()  # the last token is a stop token
    CONSTRAINT = enum.auto()  # nothing may follow under the constraint
    MAX_TOKENS = enum.auto()  # for max_tokens 0: the prompt is computed
    CONTEXT = enum.auto()  # the context is full
    DEADLINE = enum.auto()
    ABORTED = enum.auto()  # by the engine: a stop string, a cancellation, a failure


@dataclass(frozen=True, slots=True)
class PromptLogprobsEvent:
    """Log-probabilities of further prompt tokens. Events of a sequence come in order of position,
    each position once."""

    sequence_id: int
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class ClassScoresEvent:
    """What the adapter's classifier says of the last token, by label."""

    sequence_id: int
    scores: tuple[float, ...]  # logits


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A sampled token."""

    sequence_id: int
    token_id: int
    logprob: TokenLogprob | None
    num_cached_tokens: int  # prompt tokens that the prefix cache gave


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """The last event of a sequence. It holds no block and no slot any more."""

    sequence_id: int
    reason: FinishReason
    cause: FinishCause
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The last event of a sequence that ended with an error: its adapter cannot be loaded, or a
    step raised. Made by the engine."""

    sequence_id: int
    error: WireError


Event = PromptLogprobsEvent | ClassScoresEvent | TokenEvent | FinishedEvent | FailedEvent


def is_final(event: Event) -> bool:
    return isinstance(event, FinishedEvent | FailedEvent)
