"""What an iteration of rollouts gives to learn from, and what an algorithm makes of it."""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftwork_trainer.recipes.policy import AnswerTokens, Seen
from graftwork_trainer.rl.losses import PolicyLoss, kl_k1, kl_k3
from graftwork_trainer.rl.masked import masked_mean, masked_sum
from graftwork_trainer.rollouts import RolloutBatch


@dataclass(frozen=True, slots=True)
class Experience:
    """The answers of one iteration, as the policy that gave them sees them; no gradients."""

    answers: AnswerTokens
    groups: Tensor  # (answers,) int64
    scores: Tensor  # (answers,) float32
    old: Seen
    reference_logprobs: Tensor  # (answers, longest)
    weights: Tensor  # (answers, longest): from the engine's policy to ours
    kl_coefficient: float

    @property
    def mask(self) -> Tensor:
        return self.answers.mask

    @property
    def kl(self) -> Tensor:
        """(answers, longest): estimated divergence from the reference at each token."""
        return kl_k1(self.old.logprobs, self.reference_logprobs)


class Algorithm(ABC):
    """What differs between PPO, GRPO and RLOO."""

    value_head: nn.Module | None = None

    @abstractmethod
    def prepare(self, experience: Experience) -> dict[str, Tensor]:
        """What the loss needs of all answers, such as advantages: (answers, ...) each."""

    @abstractmethod
    def loss(
        self, seen: Seen, experience: Experience, rows: Tensor, prepared: dict[str, Tensor]
    ) -> tuple[Tensor, PolicyLoss]:
        """Of the answers `rows` (n,) int64, which `seen` is of, cut to the longest of them."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Of the optimizer, beside the adapter's."""
        return []


def cut(tensor: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """The rows of (answers, longest), as long as those of `like`."""
    return tensor[rows][:, : like.shape[1]]


def figures(
    experience: Experience, batch: RolloutBatch, unscored: Counter[str]
) -> dict[str, float]:
    """What an iteration tells of its answers; `unscored` counts those without a reward."""
    mask, scores = experience.mask, experience.scores
    gap = experience.old.logprobs - experience.answers.sampler_logprobs
    lengths = mask.sum(dim=-1).float()
    skipped = batch.skipped + unscored
    return {
        "reward": scores.mean().item(),
        "reward_deviation": scores.std(unbiased=False).item(),
        "kl": masked_sum(experience.kl, mask).mean().item(),  # nats for each answer
        "kl_coefficient": experience.kl_coefficient,
        "entropy": masked_mean(experience.old.entropy, mask).item(),
        "length": lengths.mean().item(),
        "truncated": batch.num_truncated / len(batch.rollouts),
        # How far the engine's policy is from ours, which should be the same: per token.
        "sampler_kl": masked_mean(kl_k3(torch.zeros_like(gap), gap), mask).item(),
        "sampler_gap": masked_mean(gap.abs(), mask).item(),
        "skipped": float(skipped.total()),
        **{f"skipped_{reason}": float(number) for reason, number in skipped.items()},
    }
