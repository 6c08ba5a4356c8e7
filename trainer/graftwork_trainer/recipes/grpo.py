"""Group relative policy optimization (Shao et al., 2024, arXiv:2402.03300) and REINFORCE
leave-one-out (Ahmadian et al., 2024, arXiv:2402.14740): several answers to each prompt, each
compared with the others, and no value head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from graftwork_trainer.recipes.experience import Algorithm, Experience, cut
from graftwork_trainer.recipes.online import ServingAccess, train_online
from graftwork_trainer.recipes.options import GrpoOptions, RlooOptions
from graftwork_trainer.recipes.policy import Seen
from graftwork_trainer.recipes.run import TrainingRun
from graftwork_trainer.rl.advantages import group_advantages, leave_one_out_advantages
from graftwork_trainer.rl.losses import (
    PolicyLoss,
    clipped_sequence_surrogate,
    clipped_surrogate,
    kl_k3,
)
from graftwork_trainer.rl.masked import masked_mean, masked_sum


def train_grpo(run: TrainingRun, serving: ServingAccess, options: Mapping[str, Any]) -> Path:
    """Trains an adapter on rewards; arguments and errors as `online.train_online`, `options` those
    of GrpoOptions. The divergence from the reference is part of the loss."""
    chosen = GrpoOptions.parse(options)
    return train_online(run, serving, chosen, _Grpo(chosen))


def train_rloo(run: TrainingRun, serving: ServingAccess, options: Mapping[str, Any]) -> Path:
    """The same with whole answers as actions; the divergence is taken off the reward."""
    chosen = RlooOptions.parse(options)
    return train_online(run, serving, chosen, _Rloo(chosen))


class _Grpo(Algorithm):
    def __init__(self, options: GrpoOptions) -> None:
        self._options = options

    def prepare(self, experience: Experience) -> dict[str, Tensor]:
        return {"advantages": group_advantages(experience.scores, experience.groups)}

    def loss(
        self, seen: Seen, experience: Experience, rows: Tensor, prepared: dict[str, Tensor]
    ) -> tuple[Tensor, PolicyLoss]:
        like = seen.logprobs
        mask = cut(experience.mask, rows, like)
        policy = clipped_surrogate(
            seen.logprobs,
            cut(experience.old.logprobs, rows, like),
            prepared["advantages"][rows][:, None],
            mask,
            clip=self._options.clip,
            weights=cut(experience.weights, rows, like),
        )
        kl = kl_k3(seen.logprobs, cut(experience.reference_logprobs, rows, like))
        return policy.loss + experience.kl_coefficient * masked_mean(kl, mask), policy


class _Rloo(Algorithm):
    def __init__(self, options: RlooOptions) -> None:
        self._options = options

    def prepare(self, experience: Experience) -> dict[str, Tensor]:
        price = experience.kl_coefficient * masked_sum(experience.kl, experience.mask)
        return {
            "advantages": leave_one_out_advantages(experience.scores - price, experience.groups)
        }

    def loss(
        self, seen: Seen, experience: Experience, rows: Tensor, prepared: dict[str, Tensor]
    ) -> tuple[Tensor, PolicyLoss]:
        like = seen.logprobs
        policy = clipped_sequence_surrogate(
            seen.logprobs,
            cut(experience.old.logprobs, rows, like),
            prepared["advantages"][rows],
            cut(experience.mask, rows, like),
            clip=self._options.clip,
            weights=cut(experience.weights, rows, like),
        )
        return policy.loss, policy
