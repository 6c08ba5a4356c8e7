"""What the scheduler tells the runner to do in one step, and what comes back. Integers and ids."""

from dataclasses import dataclass, field

BASE_SLOT = -1


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The share of one sequence in a step.

    The sequence's tokens are its virtual tokens (ids -1, -2, ..., -n: id -(i + 1) is row i of the
    adapter's virtual embeddings), then its prompt, then its output.
    """

    sequence_id: int
    slot: int  # device slot of its adapter, BASE_SLOT for the base
    token_ids: tuple[int, ...]  # computed in this step: the sequence's own, then drafted ones
    start_position: int  # position of token_ids[0]; equals num_computed_tokens before the step
    block_ids: tuple[int, ...]  # blocks of positions 0 .. start_position + len(token_ids) - 1
    samples: bool  # whether the last of its own tokens yields a new one
    wants_prompt_logprobs: bool = False
    classifies: bool = False  # whether the classifier's scores of the last token are wanted
    num_draft_tokens: int = 0  # guesses at what is sampled; only where it samples

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def draft(self) -> tuple[int, ...]:
        return self.token_ids[self.num_tokens - self.num_draft_tokens :]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass. Sequences of one slot stand together, base first, so that a slot's tokens
    are one segment."""

    sequences: tuple[ScheduledSequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(sequence.num_tokens for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability in nats, and the likeliest tokens at its position."""

    token_id: int
    logprob: float | None  # None where nothing predicts the token
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), likeliest first


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token that a step yielded for a sequence that samples."""

    sequence_id: int
    token_id: int
    logprob: TokenLogprob | None  # where the request asks for log-probabilities
    constraint_complete: bool = False  # nothing may follow this token under the constraint
    # Why the sequence cannot go on: token_id means nothing and the sequence ends as FAILED.
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    # Of each sequence that samples one, then one more for each drafted token that was right; those
    # of one sequence in order.
    sampled: tuple[SampledToken, ...]
    # For sequences that want prompt log-probabilities: those of the positions of this step that are
    # predicted by its tokens, by sequence id.
    prompt_logprobs: dict[int, tuple[TokenLogprob, ...]]
    # Scores by label of the sequences that are classified in this step, by sequence id.
    class_scores: dict[int, tuple[float, ...]] = field(default_factory=dict)
