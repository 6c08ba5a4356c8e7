import math
import statistics

import pytest
import torch
from graftwork_trainer.rl.losses import (
    clipped_sequence_surrogate,
    clipped_surrogate,
    clipped_value_loss,
    kl_k1,
    kl_k3,
    sampler_weights,
    token_entropy,
    token_logprobs,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.rl.trajectories import answers, random_mask, random_values

batches = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31))


def clip(value, low, high):
    return min(max(value, low), high)


def plain_surrogate(new, old, advantages, weights, epsilon):
    """PPO's loss token by token: minus min(r A, clip(r) A)."""
    losses, clipped = [], []
    for answer in zip(new, old, advantages, weights, strict=True):
        for n, o, advantage, weight in zip(*answer, strict=True):
            ratio = math.exp(n - o)
            kept = clip(ratio, 1 - epsilon, 1 + epsilon)
            losses.append(-min(ratio * advantage, kept * advantage) * weight)
            clipped.append(kept * advantage < ratio * advantage)
    return statistics.mean(losses), statistics.mean(clipped)


@given(batches, st.floats(0.05, 0.5))
def test_ppo_loss_is_the_plain_one(batch, epsilon):
    size, time, seed = batch
    mask = random_mask(size, time, seed)
    new, old, advantages, sampled = (
        random_values(size, time, seed=seed + i, scale=0.5) for i in range(1, 5)
    )
    weights = sampler_weights(old, sampled, cap=2.0)

    loss = clipped_surrogate(new, old, advantages, mask, clip=epsilon, weights=weights)

    plain, share = plain_surrogate(
        *(answers(x, mask) for x in (new, old, advantages)),
        [
            [min(math.exp(o - s), 2.0) for o, s in zip(*pair, strict=True)]
            for pair in zip(answers(old, mask), answers(sampled, mask), strict=True)
        ],
        epsilon,
    )
    assert loss.loss.item() == pytest.approx(plain, abs=1e-6)
    assert loss.clip_fraction == pytest.approx(share, abs=1e-6)
    ratios = [n - o for a in zip(answers(new, mask), answers(old, mask), strict=True)
              for n, o in zip(*a, strict=True)]  # fmt: skip
    drift = statistics.mean(math.exp(ratio) - 1 - ratio for ratio in ratios)
    assert loss.approximate_kl == pytest.approx(drift, abs=1e-6)


def test_an_answers_advantage_is_that_of_its_tokens():
    mask = random_mask(3, 4, 0)
    new, old = random_values(3, 4, seed=1), random_values(3, 4, seed=2)
    advantages = random_values(3, seed=3)
    of_answers = clipped_surrogate(new, old, advantages[:, None], mask, clip=0.2)
    of_tokens = clipped_surrogate(new, old, advantages[:, None].expand(3, 4), mask, clip=0.2)
    assert of_answers.loss == of_tokens.loss


@given(batches, st.floats(0.05, 0.5))
def test_rloo_loss_is_the_plain_one(batch, epsilon):
    size, time, seed = batch
    mask = random_mask(size, time, seed)
    new, old, sampled = (random_values(size, time, seed=seed + i, scale=0.3) for i in range(1, 4))
    advantages = random_values(size, seed=seed + 4)
    weights = sampler_weights(old, sampled, cap=1.5)

    loss = clipped_sequence_surrogate(new, old, advantages, mask, clip=epsilon, weights=weights)

    losses = []
    rows = zip(*(answers(x, mask) for x in (new, old, weights)), advantages.tolist(), strict=True)
    for n, o, weight, advantage in rows:
        ratio = math.exp(sum(n) - sum(o))
        kept = clip(ratio, 1 - epsilon, 1 + epsilon)
        losses.append(-min(ratio * advantage, kept * advantage) * statistics.mean(weight))
    assert loss.loss.item() == pytest.approx(statistics.mean(losses), abs=1e-6)


@given(batches, st.floats(0.05, 0.5))
def test_value_loss_is_the_plain_one(batch, epsilon):
    size, time, seed = batch
    mask = random_mask(size, time, seed)
    values, old, returns = (random_values(size, time, seed=seed + i) for i in range(1, 4))

    loss = clipped_value_loss(values, old, returns, mask, clip=epsilon).item()

    plain = [
        max((v - r) ** 2, (clip(v, o - epsilon, o + epsilon) - r) ** 2) / 2
        for answer in zip(*(answers(x, mask) for x in (values, old, returns)), strict=True)
        for v, o, r in zip(*answer, strict=True)
    ]
    assert loss == pytest.approx(statistics.mean(plain), abs=1e-6)


def test_logprobs_and_entropy_are_those_of_the_distribution():
    logits = random_values(2, 3, 7, seed=0, scale=2.0)
    ids = torch.tensor([[0, 6, 2], [3, 3, 1]])
    probabilities = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    for row in range(2):
        for step in range(3):
            p = probabilities[row, step]
            assert token_logprobs(logits, ids)[row, step].item() == pytest.approx(
                math.log(p[ids[row, step]]), abs=1e-6
            )
            assert token_entropy(logits)[row, step].item() == pytest.approx(
                -sum(x * math.log(x) for x in p.tolist()), abs=1e-6
            )


def test_both_estimates_are_of_the_divergence():
    """Their expectations under the policy, taken over the whole distribution, are the KL."""
    policy = random_values(50, seed=1).log_softmax(dim=-1)
    base = random_values(50, seed=2).log_softmax(dim=-1)
    divergence = (policy.exp() * (policy - base)).sum().item()
    for estimate in (kl_k1, kl_k3):
        assert (policy.exp() * estimate(policy, base)).sum().item() == pytest.approx(divergence)
    assert (kl_k3(policy, base) >= 0).all()


def test_truncated_weights_correct_for_the_sampler():
    """Over the whole distribution, weighted samples of the engine's give the trainer's mean."""
    trainer = random_values(20, seed=1).log_softmax(dim=-1)
    engine = (trainer + random_values(20, seed=2, scale=0.1)).log_softmax(dim=-1)
    rewards = random_values(20, seed=3)
    weights = sampler_weights(trainer, engine, cap=100.0)
    assert (engine.exp() * weights * rewards).sum().item() == pytest.approx(
        (trainer.exp() * rewards).sum().item()
    )
    assert sampler_weights(trainer, engine, cap=1.0).max() <= 1
