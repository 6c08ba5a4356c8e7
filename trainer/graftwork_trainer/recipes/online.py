"""Learning from rewards: rollouts by the serving engine, their rewards, a few optimizer steps, and
again. `ppo.py` and `grpo.py` say what the steps go downhill on.
"""

import asyncio
import json
import math
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import torch
from graftwork import AsyncClient
from graftwork.status import InvalidFieldError
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from graftwork_trainer.datasets import prompts
from graftwork_trainer.datasets.prompts import Prompt
from graftwork_trainer.errors import TrainerError
from graftwork_trainer.methods.attach import AttachedAdapter, attach_initial
from graftwork_trainer.recipes.common import attach, torch_threads
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.online_state import OnlineState, load_state, save_state
from graftwork_trainer.recipes.options import OnlineOptions
from graftwork_trainer.recipes.policy import AnswerTokens, Seen, look, look_at_all
from graftwork_trainer.recipes.run import (
    TrainingProgress,
    TrainingRun,
    TrainingStopped,
    TrainingSummary,
)
from graftwork_trainer.recipes.tokenization import read_lines
from graftwork_trainer.rewards.reward import Reward, Unscored
from graftwork_trainer.rewards.settings import build_reward
from graftwork_trainer.rl.kl_controller import AdaptiveKl
from graftwork_trainer.rl.losses import PolicyLoss, kl_k1, kl_k3, sampler_weights
from graftwork_trainer.rl.masked import masked_mean, masked_sum
from graftwork_trainer.rollouts import RolloutBatch, RolloutSampler, RolloutSettings

HISTORY_FILE = "rollouts.json"

_MAX_IDLE = 5
_ADAM_EPSILON = 1e-5  # detail 3 of Huang et al., "The 37 implementation details of PPO" (2022)


class NothingToLearn(TrainerError):
    """All answers are worth the same, or none could be judged."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_LEARN"


@dataclass(frozen=True, slots=True)
class ServingAccess:
    """Where the policy answers."""

    target: str  # of the server
    adapter: str  # that gets the ephemeral versions
    owner: str  # of them: the job's id
    task: str  # of the rollouts
    initial_version: str = ""  # "name@version" of `TrainingRun.initial`
    metadata: dict[str, str] = field(default_factory=dict)  # credentials


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

    def parameter_groups(self) -> list[dict[str, object]]:
        """Of the optimizer, beside the adapter's."""
        return []


def train_online(
    run: TrainingRun, serving: ServingAccess, options: OnlineOptions, algorithm: Algorithm
) -> Path:
    """Trains an adapter on what its answers earn; returns its folder. Goes on from the iteration
    after which it was killed; a run that is done is not done again.

    Raises InvalidFieldError for what cannot be trained, TrainingStopped where `should_stop` said
    so, NothingToLearn, NoRollouts, RewardError, and the client's errors.
    """
    if run.adapter_folder.exists():
        return run.adapter_folder
    run.folder.mkdir(parents=True, exist_ok=True)
    with torch_threads(run.threads):
        asyncio.run(_OnlineTraining(run, serving, options, algorithm).train())
    return run.adapter_folder


class _OnlineTraining:
    def __init__(
        self,
        run: TrainingRun,
        serving: ServingAccess,
        options: OnlineOptions,
        algorithm: Algorithm,
    ) -> None:
        self._run = run
        self._serving = serving
        self._options = options
        self._algorithm = algorithm
        self._prompts = _read_prompts(run.train)
        parameters = run.hyperparameters
        set_seed(parameters.seed)
        model = run.base.fresh_model()
        self._adapter = attach(run, model, options.iterations)
        if not self._adapter.method.packs or self._adapter.method.peft_type == "ADALORA":
            raise InvalidFieldError(
                "method", f"{self._adapter.method.peft_type} does not learn from rewards: take LORA"
            )
        self._reference = _reference(run)
        self._trained = nn.ModuleList([self._adapter.model])
        if algorithm.value_head is not None:
            self._trained.append(algorithm.value_head)
        rate = parameters.learning_rate or self._adapter.method.learning_rate / 5
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self._adapter.model.parameters() if p.requires_grad]},
                *algorithm.parameter_groups(),
            ],
            lr=rate,
            eps=_ADAM_EPSILON,
            weight_decay=parameters.weight_decay,
        )
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        found = load_state(run.checkpoints_folder, self._trained, self._optimizer)
        self._state = found or OnlineState(kl_coefficient=options.kl_coefficient)

    async def train(self) -> None:
        options, serving = self._options, self._serving
        settings = RolloutSettings(
            num_samples=options.num_samples,
            max_tokens=options.max_tokens,
            max_length=self._run.hyperparameters.max_length,
            task=serving.task,
            seed=self._run.hyperparameters.seed,
        )
        async with AsyncClient(serving.target, metadata=serving.metadata) as client:
            reward = build_reward(options.rewards, client)
            sampler = RolloutSampler(
                client,
                adapter=serving.adapter,
                owner=serving.owner,
                settings=settings,
                initial_version=serving.initial_version,
            )
            try:
                await sampler.check()
                await self._iterate(sampler, reward)
            finally:
                await reward.close()
                await sampler.close()
        self._finish()

    async def _iterate(self, sampler: RolloutSampler, reward: Reward) -> None:
        state = self._state
        if state.has_moved:
            await self._upload(sampler)
        while state.iteration < self._options.iterations and state.num_idle < _MAX_IDLE:
            if self._run.should_stop():
                raise TrainingStopped(f"stopped after iteration {state.iteration}")
            await self._iteration(sampler, reward)
        if state.num_idle >= _MAX_IDLE and not state.has_moved:
            raise NothingToLearn(
                f"every answer of {_MAX_IDLE} iterations is worth "
                f"{state.history[-1]['reward']:g}: the reward tells no answers apart"
            )

    async def _iteration(self, sampler: RolloutSampler, reward: Reward) -> None:
        begun, state = time.monotonic(), self._state
        batch = await sampler.sample(self._next_prompts(), iteration=state.iteration)
        answers, scores, skipped = await self._score(batch, reward)
        experience = self._experience(answers, scores)
        if bool((scores - scores[0]).abs().max() <= 1e-6):
            state.num_idle += 1
            figures: dict[str, float] = {}
        else:
            state.num_idle = 0
            figures = self._learn(experience)
            state.has_moved = True
            await self._upload(sampler)
        self._steer_kl(experience)
        state.iteration += 1
        state.tokens += answers.num_tokens
        state.seconds += time.monotonic() - begun
        metrics = _metrics(experience, batch, skipped) | figures
        state.history.append(metrics)
        save_state(self._run.checkpoints_folder, state, self._trained, self._optimizer)
        self._report(metrics)

    def _next_prompts(self) -> list[Prompt]:
        """The prompts of an iteration: the list over and over, shuffled anew each time."""
        size, count = self._options.prompts, len(self._prompts)
        first = self._state.iteration * size
        chosen = []
        for place in range(first, first + size):
            order = random.Random(f"{self._run.hyperparameters.seed}/{place // count}")  # noqa: S311
            chosen.append(self._prompts[order.sample(range(count), count)[place % count]])
        return chosen

    async def _score(
        self, batch: RolloutBatch, reward: Reward
    ) -> tuple[AnswerTokens, Tensor, Counter[str]]:
        """The answers that got a reward, their rewards, and why others got none."""
        scores = await reward.score([rollout.answer for rollout in batch.rollouts])
        unscored = Counter(score.reason for score in scores if isinstance(score, Unscored))
        kept, values = [], []
        for rollout, score in zip(batch.rollouts, scores, strict=True):
            if not isinstance(score, Unscored):
                kept.append(rollout)
                values.append(score - self._options.truncation_penalty * rollout.is_truncated)
        if not kept:
            first = next(score for score in scores if isinstance(score, Unscored))
            raise NothingToLearn(
                f"none of {len(scores)} answers got a reward; the first one: {first.reason}, "
                f"{first.detail}"
            )
        return AnswerTokens.of(kept), torch.tensor(values), unscored

    def _experience(self, answers: AnswerTokens, scores: Tensor) -> Experience:
        self._adapter.model.eval()
        old = look_at_all(self._adapter.base, answers, self._algorithm.value_head)
        reference = look_at_all(self._reference, answers)
        weights = sampler_weights(old.logprobs, answers.sampler_logprobs, self._options.sampler_cap)
        groups = torch.tensor([rollout.group for rollout in answers.rollouts])
        return Experience(
            answers, groups, scores, old, reference.logprobs, weights, self._state.kl_coefficient
        )

    def _learn(self, experience: Experience) -> dict[str, float]:
        """The passes over the answers; ends early where the policy has gone far enough."""
        parameters = self._run.hyperparameters
        prepared = self._algorithm.prepare(experience)
        share = _rate_share(parameters, self._state.iteration, self._options.iterations)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        order = random.Random(f"{parameters.seed}/{self._state.iteration}")  # noqa: S311
        sums, num_steps = Counter[str](), 0
        self._adapter.model.train()
        size = parameters.batch_size * parameters.gradient_accumulation
        for _ in range(math.ceil(parameters.epochs)):
            places = order.sample(range(len(experience.answers)), len(experience.answers))
            for start in range(0, len(places), size):
                step = self._step(experience, prepared, places[start : start + size])
                sums.update(step)
                num_steps += 1
                if step["policy_kl"] > self._options.stop_kl:
                    return {name: value / num_steps for name, value in sums.items()}
        return {name: value / num_steps for name, value in sums.items()}

    def _step(
        self, experience: Experience, prepared: dict[str, Tensor], places: Sequence[int]
    ) -> dict[str, float]:
        """One optimizer step on the answers at `places`."""
        parameters = self._run.hyperparameters
        totals = Counter[str]()
        self._optimizer.zero_grad()
        for start in range(0, len(places), parameters.batch_size):
            part = places[start : start + parameters.batch_size]
            share = len(part) / len(places)
            rollouts = [experience.answers.rollouts[place] for place in part]
            seen = look(self._adapter.base, AnswerTokens.of(rollouts), self._algorithm.value_head)
            loss, policy = self._algorithm.loss(seen, experience, torch.tensor(part), prepared)
            (loss * share).backward()
            totals.update(
                loss=loss.item() * share,
                clip_fraction=policy.clip_fraction * share,
                policy_kl=policy.approximate_kl * share,
            )
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, parameters.max_gradient_norm)
        if not torch.isfinite(norm):
            raise NothingToLearn("the gradient is not finite: lower the learning rate")
        self._optimizer.step()
        return {**totals, "gradient_norm": norm.item()}

    def _steer_kl(self, experience: Experience) -> None:
        target = self._options.kl_target
        if target is None or not self._state.kl_coefficient:
            return
        controller = AdaptiveKl(self._state.kl_coefficient, target, self._options.kl_horizon)
        per_answer = masked_sum(experience.kl, experience.mask).mean().item()
        controller.update(per_answer, len(experience.answers))
        self._state.kl_coefficient = controller.coefficient

    async def _upload(self, sampler: RolloutSampler) -> None:
        folder = self._run.folder / "policy"
        self._adapter.save(folder, self._run.base.description.digest)
        await sampler.set_policy(folder)

    def _report(self, metrics: dict[str, float]) -> None:
        state, options = self._state, self._options
        left = options.iterations - state.iteration
        self._run.progress(
            TrainingProgress(
                step=state.iteration,
                total_steps=options.iterations,
                epoch=state.iteration * options.prompts / len(self._prompts),
                loss=metrics.get("loss", 0.0),
                learning_rate=self._optimizer.param_groups[0]["lr"],
                tokens_per_second=state.tokens / max(state.seconds, 1e-9),
                remaining_s=left * state.seconds / state.iteration,
                metrics={k: v for k, v in metrics.items() if k != "loss"},
            )
        )

    def _finish(self) -> None:
        run, state = self._run, self._state
        (run.folder / HISTORY_FILE).write_text(json.dumps(state.history))
        last = state.history[-max(1, len(state.history) // 10) :]
        TrainingSummary(
            method=self._adapter.method.peft_type,
            steps=state.iteration,
            train_loss=_mean(last, "loss"),
            validation_loss=None,
            train_examples=len(self._prompts),
            validation_examples=0,
            left_out=int(sum(metrics["skipped"] for metrics in state.history)),
            trained_parameters=self._adapter.num_trained,
            tokens=state.tokens,
            seconds=state.seconds,
            metrics={
                "first_reward": state.history[0]["reward"],
                "reward": _mean(last, "reward"),
                "kl": _mean(last, "kl"),
            },
        ).write(run.folder)
        self._adapter.save(run.adapter_folder, run.base.description.digest)


def cut(tensor: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """The rows of (answers, longest), as long as those of `like`."""
    return tensor[rows][:, : like.shape[1]]


def _metrics(
    experience: Experience, batch: RolloutBatch, unscored: Counter[str]
) -> dict[str, float]:
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


def _reference(run: TrainingRun) -> PreTrainedModel:
    """The base itself, or a tree of its own with the version that the run goes on from."""
    if run.initial is None:
        return run.base.model
    adapter: AttachedAdapter = attach_initial(
        run.base.fresh_model(), run.initial, run.base.description.digest
    )
    adapter.model.requires_grad_(requires_grad=False)
    adapter.model.eval()
    return adapter.base


def _read_prompts(path: Path) -> list[Prompt]:
    """Each once, in the order of the file; examples of any format have one. Raises
    InvalidFieldError, InvalidExample."""
    found = dict.fromkeys(
        prompts.parse(value.get("prompt"), f"{name}.prompt") for name, value in read_lines(path)
    )
    if not found:
        raise InvalidFieldError("dataset", "holds no prompt to answer")
    return list(found)


def _mean(metrics: Sequence[dict[str, float]], name: str) -> float:
    values = [entry[name] for entry in metrics if name in entry]
    return sum(values) / len(values) if values else 0.0
