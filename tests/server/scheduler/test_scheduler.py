import grpc
import pytest
from graftwork_server.blocks import IntegrityError
from graftwork_server.errors import QueueFull
from graftwork_server.events import FinishCause, FinishedEvent, TokenEvent
from graftwork_server.limits import ContextTooLongError
from graftwork_server.plan import BASE_SLOT, SampledToken, StepResult, TokenLogprob
from graftwork_server.request import FinishReason, SequenceState

from tests.server.fakes import next_token
from tests.server.scheduler.harness import Harness, make_config


def counts(plan):
    """Tokens of each sequence in the step, in order of the plan."""
    return [(scheduled.sequence_id, scheduled.num_tokens) for scheduled in plan.sequences]


def step_until_preempted(engine):
    for _ in range(50):
        if engine.scheduler.num_preemptions:
            return
        engine.step()
    pytest.fail("nothing was preempted")


@pytest.mark.parametrize(
    "name", ["num_blocks", "max_prefill_tokens_while_decoding", "max_background_tokens"]
)
def test_nothing_may_be_held_back_for_ever(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        make_config(**{name: 0})


class TestBatching:
    def test_decodes_first_then_begun_prompts_then_admissions(self):
        engine = Harness(make_config(max_tokens_per_step=8))
        engine.add((1, 2, 3), max_tokens=9)
        engine.step()
        engine.add(range(12))
        engine.add((5, 6))
        assert counts(engine.step()) == [(0, 1), (1, 7)]
        assert counts(engine.step()) == [(0, 1), (1, 5), (2, 2)]
        engine.drain()

    def test_prompts_are_cut_short_beside_decodes_only(self):
        engine = Harness(make_config(max_prefill_tokens_while_decoding=3))
        engine.add(range(9), max_tokens=9)
        engine.add(range(9), max_tokens=9)
        assert counts(engine.step()) == [(0, 9), (1, 9)]
        engine.add(range(20, 25))
        assert counts(engine.step()) == [(0, 1), (1, 1), (2, 3)]
        assert counts(engine.step()) == [(0, 1), (1, 1), (2, 2)]
        engine.drain()

    def test_the_background_gets_little_beside_users(self):
        engine = Harness(make_config(max_background_tokens=2))
        for _ in range(4):
            engine.add((1, 2, 3), max_tokens=4, priority=-1)
        assert counts(engine.step()) == [(0, 3), (1, 3), (2, 3), (3, 3)]  # alone it gets all
        engine.add((1, 2), max_tokens=7)
        assert counts(engine.step()) == [(4, 2), (0, 1), (1, 1)]
        for _ in range(2):  # the most senior get on, and end
            assert counts(engine.step()) == [(4, 1), (0, 1), (1, 1)]
        for _ in range(2):
            assert counts(engine.step()) == [(4, 1), (2, 1), (3, 1)]
        engine.add((7,) * 5, max_tokens=1, priority=-1)  # waits for its turn
        assert counts(engine.step()) == [(4, 1), (2, 1), (3, 1)]
        assert counts(engine.step()) == [(4, 1), (5, 2)]
        assert counts(engine.step()) == [(5, 3)]  # alone again
        engine.drain()

    @pytest.mark.parametrize("few", [{"max_num_sequences": 3}, {"num_blocks": 8}])
    def test_users_do_not_wait_for_seats_or_blocks_of_the_background(self, few):
        engine = Harness(make_config(max_background_tokens=1, **few))
        background = [engine.add((n, n, 3), max_tokens=10, priority=-1) for n in (1, 2)]
        engine.step()
        user = engine.add((3, 3, 3, 3), max_tokens=10)
        engine.step()
        late = engine.add((4,) * 20, max_tokens=2)
        plan = engine.step()
        assert (late.sequence_id, 20) in counts(plan)
        assert background[1].state is SequenceState.WAITING
        assert background[1].sequence_id not in dict(counts(plan))
        engine.drain()
        for sequence in (*background, user, late):
            engine.check(sequence)

    def test_a_user_goes_before_prompts_of_the_background(self):
        engine = Harness(make_config(max_tokens_per_step=10, max_background_tokens=2))
        engine.add(range(40), max_tokens=2, priority=-1)
        engine.step()
        engine.add((1, 2, 3), max_tokens=2)
        assert counts(engine.step()) == [(1, 3), (0, 2)]
        engine.drain()

    def test_base_rows_come_first_then_rows_by_slot(self):
        engine = Harness(make_config())
        for digest in ("b", "", "a", "b", ""):
            engine.add(adapter_digest=digest)
        plan = engine.step()
        assert [s.slot for s in plan.sequences] == [BASE_SLOT, BASE_SLOT, 0, 1, 1]
        assert [s.sequence_id for s in plan.sequences] == [1, 4, 2, 0, 3]

    def test_a_senior_prompt_gets_on_beside_a_full_set_of_decodes(self):
        engine = Harness(make_config(max_num_sequences=3, max_tokens_per_step=3))
        engine.add((1,), max_tokens=20)
        engine.add((1,), max_tokens=20)
        engine.step()
        engine.add(range(10))
        assert counts(engine.step())[2] == (2, 1)
        engine.drain()

    def test_at_most_so_many_run_at_once(self):
        engine = Harness(make_config(max_num_sequences=2))
        for _ in range(5):
            engine.add()
        engine.step()
        assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (2, 3)
        engine.drain()

    def test_nothing_to_do_is_no_plan(self):
        assert Harness(make_config()).step() is None

    def test_virtual_tokens_are_planned_like_others(self):
        engine = Harness(make_config())
        sequence = engine.add((-1, -2, 5), adapter_digest="p")
        assert engine.step().sequences[0].token_ids == (-1, -2, 5)
        engine.drain()
        engine.check(sequence)


class TestFinish:
    @pytest.mark.parametrize(
        ("fields", "num_output", "cause"),
        [
            ({"max_tokens": 3}, 3, FinishCause.MAX_TOKENS),
            ({"max_tokens": 0}, 0, FinishCause.MAX_TOKENS),
            ({"max_tokens": 500}, 13, FinishCause.CONTEXT),
            ({"stop_token_ids": frozenset({next_token("", 3)})}, 2, FinishCause.STOP_TOKEN),
        ],
    )
    def test_cause(self, fields, num_output, cause):
        engine = Harness(make_config(max_context=16))
        sequence = engine.add((1, 2, 3), **fields)
        engine.drain()
        engine.check(sequence)
        assert engine.finished(sequence).cause is cause
        assert engine.finished(sequence).num_output_tokens == num_output
        assert engine.finished(sequence).num_prompt_tokens == 3

    def test_min_tokens_come_before_a_stop_token(self):
        every_token = frozenset(range(100))
        engine = Harness(make_config())
        sequence = engine.add(stop_token_ids=every_token, min_tokens=2, max_tokens=9)
        engine.drain()
        assert len(sequence.output_token_ids) == 3
        assert sequence.finish_reason is FinishReason.STOP

    def test_a_complete_constraint_ends_the_answer_even_before_min_tokens(self):
        engine = Harness(make_config())
        sequence = engine.add(min_tokens=3)
        plan = engine.scheduler.schedule(0.0)
        logprob = TokenLogprob(7, -0.5)
        token = SampledToken(sequence.sequence_id, 7, logprob, constraint_complete=True)
        events = engine.scheduler.update(plan, StepResult((token,), {}))
        assert events == [
            TokenEvent(0, 7, logprob, 0),
            FinishedEvent(0, FinishReason.STOP, FinishCause.CONSTRAINT, 3, 0, 1),
        ]
        engine.scheduler.check_integrity()

    def test_deadline(self):
        engine = Harness(make_config(max_num_sequences=1))
        running = engine.add(max_tokens=50, deadline=3.0)
        waiting = engine.add(max_tokens=50, deadline=2.0)
        for _ in range(4):
            engine.step()
        for sequence in (running, waiting):
            assert engine.finished(sequence).cause is FinishCause.DEADLINE
            assert sequence.finish_reason is FinishReason.CANCELLED
        assert engine.is_idle
        engine.scheduler.check_integrity()

    def test_abort_frees_at_once_and_twice_is_no_harm(self):
        engine = Harness(make_config())
        sequence = engine.add(max_tokens=50, adapter_digest="a")
        engine.step()
        (event,) = engine.scheduler.abort(sequence.sequence_id, FinishReason.STOP)
        assert (event.reason, event.cause) == (FinishReason.STOP, FinishCause.ABORTED)
        assert engine.scheduler.abort(sequence.sequence_id) == []
        assert engine.scheduler.kv_cache_usage == 0.0
        engine.scheduler.check_integrity()

    def test_deadlines_of_finished_sequences_are_forgotten(self):
        engine = Harness(make_config())
        for _ in range(1000):
            engine.add(max_tokens=1, deadline=1e9)
            engine.step()
        assert len(engine.scheduler._deadlines) < 100


class TestRefusal:
    def test_full_queue_takes_all_or_none(self):
        engine = Harness(make_config(max_queued=3))
        engine.scheduler.add(engine.make(), engine.make())
        with pytest.raises(QueueFull) as caught:
            engine.scheduler.add(engine.make(), engine.make())
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.retry_after_s == 1.0
        assert engine.scheduler.num_waiting == 2

    @pytest.mark.parametrize(
        ("prompt_length", "max_tokens", "fits"),
        [(15, 1, True), (16, 1, False), (16, 0, True), (17, 0, False), (3, 999, True)],
    )
    def test_context(self, prompt_length, max_tokens, fits):
        engine = Harness(make_config(max_context=16))
        sequence = engine.make(range(prompt_length), max_tokens=max_tokens)
        if fits:
            engine.scheduler.add(sequence)
            engine.drain()
        else:
            with pytest.raises(ContextTooLongError, match="the context holds 16"):
                engine.scheduler.add(sequence)

    @pytest.mark.parametrize(("max_tokens", "fits"), [(6, True), (7, False)])
    def test_what_the_cache_cannot_hold(self, max_tokens, fits):
        engine = Harness(make_config(num_blocks=2))  # of 4 positions
        sequence = engine.make((1, 2, 3), max_tokens=max_tokens)
        if fits:
            engine.scheduler.add(sequence)
            engine.drain()
            engine.check(sequence)
        else:
            with pytest.raises(ContextTooLongError, match="cache holds 8"):
                engine.scheduler.add(sequence)

    def test_misuse(self):
        engine = Harness(make_config())
        sequence = engine.add()
        with pytest.raises(ValueError, match="known already"):
            engine.scheduler.add(sequence)
        with pytest.raises(ValueError, match="no prompt"):
            engine.add(())
        plan = engine.scheduler.schedule(0.0)
        result = engine.runner.run(plan)
        engine.scheduler.update(plan, result)
        with pytest.raises(IntegrityError, match="stale plan"):
            engine.scheduler.update(plan, result)

    @pytest.mark.parametrize(
        "change", [{"num_blocks": 0}, {"max_tokens_per_step": 7}, {"slot_patience_s": -1.0}]
    )
    def test_config(self, change):
        with pytest.raises(ValueError, match=next(iter(change))):
            make_config(**change)


class TestPrefixCache:
    def test_a_later_prompt_reads_what_an_earlier_one_computed(self):
        engine = Harness(make_config())
        engine.add(range(10))
        engine.step()
        hit = engine.add(range(12))
        assert (1, 4) in counts(engine.step())
        engine.drain()
        engine.check(hit)
        assert hit.num_cached_tokens == 8
        assert engine.finished(hit).num_cached_tokens == 8
        assert engine.scheduler.blocks.num_query_tokens == 22
        assert engine.scheduler.blocks.num_hit_tokens == 8

    def test_the_last_token_is_always_computed(self):
        engine = Harness(make_config())
        engine.add(range(8))
        engine.drain()
        again = engine.add(range(8))
        assert counts(engine.step()) == [(1, 4)]
        assert again.num_cached_tokens == 4

    def test_answers_are_cached_too(self):
        engine = Harness(make_config())
        first = engine.add((1, 2, 3), max_tokens=6)
        engine.drain()
        turn = engine.add((1, 2, 3, *first.output_token_ids, 7))
        engine.drain()
        assert turn.num_cached_tokens == 8  # the token sampled last was never computed

    def test_another_adapter_reads_nothing(self):
        engine = Harness(make_config())
        engine.add(range(10), adapter_digest="a")
        engine.drain()
        other = engine.add(range(10), adapter_digest="b")
        engine.drain()
        assert other.num_cached_tokens == 0

    def test_prompt_logprobs_are_computed_and_come_in_chunks(self):
        engine = Harness(make_config(max_tokens_per_step=8))
        engine.add(range(20))
        engine.drain()
        sequence = engine.add(range(20), prompt_logprobs=0, max_tokens=2)
        engine.drain()
        engine.check(sequence)
        assert engine.scheduler.blocks.num_query_tokens == 20


class TestSiblings:
    def test_they_wait_for_the_first_ones_prompt_then_share_it(self):
        engine = Harness(make_config(max_tokens_per_step=8))
        siblings = [engine.make(range(18)) for _ in range(3)]
        engine.scheduler.add(*siblings)
        other = engine.add((50, 51))
        assert counts(engine.step()) == [(0, 8)]
        engine.step()
        plan = engine.step()  # the end of the first prompt; the other goes before its elders
        assert counts(plan) == [(0, 2), (3, 2)]
        assert counts(engine.step()) == [(0, 1), (3, 1), (1, 2), (2, 2)]
        engine.drain()
        for sequence in (*siblings, other):
            engine.check(sequence)
        assert [s.num_cached_tokens for s in siblings] == [0, 16, 16]
        assert engine.runner.num_computed[""] < 3 * 18

    def test_short_prompts_go_at_once(self):
        engine = Harness(make_config())
        engine.scheduler.add(engine.make((1, 2, 3, 4)), engine.make((1, 2, 3, 4)))
        assert counts(engine.step()) == [(0, 4), (1, 4)]

    def test_where_the_first_ends_early_the_next_leads(self):
        engine = Harness(make_config(max_tokens_per_step=8))
        siblings = [engine.make(range(18)) for _ in range(4)]
        engine.scheduler.add(*siblings)
        engine.step()
        engine.events += engine.scheduler.abort(1)
        engine.events += engine.scheduler.abort(0)
        assert counts(engine.step()) == [(2, 8)]
        assert siblings[3].state is SequenceState.WAITING
        engine.drain()
        engine.check(siblings[2])
        engine.check(siblings[3])
        assert siblings[3].num_cached_tokens == 16


class TestPreemption:
    def test_the_most_junior_yields_and_recomputes(self):
        engine = Harness(make_config(num_blocks=7))  # 28 positions
        senior = engine.add((1, 2, 3, 4, 5, 6), max_tokens=16)
        junior = engine.add((11, 12, 13, 14, 15, 16), max_tokens=16)
        step_until_preempted(engine)
        assert (senior.state, junior.state) == (SequenceState.RUNNING, SequenceState.WAITING)
        assert junior.output_token_ids
        assert junior.num_computed_tokens == 0
        engine.drain()
        engine.check(senior)
        engine.check(junior)
        assert engine.scheduler.num_preemptions == 1

    def test_a_lower_priority_yields_first(self):
        engine = Harness(make_config(num_blocks=7))
        low = engine.add((1, 2, 3, 4, 5, 6), max_tokens=16)
        engine.step()
        high = engine.add((11, 12, 13, 14, 15, 16), max_tokens=16, priority=1)
        step_until_preempted(engine)
        assert (low.state, high.state) == (SequenceState.WAITING, SequenceState.RUNNING)
        engine.drain()
        engine.check(low)

    def test_resuming_reads_the_blocks_that_were_left(self):
        engine = Harness(make_config(num_blocks=7))
        engine.add((1, 2, 3, 4, 5, 6), max_tokens=16)
        junior = engine.add((11, 12, 13, 14, 15, 16), max_tokens=16)
        engine.drain()
        engine.check(junior)
        assert engine.scheduler.num_preemptions == 1
        resumed = [
            scheduled
            for plan in engine.plans
            for scheduled in plan.sequences
            if scheduled.sequence_id == junior.sequence_id and scheduled.num_tokens > 1
        ]
        assert resumed[1].start_position >= 4
        assert junior.num_cached_tokens == 0  # of the first admission

    def test_prompt_logprobs_are_reported_once(self):
        engine = Harness(make_config(num_blocks=7, max_tokens_per_step=9))
        engine.add((1, 2, 3, 4, 5, 6, 7), max_tokens=22)
        junior = engine.add(range(20), max_tokens=4, prompt_logprobs=0)
        step_until_preempted(engine)
        assert engine.prompt_positions(junior) == list(range(1, 11))
        engine.drain()
        engine.check(junior)

    def test_no_newcomer_overtakes_one_that_waits_for_blocks(self):
        engine = Harness(make_config(num_blocks=8))
        engine.add((1, 2, 3, 4, 5, 6), max_tokens=10)
        engine.step()
        long = engine.add(range(10, 38), max_tokens=1)
        for index in range(40):
            engine.add((60 + index,), max_tokens=1)
        for _ in range(13):
            engine.step()
        engine.check(long)
        engine.drain()
