import math
import statistics

import pytest
import torch
from graftwork_trainer.rl.advantages import (
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    num_informative_groups,
    token_rewards,
)
from graftwork_trainer.rl.masked import masked_mean, masked_sum, whiten
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.rl.trajectories import answers, random_mask, random_values

batches = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31))


def plain_advantages(rewards, values, discount, trace_decay):
    """GAE of one answer by its definition: a sum over all later tokens, for each."""
    padded = [*values, 0.0]
    deltas = [r + discount * padded[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [
        sum(
            (discount * trace_decay) ** (later - t) * deltas[later]
            for later in range(t, len(deltas))
        )
        for t in range(len(deltas))
    ]


@given(batches, st.floats(0.5, 1), st.floats(0, 1))
def test_gae_is_the_sum_it_is_defined_by(batch, discount, trace_decay):
    size, time, seed = batch
    mask = random_mask(size, time, seed)
    rewards, values = (random_values(size, time, seed=seed + i) for i in (1, 2))

    advantages, returns = generalized_advantages(
        rewards, values, mask, discount=discount, trace_decay=trace_decay
    )

    assert not advantages[~mask].any()
    assert not returns[~mask].any()
    rows = zip(*(answers(x, mask) for x in (rewards, values, advantages, returns)), strict=True)
    for reward, value, advantage, gained in rows:
        plain = plain_advantages(reward, value, discount, trace_decay)
        assert advantage == pytest.approx(plain, abs=1e-6)
        assert gained == pytest.approx([a + v for a, v in zip(plain, value, strict=True)], abs=1e-6)


def test_padding_does_not_reach_an_answer():
    mask = torch.tensor([[True, True, False]])
    values = torch.tensor([[0.5, 0.25, math.nan]])
    rewards = torch.tensor([[0.0, 1.0, math.inf]])
    advantages, returns = generalized_advantages(
        rewards, values, mask, discount=1.0, trace_decay=1.0
    )
    assert advantages.tolist() == [[0.5, 0.75, 0.0]]
    assert returns.tolist() == [[1.0, 1.0, 0.0]]


@given(batches, st.floats(0, 2))
def test_the_score_comes_with_the_last_token(batch, coefficient):
    size, time, seed = batch
    mask = random_mask(size, time, seed)
    scores, kl = random_values(size, seed=seed + 1), random_values(size, time, seed=seed + 2)

    rewards = token_rewards(scores, kl, mask, coefficient)

    assert not rewards[~mask].any()
    for score, price, reward in zip(
        scores.tolist(), answers(kl, mask), answers(rewards, mask), strict=True
    ):
        plain = [-coefficient * k for k in price]
        plain[-1] += score
        assert reward == pytest.approx(plain, abs=1e-6)


def test_an_empty_answer_has_no_rewards():
    with pytest.raises(ValueError, match="no tokens"):
        token_rewards(torch.ones(1), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), 0.1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 2**31))
def test_group_baselines_are_those_of_the_papers(groups, seed):
    scores = random_values(len(groups), seed=seed)
    normalized = group_advantages(scores, torch.tensor(groups)).tolist()
    left_out = leave_one_out_advantages(scores, torch.tensor(groups)).tolist()

    for place, group in enumerate(groups):
        score = scores[place].item()
        own = [s for s, g in zip(scores.tolist(), groups, strict=True) if g == group]
        others = [s for i, s in enumerate(scores.tolist()) if groups[i] == group and i != place]
        if not others:
            assert normalized[place] == 0
            assert left_out[place] == 0
            continue
        deviation = statistics.stdev(own)
        assert normalized[place] == pytest.approx(
            (score - statistics.mean(own)) / (deviation + 1e-4), abs=1e-6
        )
        assert left_out[place] == pytest.approx(score - statistics.mean(others), abs=1e-6)


def test_equal_scores_teach_nothing():
    scores = torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0])
    groups = torch.tensor([7, 7, 3, 3, 9])
    assert group_advantages(scores, groups)[:2].tolist() == [0, 0]
    assert leave_one_out_advantages(scores, groups)[:2].tolist() == [0, 0]
    assert num_informative_groups(scores, groups) == 1


@given(batches, st.booleans())
def test_whitening_looks_at_the_masked_tokens_alone(batch, shift_mean):
    size, time, seed = batch
    mask = random_mask(size, time, seed)
    values = random_values(size, time, seed=seed + 1, scale=3.0)

    whitened = whiten(values.masked_fill(~mask, math.nan), mask, shift_mean=shift_mean)

    assert not whitened[~mask].any()
    flat = [v for answer in answers(values, mask) for v in answer]
    mean, variance = statistics.mean(flat), statistics.pvariance(flat)
    kept = 0.0 if shift_mean else mean
    plain = [(v - mean) / math.sqrt(variance + 1e-8) + kept for v in flat]
    assert [v for a in answers(whitened, mask) for v in a] == pytest.approx(plain, abs=1e-6)


def test_masked_means_and_sums():
    mask = torch.tensor([[True, False], [True, True]])
    values = torch.tensor([[1.0, math.nan], [2.0, 6.0]])
    assert masked_mean(values, mask).item() == 3
    assert masked_sum(values, mask).tolist() == [1, 8]
    with pytest.raises(ValueError, match="no token"):
        masked_mean(values, torch.zeros_like(mask))
