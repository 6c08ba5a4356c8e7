"""The sequences in memory: their blocks, their slots, and who yields to whom."""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from graftwork_server.blocks import BlockManager, IntegrityError, PrefixKeys
from graftwork_server.drafting import PromptLookup
from graftwork_server.fairness import Lane
from graftwork_server.plan import BASE_SLOT, ScheduledSequence
from graftwork_server.request import Sequence, SequenceState
from graftwork_server.slots import SlotTable

# Blocks that admissions leave available while others run, so that what is admitted is not thrown
# out again by the next tokens of those: one in this many.
_SPARE_BLOCKS_DIVISOR = 100


@dataclass(slots=True, eq=False)
class Tracked:
    """What the scheduler keeps beside a sequence."""

    sequence: Sequence
    lane: Lane
    keys: PrefixKeys
    admission: int | None = None  # order of the first admission
    num_published: int = 0  # leading blocks that went through the prefix cache, either way
    num_reported: int = 0  # prompt positions whose log-probabilities were delivered
    followers: list["Tracked"] = field(default_factory=list)  # wait for this one's prompt
    lookup: PromptLookup | None = None  # where it asks for drafts

    @property
    def seniority(self) -> tuple[int, int]:
        """Ascending: who is served first and preempted last. It survives preemption, so that the
        most senior sequence always gets on and ends."""
        return (-self.sequence.priority, -1 if self.admission is None else self.admission)

    @property
    def is_background(self) -> bool:
        return self.sequence.priority < 0

    @property
    def num_uncomputed(self) -> int:
        """Tokens that the next step may compute. Prompt positions reported before a preemption
        are computed apart from the rest, so that each is reported once."""
        sequence = self.sequence
        start = sequence.num_computed_tokens
        if start < self.num_reported < len(sequence.prompt_token_ids):
            return self.num_reported - start
        return sequence.num_tokens - start


class RunningSet:
    """The running sequences, the most senior first."""

    def __init__(self, blocks: BlockManager, slots: SlotTable) -> None:
        self.by_digest: Counter[str] = Counter()
        self._blocks = blocks
        self._slots = slots
        self._members: list[Tracked] = []
        self._num_admitted = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Tracked]:
        return iter(self._members)

    @property
    def has_foreground(self) -> bool:
        """Whether any has a priority of at least 0."""
        return bool(self._members) and not self._members[0].is_background

    @property
    def has_background(self) -> bool:
        """Whether any has a priority below 0."""
        return bool(self._members) and self._members[-1].is_background

    @property
    def most_junior(self) -> Tracked:
        return self._members[-1]

    def start(self, tracked: Tracked) -> bool:
        """Gives a waiting sequence blocks for all its tokens, and its slot; False, with nothing
        changed, if there are too few blocks."""
        sequence = tracked.sequence
        reuse = self._blocks.match(tracked.keys.first(self._num_readable_blocks(tracked)))
        spare = self._blocks.num_blocks // _SPARE_BLOCKS_DIVISOR if self._members else 0
        count = self._blocks.blocks_for(sequence.num_tokens) - len(reuse)
        block_ids = self._blocks.allocate(count, reuse, spare)
        if block_ids is None:
            return False
        sequence.block_ids = block_ids
        sequence.num_computed_tokens = len(reuse) * self._blocks.block_size
        sequence.state = SequenceState.RUNNING
        digest = sequence.adapter_digest
        sequence.slot = self._slots.acquire(digest) if digest else BASE_SLOT
        tracked.num_published = len(reuse)
        if tracked.admission is None:
            tracked.admission = self._num_admitted
            self._num_admitted += 1
            sequence.num_cached_tokens = sequence.num_computed_tokens
            if sequence.uses_prefix_cache and self._blocks.prefix_cache:
                self._blocks.count_lookup(sequence.num_tokens, sequence.num_cached_tokens)
        insort(self._members, tracked, key=lambda member: member.seniority)
        self.by_digest[digest] += 1
        tracked.lane.num_running += 1
        return True

    def stop(self, tracked: Tracked) -> None:
        """Takes blocks and slot back. The computed full blocks stay in the prefix cache."""
        sequence = tracked.sequence
        self._members.remove(tracked)
        self._blocks.free(sequence.block_ids)
        sequence.block_ids = []
        sequence.slot = None
        digest = sequence.adapter_digest
        if digest:
            self._slots.release(digest)
        self.by_digest[digest] -= 1
        if not self.by_digest[digest]:
            del self.by_digest[digest]
        tracked.lane.num_running -= 1

    def grow(self, tracked: Tracked, num_draft_tokens: int = 0) -> bool:
        """Sees to it that there are blocks for all its tokens and a draft; False, with nothing
        changed, if there are too few."""
        sequence = tracked.sequence
        wanted = self._blocks.blocks_for(sequence.num_tokens + num_draft_tokens)
        missing = wanted - len(sequence.block_ids)
        if missing <= 0:
            return True
        block_ids = self._blocks.allocate(missing)
        if block_ids is None:
            return False
        sequence.block_ids += block_ids
        return True

    def grow_for(self, tracked: Tracked, draft: tuple[int, ...]) -> tuple[int, ...]:
        """As much of a draft as there are blocks for, which it takes."""
        while draft and not self.grow(tracked, len(draft)):
            draft = draft[:-1]
        return draft

    def shrink(self, tracked: Tracked) -> None:
        """Takes back the blocks that only wrong drafts needed."""
        sequence = tracked.sequence
        kept = self._blocks.blocks_for(sequence.num_tokens)
        self._blocks.free(sequence.block_ids[kept:])
        del sequence.block_ids[kept:]

    def advance(self, tracked: Tracked, num_tokens: int) -> None:
        """Counts tokens as computed, and lets others find the blocks that they filled."""
        sequence = tracked.sequence
        sequence.num_computed_tokens += num_tokens
        num_full = sequence.num_computed_tokens // self._blocks.block_size
        for index in range(tracked.num_published, num_full):
            self._blocks.publish(sequence.block_ids[index], tracked.keys[index])
        tracked.num_published = num_full

    def planned(
        self, tracked: Tracked, num_tokens: int, draft: tuple[int, ...] = ()
    ) -> ScheduledSequence:
        """The next `num_tokens` tokens of a running sequence, and a draft, for the runner."""
        sequence = tracked.sequence
        start = sequence.num_computed_tokens
        stop = start + num_tokens
        return ScheduledSequence(
            sequence_id=sequence.sequence_id,
            slot=slot_of(sequence),
            token_ids=sequence.token_ids(start, stop) + draft,
            start_position=start,
            block_ids=tuple(sequence.block_ids[: self._blocks.blocks_for(stop + len(draft))]),
            samples=sequence.samples and stop == sequence.num_tokens,
            wants_prompt_logprobs=(
                sequence.sampling.prompt_logprobs is not None
                and tracked.num_reported <= start < len(sequence.prompt_token_ids)
            ),
            classifies=sequence.classifies and stop == sequence.num_tokens,
            num_draft_tokens=len(draft),
        )

    def _num_readable_blocks(self, tracked: Tracked) -> int:
        """Leading blocks that may come from the prefix cache. The last token is always computed:
        its output is wanted. So are prompt positions whose log-probabilities are."""
        sequence = tracked.sequence
        num_tokens = sequence.num_tokens - 1
        if not sequence.uses_prefix_cache and tracked.num_reported < len(sequence.prompt_token_ids):
            num_tokens = min(num_tokens, tracked.num_reported)
        return num_tokens // self._blocks.block_size


def slot_of(sequence: Sequence) -> int:
    """The slot of a running sequence."""
    if sequence.slot is None:
        raise IntegrityError(f"sequence {sequence.sequence_id} runs without a slot")
    return sequence.slot
