"""What recipes have beside the hyperparameters of all: a job's `recipe_options`. No torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from graftwork.status import InvalidFieldError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graftwork_trainer.rewards.settings import RewardSetting, parse_rewards


class RecipeOptions(BaseModel):
    """Base of all; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    is_online: ClassVar[bool] = False  # learns from answers that it asks the server for

    @classmethod
    def parse(cls, values: Mapping[str, Any], name: str = "recipe_options") -> Self:
        """Raises InvalidFieldError that names the field, below `name`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join([name, *map(str, first["loc"])])
            raise InvalidFieldError(path, first["msg"].removeprefix("Value error, ")) from None


class DpoOptions(RecipeOptions):
    beta: float = Field(0.1, gt=0, le=10)  # how dearly leaving the reference is paid for


class KtoOptions(RecipeOptions):
    beta: float = Field(0.1, gt=0, le=10)  # how dearly leaving the reference is paid for
    desirable_weight: float = Field(1.0, gt=0)  # of the good answers' losses
    undesirable_weight: float = Field(1.0, gt=0)


class OrpoOptions(RecipeOptions):
    beta: float = Field(0.1, gt=0, le=10)  # weight of the odds ratio beside the likelihood


class RewardOptions(RecipeOptions):
    # Weight of the squared sum of a pair's rewards, which keeps them around zero.
    center_rewards: float = Field(0.0, ge=0)


class OnlineOptions(RecipeOptions):
    """Of the hyperparameters, `batch_size` times `gradient_accumulation` answers make an optimizer
    step, `epochs` are the passes over each iteration's answers, and `schedule` and `warmup` run
    over the iterations."""

    is_online: ClassVar[bool] = True

    rewards: tuple[RewardSetting, ...]  # rewards/settings.py
    iterations: int = Field(50, ge=1, le=100_000)
    prompts: int = Field(16, ge=1, le=4096)  # of each iteration
    num_samples: int = Field(4, ge=1, le=64)  # answers to each
    max_tokens: int = Field(64, ge=1)  # of an answer
    truncation_penalty: float = Field(0.0, ge=0)  # off the reward of an answer that is cut off
    clip: float = Field(0.2, gt=0, lt=1)  # of ratios
    kl_coefficient: float = Field(0.05, ge=0)  # reward per nat from the reference
    # Nats for each answer that the coefficient is steered to, by at most a fifth within
    # kl_horizon answers. None: the coefficient stays.
    kl_target: float | None = Field(None, gt=0)
    kl_horizon: float = Field(10_000, gt=0)
    # The passes over an iteration's answers end where the policy is so far from the one that
    # gave them, in nats per token.
    stop_kl: float = Field(0.05, gt=0)
    sampler_cap: float = Field(2.0, ge=1)  # of the weights from the engine's policy to ours

    @classmethod
    def parse(cls, values: Mapping[str, Any], name: str = "recipe_options") -> Self:
        if "rewards" not in values:
            raise InvalidFieldError(f"{name}.rewards", "is missing: say what an answer is worth")
        rewards = parse_rewards(values["rewards"], f"{name}.rewards")
        return super().parse({**values, "rewards": tuple(rewards)}, name)


class PpoOptions(OnlineOptions):
    num_samples: int = Field(1, ge=1, le=64)
    kl_target: float | None = Field(6.0, gt=0)
    discount: float = Field(1.0, gt=0, le=1)
    trace_decay: float = Field(0.95, ge=0, le=1)
    value_clip: float = Field(0.2, gt=0)
    value_coefficient: float = Field(0.1, ge=0)
    value_learning_rate: float = Field(1e-3, gt=0)  # of the value head, which starts from nothing
    entropy_coefficient: float = Field(0.0, ge=0)
    whiten_rewards: bool = True


class GrpoOptions(OnlineOptions):
    num_samples: int = Field(8, ge=2, le=64)


class RlooOptions(OnlineOptions):
    num_samples: int = Field(4, ge=2, le=64)


OPTIONS: Mapping[str, type[RecipeOptions]] = {
    "sft": RecipeOptions,
    "reward": RewardOptions,
    "dpo": DpoOptions,
    "kto": KtoOptions,
    "orpo": OrpoOptions,
    "ppo": PpoOptions,
    "grpo": GrpoOptions,
    "rloo": RlooOptions,
}
