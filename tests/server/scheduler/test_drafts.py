"""How drafts are scheduled, and what becomes of them."""

import pytest
from graftwork_server.blocks import IntegrityError
from graftwork_server.events import FinishCause
from graftwork_server.plan import SampledToken, StepResult

from tests.server.fakes import next_token
from tests.server.scheduler.harness import Harness, make_config

FIRST = next_token("", 7)  # what follows a prompt of eight
# The first sampled token stood after the last one of the prompt before; what followed it there is
# never sampled by the fake.
PROMPT = (30, FIRST, 41, 42, 43, 44, 45, 30)
DRAFT = (41, 42, 43, 44, 45, 30, FIRST, 41)


def drafting(engine, **fields):
    """A sequence that has sampled one token, and is confident to draft eight."""
    sequence = engine.add(PROMPT, **{"max_tokens": 50, "prompt_lookup_tokens": 8, **fields})
    engine.step()
    engine.scheduler._tracked[sequence.sequence_id].lookup.learn(8, 8)
    return sequence


def drafts(plan):
    return [scheduled.draft for scheduled in plan.sequences]


class TestScheduling:
    def test_a_draft_stands_after_the_last_token(self):
        engine = Harness(make_config())
        sequence = drafting(engine)
        (scheduled,) = engine.step().sequences
        assert scheduled.token_ids == (FIRST, *DRAFT)
        assert (scheduled.start_position, scheduled.num_tokens) == (8, 9)
        assert len(scheduled.block_ids) == 5  # of 4 positions
        assert sequence.num_computed_tokens == 9
        assert len(sequence.output_token_ids) == 2

    def test_none_where_nobody_asks(self):
        engine = Harness(make_config())
        engine.add(PROMPT, max_tokens=50)
        engine.step()
        assert drafts(engine.step()) == [()]

    def test_none_with_the_prompt(self):
        engine = Harness(make_config())
        engine.add((1, 2, 3) * 3, max_tokens=50, prompt_lookup_tokens=8)
        assert drafts(engine.step()) == [()]

    def test_prompts_and_admissions_go_before_drafts(self):
        engine = Harness(make_config(max_tokens_per_step=10))
        sequence = drafting(engine)
        other = engine.add(range(50, 55))
        plan = engine.step()
        assert [s.num_tokens for s in plan.sequences] == [5, 5]
        assert drafts(plan) == [DRAFT[:4], ()]
        engine.drain()
        engine.check(sequence)
        engine.check(other)

    def test_the_senior_drafts_first(self):
        engine = Harness(make_config(max_tokens_per_step=16))
        engine.add(PROMPT, max_tokens=50, prompt_lookup_tokens=8)
        drafting(engine)
        engine.scheduler._tracked[0].lookup.learn(8, 8)
        assert drafts(engine.step()) == [DRAFT, DRAFT[:6]]

    def test_they_are_bounded_like_prompts_beside_decodes(self):
        engine = Harness(make_config(max_prefill_tokens_while_decoding=3))
        drafting(engine)
        assert drafts(engine.step()) == [DRAFT[:3]]

    def test_a_draft_is_cut_where_blocks_are_short(self):
        engine = Harness(make_config(num_blocks=4))
        sequence = drafting(engine, max_tokens=9)
        engine.add((1, 2, 3), max_tokens=5)
        assert drafts(engine.step()) == [DRAFT[:3], ()]
        assert engine.scheduler.num_preemptions == 0
        engine.drain()
        engine.check(sequence)

    def test_the_blocks_of_wrong_guesses_come_back_at_once(self):
        engine = Harness(make_config())
        sequence = drafting(engine)
        engine.step()
        assert len(sequence.block_ids) == 3
        assert engine.scheduler.kv_cache_usage == 3 / 64
        engine.scheduler.check_integrity()

    @pytest.mark.parametrize(("left", "drafted"), [(1, 0), (2, 1), (4, 3)])
    def test_no_guess_goes_past_max_tokens(self, left, drafted):
        engine = Harness(make_config())
        drafting(engine, max_tokens=1 + left)
        assert drafts(engine.step()) == [DRAFT[:drafted]]

    def test_no_guess_goes_past_the_context(self):
        engine = Harness(make_config(max_context=12))
        drafting(engine)
        assert drafts(engine.step()) == [DRAFT[:2]]

    def test_a_preempted_sequence_drafts_where_it_samples_again(self):
        engine = Harness(make_config(num_blocks=9, max_tokens_per_step=10))
        engine.add((1, 2, 3, 4, 5, 6, 7), max_tokens=28)
        junior = drafting(engine, max_tokens=20, prompt_logprobs=0)
        engine.drain()
        assert engine.scheduler.num_preemptions
        engine.check(junior)


class TestVerdict:
    def test_right_guesses_save_steps_and_change_nothing(self):
        steps = []
        for prompt_lookup_tokens in (0, 4):
            engine = Harness(make_config())
            sequence = engine.add(PROMPT, max_tokens=60, prompt_lookup_tokens=prompt_lookup_tokens)
            steps.append(engine.drain())
            engine.check(sequence)
        assert engine.scheduler.num_accepted_tokens == steps[0] - steps[1]
        assert steps[1] < steps[0]
        assert engine.scheduler.num_draft_tokens > engine.scheduler.num_accepted_tokens

    def test_an_answer_ends_at_its_stop_token(self):
        stop = next_token("", 17)
        for min_tokens in (0, 10, 11):
            engine = Harness(make_config())
            fields = {"stop_token_ids": frozenset({stop}), "min_tokens": min_tokens}
            sequence = engine.add(PROMPT, max_tokens=60, prompt_lookup_tokens=8, **fields)
            engine.drain()
            engine.check(sequence)
            ends_there = len(sequence.output_token_ids) == 11
            assert ends_there == (min_tokens <= 10)
            assert (engine.finished(sequence).cause is FinishCause.STOP_TOKEN) or not ends_there

    def test_a_complete_constraint_ends_it_after_a_right_guess(self):
        engine = Harness(make_config())
        sequence = drafting(engine)
        plan = engine.scheduler.schedule(0.0)
        tokens = (
            SampledToken(0, DRAFT[0], None),
            SampledToken(0, DRAFT[1], None, constraint_complete=True),
        )
        *_, end = engine.scheduler.update(plan, StepResult(tokens, {}))
        assert end.cause is FinishCause.CONSTRAINT
        assert sequence.output_token_ids == [FIRST, *DRAFT[:2]]
        engine.scheduler.check_integrity()

    def test_the_prefix_cache_holds_right_guesses_only(self):
        engine = Harness(make_config())
        drafting(engine)
        plan = engine.scheduler.schedule(0.0)
        # Positions 8 to 16 were computed; the first two guesses, at 9 and 10, are right.
        tokens = (*DRAFT[:2], 60)
        result = StepResult(tuple(SampledToken(0, token, None) for token in tokens), {})
        engine.scheduler.update(plan, result)
        assert engine.sequences[0].num_computed_tokens == 11
        engine.scheduler.abort(0)
        for tail in ((*DRAFT[:3], 1, 1), (*DRAFT[:2], 60, 1, 1)):
            reader = engine.make((*PROMPT, FIRST, *tail))
            engine.scheduler.add(reader)
            engine.scheduler.schedule(0.0)
            assert reader.num_cached_tokens == 8
            engine.scheduler.abort(reader.sequence_id)

    def test_blocks_of_right_guesses_are_found(self):
        engine = Harness(make_config())
        sequence = engine.add(PROMPT, max_tokens=40, prompt_lookup_tokens=8)
        engine.drain()
        assert engine.scheduler.num_accepted_tokens
        turn = engine.add((*PROMPT, *sequence.output_token_ids, 7))
        engine.drain()
        engine.check(turn)
        assert turn.num_cached_tokens == 44  # the token sampled last was never computed

    def test_a_runner_that_follows_another_draft_is_a_defect(self):
        engine = Harness(make_config())
        drafting(engine)
        plan = engine.scheduler.schedule(0.0)
        tokens = (SampledToken(0, 60, None), SampledToken(0, 61, None))
        with pytest.raises(IntegrityError, match="another draft"):
            engine.scheduler.update(plan, StepResult(tokens, {}))

    def test_a_runner_that_goes_on_after_the_end_is_a_defect(self):
        engine = Harness(make_config())
        drafting(engine)
        plan = engine.scheduler.schedule(0.0)
        tokens = (
            SampledToken(0, DRAFT[0], None, constraint_complete=True),
            SampledToken(0, DRAFT[1], None),
        )
        with pytest.raises(IntegrityError, match="after its end"):
            engine.scheduler.update(plan, StepResult(tokens, {}))
