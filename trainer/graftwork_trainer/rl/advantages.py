"""How much better than expected: per token for PPO, per answer for GRPO and RLOO.

Answers are padded on the right; masks (batch, time) bool are true at their tokens.
"""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """(batch, time) rewards: the price of leaving the base at each token, and the answer's score at
    its last one (Ziegler et al., "Fine-tuning language models from human preferences", 2019,
    arXiv:1909.08593).

    `scores` (batch,); `kl` (batch, time) estimates of the divergence from the base at each token.
    Raises ValueError for an answer without tokens.
    """
    lengths = mask.sum(dim=-1)
    if (lengths == 0).any():
        raise ValueError("an answer has no tokens")
    rewards = (-coefficient * kl).where(mask, kl.new_zeros(()))
    return rewards.scatter_add(-1, (lengths - 1)[:, None], scores[:, None].to(rewards.dtype))


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, trace_decay: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, (batch, time) each, zero where `mask` is false.

    GAE (Schulman et al., "High-dimensional continuous control using generalized advantage
    estimation", 2015, arXiv:1506.02438), with `discount` γ and `trace_decay` λ: the sum over later
    tokens of (γλ)^l (r + γV' - V). An answer ends with its last token, also where it was cut off
    for its length: nothing follows that a value could stand for.
    """
    advantages = torch.zeros_like(values)
    following = values.new_zeros(len(values))
    next_value = values.new_zeros(len(values))
    for step in reversed(range(values.shape[1])):
        here = mask[:, step]
        delta = rewards[:, step] + discount * next_value - values[:, step]
        advantage = delta + discount * trace_decay * following
        following = torch.where(here, advantage, following)
        next_value = torch.where(here, values[:, step], next_value)
        advantages[:, step] = advantage.where(here, values.new_zeros(()))
    return advantages, (advantages + values).where(mask, values.new_zeros(()))


def group_advantages(scores: Tensor, groups: Tensor) -> Tensor:
    """(batch,): each score less its group's mean, over the group's standard deviation.

    `groups` (batch,) int64 says which answers share a prompt. GRPO (Shao et al., "DeepSeekMath",
    2024, arXiv:2402.03300), with 1e-4 added to the deviation as TRL has it. A group of equal
    scores, or of one answer, has nothing to learn from: zero.
    """
    mean, count = _group_means(scores, groups)
    squares = (scores - mean) ** 2
    variance, _ = _group_means(squares, groups)
    deviation = (variance * count / (count - 1).clamp(min=1)).sqrt()
    return (scores - mean) / (deviation + 1e-4)


def leave_one_out_advantages(scores: Tensor, groups: Tensor) -> Tensor:
    """(batch,): each score less the mean score of the group's other answers.

    RLOO (Ahmadian et al., "Back to basics", 2024, arXiv:2402.14740). Arguments as for
    `group_advantages`; an answer that is alone in its group has no baseline: zero.
    """
    mean, count = _group_means(scores, groups)
    return (scores - mean) * count / (count - 1).clamp(min=1)


def num_informative_groups(scores: Tensor, groups: Tensor) -> int:
    """Groups in which two answers differ in their score: the others teach nothing."""
    mean, _ = _group_means(scores, groups)
    return len(torch.unique(groups[(scores - mean).abs() > 1e-6]))


def _group_means(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each answer's group, and its size: (batch,) each."""
    _, place, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(counts)).index_add(0, place, values)
    return (sums / counts)[place], counts[place].to(values.dtype)
