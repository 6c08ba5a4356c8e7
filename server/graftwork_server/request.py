"""What is asked of the engine. No torch here: the scheduler reads these."""

import enum
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The output is JSON that the schema, given as JSON text, accepts."""

    text: str


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole output matches the regular expression."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The output is one of the values."""

    values: tuple[str, ...]


Grammar = JsonSchema | Regex | Choice


class ConstraintFailedError(Exception):
    """A constraint cannot go on, as its grammar became too costly; ends its sequence only."""


class Constraint(Protocol):
    """The state of a grammar that the output of one sequence must match (constraints.py)."""

    def fill_bitmask(self, bitmask: memoryview) -> None:
        """Writes the allowed next tokens into int32 words, one bit each, lowest first.

        Raises ConstraintFailedError.
        """

    def accept(self, token_id: int) -> bool:
        """Advances over a sampled token; True when nothing may follow it.

        Raises ConstraintFailedError.
        """


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; validated at the edge (validate.py). Meanings as in the .proto."""

    seed: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # number of alternatives, None: no log-probabilities
    prompt_logprobs: int | None = None


class SequenceState(enum.Enum):
    WAITING = enum.auto()  # not in memory: new, or preempted
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class FinishReason(enum.Enum):
    STOP = enum.auto()
    LENGTH = enum.auto()
    CANCELLED = enum.auto()
    FAILED = enum.auto()


@dataclass(slots=True)
class Sequence:
    """One answer being generated. Only the scheduler changes state, num_computed_tokens, block_ids
    and slot; the engine appends output tokens through the scheduler's update."""

    sequence_id: int
    prompt_token_ids: tuple[int, ...]  # virtual tokens (negative ids) first
    sampling: SamplingParams
    max_tokens: int  # 0: nothing is sampled (Score)
    adapter_digest: str = ""  # "" for the base; keys the prefix cache and the device slot
    tenant: str = ""
    priority: int = 0  # higher goes first
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    arrival_time: float = 0.0  # seconds on the engine's clock
    deadline: float | None = None
    constraint: Constraint | None = None
    classifies: bool = False  # the adapter's classifier scores the last token; max_tokens is 0
    prompt_lookup_tokens: int = 0  # most tokens to draft in a step

    state: SequenceState = SequenceState.WAITING
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0  # tokens whose keys and values are in block_ids
    num_cached_tokens: int = 0  # of these, taken from the prefix cache at first admission
    block_ids: list[int] = field(default_factory=list)
    slot: int | None = None
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_virtual_tokens(self) -> int:
        count = 0
        for token_id in self.prompt_token_ids:
            if token_id >= 0:
                break
            count += 1
        return count

    @property
    def samples(self) -> bool:
        return self.max_tokens > 0

    @property
    def uses_prefix_cache(self) -> bool:
        """Log-probabilities of the prompt need every position computed."""
        return self.sampling.prompt_logprobs is None

    def token_ids(self, start: int, stop: int) -> tuple[int, ...]:
        """Tokens at positions [start, stop) of prompt and output together."""
        prompt = len(self.prompt_token_ids)
        head = self.prompt_token_ids[start:stop]
        tail = self.output_token_ids[max(start - prompt, 0) : max(stop - prompt, 0)]
        return (*head, *tail)
