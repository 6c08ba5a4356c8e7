"""The optimizer steps of an iteration."""

import math
import random
from collections.abc import Sequence
from typing import Any

import grpc
import torch
from torch import Tensor, nn

from graftwork_trainer.errors import TrainerError
from graftwork_trainer.methods.attach import AttachedAdapter
from graftwork_trainer.recipes.experience import Algorithm, Experience
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.options import OnlineOptions
from graftwork_trainer.recipes.policy import AnswerTokens, look
from graftwork_trainer.recipes.run import TrainingRun

_ADAM_EPSILON = 1e-5  # detail 3 of Huang et al., "The 37 implementation details of PPO" (2022)


class NothingToLearn(TrainerError):
    """All answers are worth the same, or none could be judged."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_LEARN"


class Learner:
    """Goes downhill on an algorithm's loss of the answers it is given."""

    def __init__(
        self,
        run: TrainingRun,
        options: OnlineOptions,
        adapter: AttachedAdapter,
        algorithm: Algorithm,
    ) -> None:
        self._run = run
        self._options = options
        self._adapter = adapter
        self._algorithm = algorithm
        self.trained = nn.ModuleList([adapter.model])
        if algorithm.value_head is not None:
            self.trained.append(algorithm.value_head)
        parameters = run.hyperparameters
        own: dict[str, Any] = {"params": [p for p in adapter.model.parameters() if p.requires_grad]}
        self.optimizer = torch.optim.AdamW(
            [own, *algorithm.parameter_groups()],
            # Of an adapter that learns from rewards, whose gradients are noisier than an example's.
            lr=parameters.learning_rate or adapter.method.learning_rate / 5,
            eps=_ADAM_EPSILON,
            weight_decay=parameters.weight_decay,
        )
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def learning_rate(self) -> float:
        """Of the adapter in the last iteration."""
        return float(self.optimizer.param_groups[0]["lr"])

    def learn(self, experience: Experience, iteration: int) -> dict[str, float]:
        """The passes over the answers of an iteration, counted from 0; ends early where the policy
        has gone far enough. Returns the means of its steps' figures.

        Raises NothingToLearn where a gradient is not finite.
        """
        parameters = self._run.hyperparameters
        prepared = self._algorithm.prepare(experience)
        share = _rate_share(parameters, iteration, self._options.iterations)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        place = f"{parameters.seed}/{iteration}"
        order = random.Random(place)  # noqa: S311
        # Dropout is the same whether the run came here in one go or was killed on the way.
        torch.manual_seed(random.Random(f"{place}/dropout").getrandbits(63))  # noqa: S311
        steps: list[dict[str, float]] = []
        self._adapter.model.train()
        size = parameters.batch_size * parameters.gradient_accumulation
        for _ in range(math.ceil(parameters.epochs)):
            places = order.sample(range(len(experience.answers)), len(experience.answers))
            for start in range(0, len(places), size):
                steps.append(self._step(experience, prepared, places[start : start + size]))
                if steps[-1]["policy_kl"] > self._options.stop_kl:
                    return _means(steps)
        return _means(steps)

    def _step(
        self, experience: Experience, prepared: dict[str, Tensor], places: Sequence[int]
    ) -> dict[str, float]:
        """One optimizer step on the answers at `places`."""
        parameters = self._run.hyperparameters
        totals = {"loss": 0.0, "clip_fraction": 0.0, "policy_kl": 0.0}
        self.optimizer.zero_grad()
        for start in range(0, len(places), parameters.batch_size):
            part = places[start : start + parameters.batch_size]
            share = len(part) / len(places)
            rollouts = [experience.answers.rollouts[place] for place in part]
            seen = look(self._adapter.base, AnswerTokens.of(rollouts), self._algorithm.value_head)
            loss, policy = self._algorithm.loss(seen, experience, torch.tensor(part), prepared)
            torch.autograd.backward(loss * share)
            totals["loss"] += loss.item() * share
            totals["clip_fraction"] += policy.clip_fraction * share
            totals["policy_kl"] += policy.approximate_kl * share
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, parameters.max_gradient_norm)
        if not torch.isfinite(norm):
            raise NothingToLearn("the gradient is not finite: lower the learning rate")
        self.optimizer.step()
        return {**totals, "gradient_norm": norm.item()}


def _rate_share(parameters: Hyperparameters, iteration: int, total: int) -> float:
    """Of the learning rate in an iteration, counted from 0: it rises, and then falls to zero just
    past the last one, as the schedule has it."""
    warmup = math.ceil(parameters.warmup * total)
    if iteration < warmup:
        return (iteration + 1) / (warmup + 1)
    done = (iteration - warmup) / (total - warmup)
    if parameters.schedule == "linear":
        return 1 - done
    if parameters.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def _means(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
