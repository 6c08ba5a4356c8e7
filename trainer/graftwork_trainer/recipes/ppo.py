"""Proximal policy optimization on rollouts (Schulman et al., 2017, arXiv:1707.06347; for language
models Ziegler et al., 2019, arXiv:1909.08593, and Ouyang et al., 2022, arXiv:2203.02155).

The details follow Huang et al., "The N implementation details of RLHF with PPO" (2023): the value
head begins at zero, rewards are whitened without their mean, advantages with it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from graftwork_trainer.recipes.experience import Algorithm, Experience, cut
from graftwork_trainer.recipes.online import ServingAccess, train_online
from graftwork_trainer.recipes.options import PpoOptions
from graftwork_trainer.recipes.policy import Seen
from graftwork_trainer.recipes.run import TrainingRun
from graftwork_trainer.rl.advantages import generalized_advantages, token_rewards
from graftwork_trainer.rl.losses import PolicyLoss, clipped_surrogate, clipped_value_loss
from graftwork_trainer.rl.masked import masked_mean, whiten
from graftwork_trainer.rl.value_head import ValueHead


def train_ppo(run: TrainingRun, serving: ServingAccess, options: Mapping[str, Any]) -> Path:
    """Trains an adapter on rewards; arguments and errors as `online.train_online`, `options` those
    of PpoOptions."""
    chosen = PpoOptions.parse(options)
    head = ValueHead(int(run.base.model.config.hidden_size))
    return train_online(run, serving, chosen, _Ppo(chosen, head))


class _Ppo(Algorithm):
    def __init__(self, options: PpoOptions, head: ValueHead) -> None:
        self._options = options
        self.value_head = self._head = head

    def parameter_groups(self) -> list[dict[str, Any]]:
        rate = self._options.value_learning_rate
        return [{"params": list(self._head.parameters()), "lr": rate}]

    def prepare(self, experience: Experience) -> dict[str, Tensor]:
        options, mask, values = self._options, experience.mask, experience.old.values
        if values is None:
            raise ValueError("PPO needs values")
        rewards = token_rewards(experience.scores, experience.kl, mask, experience.kl_coefficient)
        if options.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalized_advantages(
            rewards, values, mask, discount=options.discount, trace_decay=options.trace_decay
        )
        return {"advantages": whiten(advantages, mask), "returns": returns, "values": values}

    def loss(
        self, seen: Seen, experience: Experience, rows: Tensor, prepared: dict[str, Tensor]
    ) -> tuple[Tensor, PolicyLoss]:
        options, like = self._options, seen.logprobs
        mask = cut(experience.mask, rows, like)
        policy = clipped_surrogate(
            seen.logprobs,
            cut(experience.old.logprobs, rows, like),
            cut(prepared["advantages"], rows, like),
            mask,
            clip=options.clip,
            weights=cut(experience.weights, rows, like),
        )
        if seen.values is None:
            raise ValueError("PPO needs values")
        value = clipped_value_loss(
            seen.values,
            cut(prepared["values"], rows, like),
            cut(prepared["returns"], rows, like),
            mask,
            clip=options.value_clip,
        )
        entropy = masked_mean(seen.entropy, mask)
        loss = policy.loss + options.value_coefficient * value
        return loss - options.entropy_coefficient * entropy, policy
