"""A runner without a model. Its next token is a function of adapter and position, and it keeps a
key/value store in which it writes what each position holds, so that it notices any read of a block
that another sequence, adapter or prompt has written."""

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping

from graftwork_server.plan import (
    BASE_SLOT,
    SampledToken,
    ScheduledSequence,
    StepPlan,
    StepResult,
    TokenLogprob,
)
from graftwork_server.request import FinishReason, Sequence, SequenceState

VOCABULARY = 23


def next_token(digest: str, position: int) -> int:
    """What follows the token at `position`, for every prompt: a cycle of three tokens, so that
    drafts are often right, with another one now and then, so that they are often wrong."""
    place = position if position % 7 == 3 else -(position % 3)
    return zlib.crc32(f"{digest}/{place}".encode()) % VOCABULARY


def expected_output(sequence: Sequence, max_context: int) -> tuple[list[int], FinishReason]:
    """The whole answer that the fake gives, by the rules of the wire contract."""
    output: list[int] = []
    position = len(sequence.prompt_token_ids) - 1
    while len(output) < sequence.max_tokens and position + 1 < max_context:
        token = next_token(sequence.adapter_digest, position)
        output.append(token)
        position += 1
        if token in sequence.stop_token_ids and len(output) > sequence.min_tokens:
            return output, FinishReason.STOP
    return output, FinishReason.LENGTH


class FakeRunner:
    """Runs plans over `sequences` (by id) with the adapters in `slots` (digest by slot), both of
    which the caller keeps up to date. Raises AssertionError on any plan that is not sound."""

    def __init__(
        self, sequences: Mapping[int, Sequence], slots: Mapping[int, str], block_size: int
    ):
        self.sequences = sequences
        self.slots = slots
        self.block_size = block_size
        self.num_computed: Counter[str] = Counter()  # tokens, by digest
        self._store: dict[int, tuple[str, int, int]] = {}  # position in the cache -> content

    def run(self, plan: StepPlan) -> StepResult:
        slots = [scheduled.slot for scheduled in plan.sequences]
        assert slots == sorted(slots), "segments of one slot are apart, or the base is not first"
        ids = [scheduled.sequence_id for scheduled in plan.sequences]
        assert len(set(ids)) == len(ids), "a sequence is planned twice"
        owners: Counter[int] = Counter()
        for sequence in self.sequences.values():
            if sequence.state is SequenceState.WAITING:
                assert (sequence.num_computed_tokens, sequence.slot) == (0, None)
            assert sequence.state is SequenceState.RUNNING or not sequence.block_ids
            assert len(set(sequence.block_ids)) == len(sequence.block_ids)
            owners.update(sequence.block_ids)
        for scheduled in plan.sequences:
            self._compute(scheduled, owners)
        sampled = tuple(t for s in plan.sequences if s.samples for t in self._sample(s))
        logprobs = {
            s.sequence_id: self._prompt_logprobs(s)
            for s in plan.sequences
            if s.wants_prompt_logprobs
        }
        return StepResult(sampled, logprobs)

    def _compute(self, scheduled: ScheduledSequence, owners: Counter[int]) -> None:
        sequence = self.sequences[scheduled.sequence_id]
        digest = sequence.adapter_digest
        assert scheduled.slot == BASE_SLOT if not digest else self.slots[scheduled.slot] == digest
        start, stop = scheduled.start_position, scheduled.start_position + scheduled.num_tokens
        assert start == sequence.num_computed_tokens
        assert scheduled.token_ids, "nothing to compute"
        num_own = scheduled.num_tokens - scheduled.num_draft_tokens
        assert num_own > 0, "only guesses"
        assert scheduled.token_ids[:num_own] == sequence.token_ids(start, start + num_own)
        if scheduled.num_draft_tokens:
            assert start + num_own == sequence.num_tokens, "guesses before all is computed"
            assert scheduled.num_draft_tokens <= sequence.prompt_lookup_tokens
            assert sequence.stop_token_ids.isdisjoint(scheduled.draft)
            num_output = len(sequence.output_token_ids) + scheduled.num_draft_tokens
            assert num_output < sequence.max_tokens
        assert len(scheduled.block_ids) == -(-stop // self.block_size)
        assert list(scheduled.block_ids) == sequence.block_ids[: len(scheduled.block_ids)]
        prefix = 0
        token_ids = (*sequence.token_ids(0, start), *scheduled.token_ids)
        for position, token in enumerate(token_ids):
            prefix = hash((prefix, token))
            block, offset = divmod(position, self.block_size)
            place = scheduled.block_ids[block] * self.block_size + offset
            content = (digest, token, prefix)
            if position >= start:
                assert owners[scheduled.block_ids[block]] == 1, "writes to a shared block"
                self._store[place] = content
            else:
                assert self._store[place] == content, f"reads what is not its own at {position}"
        self.num_computed[digest] += scheduled.num_tokens

    def _sample(self, scheduled: ScheduledSequence) -> Iterator[SampledToken]:
        """A token, and one more for each guess that was right."""
        sequence = self.sequences[scheduled.sequence_id]
        num_own = scheduled.num_tokens - scheduled.num_draft_tokens
        position = scheduled.start_position + num_own - 1
        assert position == sequence.num_tokens - 1, "samples before all is computed"
        for guess in (*scheduled.draft, None):
            token = next_token(sequence.adapter_digest, position)
            logprob = TokenLogprob(token, -1.0) if sequence.sampling.logprobs is not None else None
            yield SampledToken(sequence.sequence_id, token, logprob)
            if token != guess:
                return
            position += 1

    def _prompt_logprobs(self, scheduled: ScheduledSequence) -> tuple[TokenLogprob, ...]:
        """Of each prompt token that a token of the step predicts; its position is in the value."""
        sequence = self.sequences[scheduled.sequence_id]
        start = scheduled.start_position
        stop = min(start + scheduled.num_tokens, len(sequence.prompt_token_ids) - 1)
        return tuple(
            TokenLogprob(sequence.prompt_token_ids[position + 1], -float(position + 1))
            for position in range(start, stop)
        )
