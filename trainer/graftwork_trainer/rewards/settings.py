"""Rewards as a job's spec writes them, in `recipe_options.rewards`: a list of objects.

    {"kind": "regex", "pattern": "^Sorry", "whole": false, "weight": -1}
    {"kind": "json_schema", "schema": {"type": "object"}}
    {"kind": "length", "shortest": 5, "longest": 60, "weight": 0.2}
    {"kind": "plugin", "name": "politeness", "timeout_s": 10}
    {"kind": "adapter", "adapter": "helpfulness@3"}
    {"kind": "judge", "target": "localhost:50060", "tls": false, "timeout_s": 60}

Each may have a weight, 1 by default; an answer's reward is their weighted sum.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from graftwork import AsyncClient
from graftwork.status import InvalidFieldError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from graftwork_trainer.rewards.checks import LengthReward, RegexReward
from graftwork_trainer.rewards.composition import WeightedSum
from graftwork_trainer.rewards.isolated import check_schema, json_schema_reward, plugin_reward
from graftwork_trainer.rewards.remote import AdapterReward, JudgeReward
from graftwork_trainer.rewards.reward import Reward

_Timeout = Annotated[float, Field(gt=0, le=3600)]


class _Setting(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: float = 1.0

    def build(self, client: AsyncClient) -> Reward:
        raise NotImplementedError

    def check(self) -> None:
        """Raises ValueError for values that do not go together, or are not what they should be."""

    @model_validator(mode="after")
    def _checked(self) -> "_Setting":
        if self.weight == 0:
            raise ValueError("a weight of 0 leaves the reward out: remove it instead")
        self.check()
        return self


class _Regex(_Setting):
    kind: Literal["regex"]
    pattern: str
    whole: bool = False

    def check(self) -> None:
        RegexReward(self.pattern)

    def build(self, client: AsyncClient) -> Reward:  # noqa: ARG002 - as all
        return RegexReward(self.pattern, whole=self.whole)


class _JsonSchema(_Setting):
    kind: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")
    timeout_s: _Timeout = 5.0

    def check(self) -> None:
        check_schema(self.schema_)

    def build(self, client: AsyncClient) -> Reward:  # noqa: ARG002
        return json_schema_reward(self.schema_, timeout_s=self.timeout_s)


class _Length(_Setting):
    kind: Literal["length"]
    shortest: int = 0
    longest: int

    def check(self) -> None:
        LengthReward(self.shortest, self.longest)

    def build(self, client: AsyncClient) -> Reward:  # noqa: ARG002
        return LengthReward(self.shortest, self.longest)


class _Plugin(_Setting):
    kind: Literal["plugin"]
    name: str
    timeout_s: _Timeout = 10.0

    def build(self, client: AsyncClient) -> Reward:  # noqa: ARG002
        return plugin_reward(self.name, timeout_s=self.timeout_s)


class _Adapter(_Setting):
    kind: Literal["adapter"]
    adapter: str = Field(min_length=1)

    def build(self, client: AsyncClient) -> Reward:
        return AdapterReward(client, self.adapter)


class _Judge(_Setting):
    kind: Literal["judge"]
    target: str = Field(min_length=1)
    tls: bool = False
    timeout_s: _Timeout = 60.0

    def build(self, client: AsyncClient) -> Reward:  # noqa: ARG002
        return JudgeReward(self.target, tls=self.tls, timeout_s=self.timeout_s)


RewardSetting = Annotated[
    _Regex | _JsonSchema | _Length | _Plugin | _Adapter | _Judge, Field(discriminator="kind")
]
_SETTINGS: TypeAdapter[list[RewardSetting]] = TypeAdapter(
    Annotated[list[RewardSetting], Field(min_length=1)]
)


def parse_rewards(value: object, field: str) -> list[RewardSetting]:
    """The settings in a decoded JSON list. Raises InvalidFieldError that names the field, below
    `field`."""
    try:
        settings = _SETTINGS.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        # Beside keys and indices the place holds the chosen kind, which is no key.
        place = [part for part in first["loc"] if part not in _KINDS]
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place)
        raise InvalidFieldError(field + path, first["msg"].removeprefix("Value error, ")) from None
    return settings


def build_reward(settings: Sequence[RewardSetting], client: AsyncClient) -> Reward:
    """The reward that the settings describe; to be called inside the event loop that uses it."""
    return WeightedSum([(setting.build(client), setting.weight) for setting in settings])


_KINDS = {"regex", "json_schema", "length", "plugin", "adapter", "judge"}
