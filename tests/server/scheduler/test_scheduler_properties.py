"""Whatever is added, aborted, preempted, evicted, cached: right tokens, no leak, no starvation."""

import hypothesis.strategies as st
from graftwork_server.request import SequenceState
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.server.scheduler.harness import Harness, make_config

DIGESTS = ("", "a", "b", "c", "d")
# Few token values and a small block, so that prefixes are often shared, and often nearly so.
PROMPTS = st.builds(
    lambda head, tail: (*head, *tail),
    st.sampled_from(((), (1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 2), (-1, -2))),
    st.lists(st.integers(1, 2), min_size=1, max_size=6).map(tuple),
)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        block_size=st.integers(1, 4),
        num_cached=st.integers(14, 30),
        max_num_sequences=st.integers(1, 5),
        extra_budget=st.integers(0, 8),
        max_background_tokens=st.sampled_from((None, 1, 3)),
        max_slots=st.integers(1, 3),
        max_slot_bytes=st.sampled_from((None, 3, 5)),
        patience=st.sampled_from((0.0, 1.0, 3.0)),
        load_steps=st.integers(0, 2),
        max_context=st.sampled_from((18, 40)),
    )
    def start(
        self,
        block_size,
        num_cached,
        max_num_sequences,
        extra_budget,
        max_background_tokens,
        max_slots,
        max_slot_bytes,
        patience,
        load_steps,
        max_context,
    ):
        config = make_config(
            block_size=block_size,
            num_blocks=-(-num_cached // block_size),
            max_num_sequences=max_num_sequences,
            max_tokens_per_step=max_num_sequences + extra_budget,
            max_background_tokens=max_background_tokens,
            max_slots=max_slots,
            max_slot_bytes=max_slot_bytes,
            slot_patience_s=patience,
            max_context=min(max_context, num_cached + 1),
        )
        self.engine = Harness(config, load_steps)
        self.engine.sizes = {"a": 1, "b": 1, "c": 2, "d": 3}
        self.added = []

    @rule(
        prompt=PROMPTS,
        digest=st.sampled_from(DIGESTS),
        tenant=st.sampled_from(("x", "y")),
        priority=st.sampled_from((0, 0, 0, 1, -1)),
        max_tokens=st.integers(0, 20),
        min_tokens=st.integers(0, 2),
        stop=st.frozensets(st.integers(0, 22), max_size=3),
        prompt_logprobs=st.sampled_from((None, None, 0)),
        lifetime=st.sampled_from((None, None, None, 4.0)),
        count=st.sampled_from((1, 1, 3)),
        prompt_lookup_tokens=st.sampled_from((0, 0, 1, 3, 8)),
    )
    def add(
        self,
        prompt,
        digest,
        tenant,
        priority,
        max_tokens,
        min_tokens,
        stop,
        prompt_logprobs,
        lifetime,
        count,
        prompt_lookup_tokens,
    ):
        siblings = [
            self.engine.make(
                prompt,
                adapter_digest=digest,
                tenant=tenant,
                priority=priority,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                stop_token_ids=stop,
                prompt_logprobs=prompt_logprobs,
                deadline=None if lifetime is None else self.engine.now + lifetime,
                prompt_lookup_tokens=prompt_lookup_tokens,
            )
            for _ in range(count)
        ]
        self.engine.scheduler.add(*siblings)
        for sequence in siblings:
            lookup = self.engine.scheduler._tracked[sequence.sequence_id].lookup
            if lookup is not None:
                lookup.learn(8, 8)  # so that many are guessed, right or wrong
        self.added += siblings

    @rule(count=st.integers(1, 4))
    def step(self, count):
        for _ in range(count):
            self.engine.step()

    @precondition(lambda self: self.added)
    @rule(data=st.data(), midway=st.booleans())
    def abort(self, data, midway):
        sequence = data.draw(st.sampled_from(self.added))
        if midway:
            self.engine.step(abort_midway=sequence.sequence_id)
        else:
            self.engine.events += self.engine.scheduler.abort(sequence.sequence_id)

    @rule()
    def drop_a_plan(self):
        self.engine.scheduler.schedule(self.engine.now)

    @rule(digest=st.sampled_from(DIGESTS[1:]), pinned=st.booleans())
    def pin(self, digest, pinned):
        slots = self.engine.scheduler.slots
        (slots.pin if pinned else slots.unpin)(digest)

    @precondition(lambda self: self.engine.slot_contents)
    @rule(data=st.data())
    def unload(self, data):
        slots = self.engine.scheduler.slots
        digest = data.draw(st.sampled_from(sorted(self.engine.slot_contents.values())))
        if not slots.num_references(digest):
            del self.engine.slot_contents[slots.remove(digest)]

    @invariant()
    def accounting_holds(self):
        if hasattr(self, "engine"):
            self.engine.scheduler.check_integrity()
            residents = {
                slot: digest
                for digest in self.engine.scheduler.slots.resident_digests
                if (slot := self.engine.scheduler.slots.slot_of(digest)) is not None
            }
            assert residents == self.engine.slot_contents

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        for digest in DIGESTS:
            self.engine.scheduler.slots.unpin(digest)
        # Each step computes a token at least, or waits for a slot or a load.
        self.engine.drain(max_steps=200 + 60 * len(self.added))
        for sequence in self.added:
            assert sequence.state is SequenceState.FINISHED
            self.engine.check(sequence)


SchedulerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
TestScheduler = SchedulerMachine.TestCase
