"""Which tokens of which sequences each step computes.

A pure state machine: no torch, clock, randomness or I/O; time is an argument. Per step:

    events += scheduler.expire(now)
    plan = scheduler.schedule(now)        # None: nothing can run now
    events += scheduler.update(plan, runner.run(plan))

`add` and `abort` may come between any two of these calls. A plan that was never run may be dropped:
nothing counts as computed before `update`. How it decides is told in docs/adr/0003-scheduling.md.
"""

import heapq
from collections.abc import Mapping

from graftwork_server.blocks import BlockManager, IntegrityError, PrefixKeys
from graftwork_server.demand import SlotDemand
from graftwork_server.drafting import PromptLookup
from graftwork_server.errors import QueueFull
from graftwork_server.events import (
    ClassScoresEvent,
    Event,
    FinishCause,
    FinishedEvent,
    PromptLogprobsEvent,
    TokenEvent,
)
from graftwork_server.fairness import DECODE_WEIGHT, PREFILL_WEIGHT, WaitingQueue
from graftwork_server.limits import ContextTooLongError, SchedulerConfig
from graftwork_server.plan import SampledToken, ScheduledSequence, StepPlan, StepResult
from graftwork_server.request import FinishReason, Sequence, SequenceState
from graftwork_server.running import RunningSet, Tracked, slot_of
from graftwork_server.slots import SlotTable
from graftwork_server.step_budget import StepBudget

_REASON_OF = {
    FinishCause.STOP_TOKEN: FinishReason.STOP,
    FinishCause.CONSTRAINT: FinishReason.STOP,
    FinishCause.MAX_TOKENS: FinishReason.LENGTH,
    FinishCause.CONTEXT: FinishReason.LENGTH,
    FinishCause.DEADLINE: FinishReason.CANCELLED,
}


class Scheduler:
    """Continuous batching with chunked prefill over paged blocks and adapter slots."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.blocks = BlockManager(
            config.num_blocks, config.block_size, prefix_cache=config.prefix_cache
        )
        self.slots = SlotTable(config.max_slots, config.max_slot_bytes, self._is_held)
        self.num_preemptions = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0  # drafted ones that were sampled
        self._waiting = WaitingQueue()
        self._demand = SlotDemand(self.slots, self._waiting, config.slot_patience_s)
        self._tracked: dict[int, Tracked] = {}
        self._running = RunningSet(self.blocks, self.slots)
        self._deadlines: list[tuple[float, int]] = []  # a heap; may name finished sequences

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return self._waiting.num_waiting

    @property
    def kv_cache_usage(self) -> float:
        """In [0, 1]."""
        return self.blocks.usage

    @property
    def running_by_digest(self) -> Mapping[str, int]:
        return dict(self._running.by_digest)

    @property
    def waiting_by_digest(self) -> Mapping[str, int]:
        return self._waiting.by_digest

    def wanted_digests(self) -> tuple[str, ...]:
        """Versions that sequences wait for and that are not resident, most urgent first; at most as
        many as there are slots.

        The engine brings them to host memory, and at each step boundary calls `slots.place` for
        those that are there, in this order, until one returns None.
        """
        return self._demand.wanted()

    def add(self, *sequences: Sequence) -> None:
        """Queues all or none. Sequences of one call and client with the same prompt wait for the
        first one's prompt, then share it through the prefix cache.

        Raises QueueFull or ContextTooLongError.
        """
        if self.num_waiting + len(sequences) > self.config.max_queued:
            raise QueueFull(self.config.max_queued)
        for sequence in sequences:
            if sequence.sequence_id in self._tracked:
                raise ValueError(f"sequence {sequence.sequence_id} is known already")
            self._check_fits(sequence)
        leaders: dict[tuple[int, tuple[int, ...]], Tracked] = {}
        for sequence in sequences:
            self._track(sequence, leaders)
        if len(self._deadlines) > 2 * len(self._tracked) + 64:
            self._deadlines = [d for d in self._deadlines if d[1] in self._tracked]
            heapq.heapify(self._deadlines)

    def abort(self, sequence_id: int, reason: FinishReason = FinishReason.CANCELLED) -> list[Event]:
        """Ends a sequence, running or not; nothing where it has finished already."""
        tracked = self._tracked.get(sequence_id)
        return [] if tracked is None else [self._finish(tracked, FinishCause.ABORTED, reason)]

    def abort_waiting(self, digest: str, reason: FinishReason = FinishReason.FAILED) -> list[Event]:
        """Ends the sequences that wait for an adapter version, such as one that failed to load."""
        waiting = [
            tracked
            for tracked in self._tracked.values()
            if tracked.sequence.adapter_digest == digest
            and tracked.sequence.state is SequenceState.WAITING
        ]
        return [self._finish(tracked, FinishCause.ABORTED, reason) for tracked in waiting]

    def expire(self, now: float) -> list[Event]:
        """Ends the sequences whose deadline has come."""
        events: list[Event] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, sequence_id = heapq.heappop(self._deadlines)
            tracked = self._tracked.get(sequence_id)
            if tracked is not None:
                events.append(self._finish(tracked, FinishCause.DEADLINE))
        return events

    def schedule(self, now: float) -> StepPlan | None:
        """Decodes first, then prompts begun before, then admissions, then drafts, within the token
        budget."""
        self._demand.refresh(now)
        num_preemptions = self.num_preemptions
        beside_others = self._running.has_foreground or self._waits_in_front
        budget = StepBudget(self.config, beside_others=beside_others)
        chunks: list[tuple[Tracked, int]] = []
        for tracked in tuple(self._running):
            # A senior decode may have preempted this one a moment ago.
            is_running = tracked.sequence.state is SequenceState.RUNNING
            is_decode = is_running and tracked.num_uncomputed == 1
            if is_decode and budget.left_for(tracked) and self._grow(tracked):
                chunks.append((tracked, budget.take(tracked)))
        if chunks:
            budget.cut_prompts()
        chunks.extend(
            (tracked, budget.take(tracked))
            for tracked in self._running
            if tracked.num_uncomputed > 1 and budget.left_for(tracked)
        )
        if self.num_preemptions == num_preemptions:
            while budget.left and (admitted := self._admit(budget, chunks)) is not None:
                chunks.append((admitted, budget.take(admitted)))
        if not chunks:
            return None
        drafts = self._draft(chunks, budget)
        chunks.sort(key=lambda chunk: (slot_of(chunk[0].sequence), chunk[0].seniority))
        return StepPlan(
            tuple(
                self._running.planned(*chunk, drafts.get(chunk[0].sequence.sequence_id, ()))
                for chunk in chunks
            )
        )

    def update(self, plan: StepPlan, result: StepResult) -> list[Event]:
        """Takes in what a step yielded. Sequences aborted since it was planned are passed over."""
        sampled: dict[int, list[SampledToken]] = {}
        for token in result.sampled:
            sampled.setdefault(token.sequence_id, []).append(token)
        events: list[Event] = []
        for scheduled in plan.sequences:
            tracked = self._tracked.get(scheduled.sequence_id)
            if tracked is None:
                continue
            sequence = tracked.sequence
            if sequence.num_computed_tokens != scheduled.start_position:
                raise IntegrityError(f"sequence {sequence.sequence_id}: a stale plan")
            self._running.advance(tracked, scheduled.num_tokens - scheduled.num_draft_tokens)
            if scheduled.wants_prompt_logprobs:
                tracked.num_reported = sequence.num_computed_tokens
                logprobs = result.prompt_logprobs.get(sequence.sequence_id, ())
                if logprobs:
                    events.append(PromptLogprobsEvent(sequence.sequence_id, logprobs))
            if sequence.num_computed_tokens >= len(sequence.prompt_token_ids):
                self._release_followers(tracked)
            if scheduled.classifies:
                scores = result.class_scores[sequence.sequence_id]
                events.append(ClassScoresEvent(sequence.sequence_id, scores))
            if scheduled.samples:
                events += self._extend(tracked, scheduled, sampled[sequence.sequence_id])
            elif not sequence.samples and sequence.num_computed_tokens == sequence.num_tokens:
                events.append(self._finish(tracked, FinishCause.MAX_TOKENS))
        return events

    def check_integrity(self) -> None:
        """Raises IntegrityError if the accounting contradicts itself; cheap enough for when the
        engine falls idle, not for each step."""
        idle = not self._tracked
        self.blocks.check_integrity(idle=idle)
        self.slots.check_integrity(idle=idle)
        if self.num_running + self.num_waiting != len(self._tracked):
            raise IntegrityError("a sequence neither runs nor waits, or does both")
        if self._running.by_digest.total() != self.num_running:
            raise IntegrityError("the running sequences of the adapters do not add up")
        if idle:
            self._waiting.check_idle()

    def _is_held(self, digest: str) -> bool:
        return self._demand.is_held(digest)

    def _check_fits(self, sequence: Sequence) -> None:
        num_prompt, num_sampled = len(sequence.prompt_token_ids), int(sequence.samples)
        if num_prompt == 0:
            raise ValueError(f"sequence {sequence.sequence_id} has no prompt")
        context = self.config.max_context
        if num_prompt + num_sampled > context:
            raise ContextTooLongError(
                f"the prompt has {num_prompt} tokens; the context holds {context} with the answer"
            )
        # The token sampled last is never computed.
        num_cached = min(num_prompt + sequence.max_tokens, context) - num_sampled
        if self.blocks.blocks_for(num_cached) > self.blocks.num_blocks:
            raise ContextTooLongError(
                f"prompt and answer may come to {num_cached} tokens; "
                f"the key/value cache holds {self.blocks.num_blocks * self.blocks.block_size}"
            )

    def _track(
        self, sequence: Sequence, leaders: dict[tuple[int, tuple[int, ...]], Tracked]
    ) -> None:
        lane = self._waiting.lane_of(sequence)
        tracked = Tracked(sequence, lane, PrefixKeys(sequence, self.config.block_size))
        if sequence.prompt_lookup_tokens:
            tracked.lookup = PromptLookup(sequence)
        self._tracked[sequence.sequence_id] = tracked
        leader = tracked
        # As much of the prompt as can be shared: all but its last token, in full blocks.
        is_shareable = len(sequence.prompt_token_ids) > self.config.block_size
        if is_shareable and sequence.uses_prefix_cache and self.config.prefix_cache:
            leader = leaders.setdefault((id(lane), sequence.prompt_token_ids), tracked)
        if leader is not tracked:
            leader.followers.append(tracked)
        self._waiting.add(sequence, lane, deferred=leader is not tracked)
        self._demand.note(sequence.adapter_digest, sequence.arrival_time)
        if sequence.deadline is not None:
            heapq.heappush(self._deadlines, (sequence.deadline, sequence.sequence_id))

    @property
    def _waits_in_front(self) -> bool:
        """Whether a sequence that is not of the background could run, but for room."""
        sequence = self._waiting.peek(self._demand.is_admissible)
        return sequence is not None and not self._tracked[sequence.sequence_id].is_background

    def _admit(self, budget: StepBudget, chunks: list[tuple[Tracked, int]]) -> Tracked | None:
        """Starts the sequence whose turn it is; None if there is none, or no room for it: others
        must not overtake one that waits for blocks, or a long one would wait for ever. The
        background makes room, and loses its `chunks`: it gets on so slowly beside others that they
        would wait long for its end."""
        sequence = self._waiting.peek(self._demand.is_admissible)
        if sequence is None:
            return None
        tracked = self._tracked[sequence.sequence_id]
        if not budget.left_for(tracked):
            return None
        is_new = tracked.admission is None
        while not self._start(tracked):
            if tracked.is_background or not self._running.has_background:
                return None
            victim = self._running.most_junior
            self._preempt(victim)
            chunks[:] = [chunk for chunk in chunks if chunk[0] is not victim]
        self._waiting.pop(sequence, tracked.lane)
        if is_new:
            # Recomputing after a preemption is no service to the client.
            num_computed = sequence.num_tokens - sequence.num_computed_tokens
            tracked.lane.charge(PREFILL_WEIGHT * num_computed)
        return tracked

    def _start(self, tracked: Tracked) -> bool:
        """False, with nothing changed, if there is no seat or too few blocks."""
        is_full = len(self._running) >= self.config.max_num_sequences
        return not is_full and self._running.start(tracked)

    def _grow(self, tracked: Tracked) -> bool:
        """Makes room for the sequence's next token, at the cost of its juniors; False if it was
        the most junior itself, and had to go."""
        while not self._running.grow(tracked):
            victim = self._running.most_junior
            self._preempt(victim)
            if victim is tracked:
                return False
        return True

    def _preempt(self, tracked: Tracked) -> None:
        """Puts a running sequence back; it keeps its output and will recompute what it lost."""
        self._running.stop(tracked)
        tracked.sequence.state = SequenceState.WAITING
        tracked.sequence.num_computed_tokens = 0
        self._waiting.put_back(tracked.sequence, tracked.lane)
        self.num_preemptions += 1

    def _draft(
        self, chunks: list[tuple[Tracked, int]], budget: StepBudget
    ) -> dict[int, tuple[int, ...]]:
        """By sequence id, guesses at the next tokens of those that decode and ask for it. They take
        what is left of the budget and of the blocks, the most senior first, and no one's place."""
        drafts: dict[int, tuple[int, ...]] = {}
        for tracked, num_tokens in chunks:
            sequence = tracked.sequence
            if tracked.lookup is None or not sequence.output_token_ids:
                continue
            if sequence.num_computed_tokens + num_tokens < sequence.num_tokens:
                continue  # after a preemption, and it samples nothing yet
            room = min(
                budget.left_for(tracked),
                sequence.max_tokens - len(sequence.output_token_ids) - 1,
                self.config.max_context - sequence.num_tokens - 1,
            )
            draft = self._running.grow_for(tracked, tracked.lookup.propose(room))
            drafts[sequence.sequence_id] = draft
            budget.spend(tracked, len(draft))
        return drafts

    def _extend(
        self, tracked: Tracked, scheduled: ScheduledSequence, sampled: list[SampledToken]
    ) -> list[Event]:
        """Appends the token that follows the sequence's own, and those that follow drafted ones.
        A drafted token counts as computed once it is appended: the prefix cache hashes no guess."""
        agreed = tuple(token.token_id for token in sampled[:-1])
        if agreed != scheduled.draft[: len(agreed)]:
            raise IntegrityError(f"sequence {scheduled.sequence_id}: goes on after another draft")
        events = self._append(tracked, sampled[0])
        num_accepted = 0
        for token in sampled[1:]:
            if tracked.sequence.state is SequenceState.FINISHED:
                raise IntegrityError(f"sequence {scheduled.sequence_id}: goes on after its end")
            self._running.advance(tracked, 1)
            num_accepted += 1
            events += self._append(tracked, token)
        if tracked.lookup is not None:
            self.num_draft_tokens += scheduled.num_draft_tokens
            self.num_accepted_tokens += num_accepted
            tracked.lookup.learn(scheduled.num_draft_tokens, num_accepted)
            if tracked.sequence.state is SequenceState.RUNNING:
                self._running.shrink(tracked)
        return events

    def _append(self, tracked: Tracked, sampled: SampledToken) -> list[Event]:
        sequence = tracked.sequence
        sequence.output_token_ids.append(sampled.token_id)
        tracked.lane.charge(DECODE_WEIGHT)
        events: list[Event] = [
            TokenEvent(
                sequence.sequence_id,
                sampled.token_id,
                sampled.logprob,
                sequence.num_cached_tokens,
            )
        ]
        cause = self._finish_cause(sequence, sampled)
        if cause is not None:
            events.append(self._finish(tracked, cause))
        return events

    def _finish_cause(self, sequence: Sequence, sampled: SampledToken) -> FinishCause | None:
        num_output = len(sequence.output_token_ids)
        # min_tokens counts the tokens before the stop token.
        may_stop = sampled.constraint_complete or num_output > sequence.min_tokens
        if may_stop and sampled.token_id in sequence.stop_token_ids:
            return FinishCause.STOP_TOKEN
        if sampled.constraint_complete:
            return FinishCause.CONSTRAINT
        if num_output >= sequence.max_tokens:
            return FinishCause.MAX_TOKENS
        if sequence.num_tokens >= self.config.max_context:
            return FinishCause.CONTEXT
        return None

    def _finish(
        self, tracked: Tracked, cause: FinishCause, reason: FinishReason | None = None
    ) -> FinishedEvent:
        sequence = tracked.sequence
        if sequence.state is SequenceState.RUNNING:
            self._running.stop(tracked)
        else:
            self._waiting.remove(sequence, tracked.lane)
            self._demand.note(sequence.adapter_digest, sequence.arrival_time)
        del self._tracked[sequence.sequence_id]
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = _REASON_OF[cause] if reason is None else reason
        self._pass_lead(tracked)
        return FinishedEvent(
            sequence.sequence_id,
            sequence.finish_reason,
            cause,
            len(sequence.prompt_token_ids),
            sequence.num_cached_tokens,
            len(sequence.output_token_ids),
        )

    def _waiting_followers(self, tracked: Tracked) -> list[Tracked]:
        """The followers that have not ended; afterwards they follow no more."""
        followers, tracked.followers = tracked.followers, []
        return [f for f in followers if f.sequence.sequence_id in self._tracked]

    def _release_followers(self, tracked: Tracked) -> None:
        """The prompt is computed: the others may read it."""
        for follower in reversed(self._waiting_followers(tracked)):
            self._waiting.undefer(follower.sequence, follower.lane)

    def _pass_lead(self, tracked: Tracked) -> None:
        """Where a leader ends before its prompt is computed, the next computes it."""
        followers = self._waiting_followers(tracked)
        if followers:
            leader, *leader.followers = followers
            self._waiting.undefer(leader.sequence, leader.lane)
