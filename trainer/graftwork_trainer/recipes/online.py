"""Learning from rewards: rollouts by the serving engine, their rewards, a few optimizer steps, and
again. `ppo.py` and `grpo.py` say what the steps go downhill on.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from graftwork import AsyncClient
from graftwork.status import InvalidFieldError
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from graftwork_trainer.datasets import prompts
from graftwork_trainer.datasets.prompts import Prompt
from graftwork_trainer.methods.attach import AttachedAdapter, attach_initial
from graftwork_trainer.recipes.common import attach, torch_threads
from graftwork_trainer.recipes.experience import Algorithm, Experience, figures
from graftwork_trainer.recipes.learner import Learner, NothingToLearn
from graftwork_trainer.recipes.online_state import OnlineState, load_state, save_state
from graftwork_trainer.recipes.options import OnlineOptions
from graftwork_trainer.recipes.policy import AnswerTokens, look_at_all
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
from graftwork_trainer.rl.losses import sampler_weights
from graftwork_trainer.rl.masked import masked_sum
from graftwork_trainer.rollouts import HISTORY_FILE, RolloutBatch, RolloutSampler, RolloutSettings

_MAX_IDLE = 5


@dataclass(frozen=True, slots=True)
class ServingAccess:
    """Where the policy answers."""

    target: str  # of the server
    adapter: str  # that gets the ephemeral versions
    owner: str  # of them: the job's id
    task: str  # of the rollouts
    initial_version: str = ""  # "name@version" of `TrainingRun.initial`
    metadata: dict[str, str] = field(default_factory=dict)  # credentials


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
        self._learner = Learner(run, options, self._adapter, algorithm)
        found = load_state(run.checkpoints_folder, self._learner.trained, self._learner.optimizer)
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
            steps: dict[str, float] = {}
        else:
            state.num_idle = 0
            steps = self._learner.learn(experience, state.iteration)
            state.has_moved = True
            await self._upload(sampler)
        self._steer_kl(experience)
        state.iteration += 1
        state.tokens += answers.num_tokens
        state.seconds += time.monotonic() - begun
        metrics = figures(experience, batch, skipped) | steps
        state.history.append(metrics)
        save_state(
            self._run.checkpoints_folder, state, self._learner.trained, self._learner.optimizer
        )
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
                learning_rate=self._learner.learning_rate,
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
