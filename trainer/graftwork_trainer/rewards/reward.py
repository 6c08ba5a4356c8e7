"""What every reward takes and gives."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from graftwork_trainer.datasets.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to be judged."""

    prompt: Prompt
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Unscored:
    """Why an answer has no reward. It is left out of the training and counted by `reason`."""

    reason: str  # a counter's name: "raised", "timed_out", "not_finite", "no_opinion"
    detail: str = ""


Score = float | Unscored


class Reward(ABC):
    """Use it in one event loop, and close it there.

    What goes wrong with one answer makes it Unscored. What makes every answer fail alike, such as a
    plug-in that is not installed, raises a RewardError.
    """

    @abstractmethod
    async def score(self, answers: Sequence[Answer]) -> list[Score]:
        """One score for each answer, in order; numbers are finite. Raises RewardError."""

    async def close(self) -> None:  # noqa: B027 - most have started nothing
        """Ends what it has started; idempotent."""


def finite(value: float) -> Score:
    """A number, or why it is none that trains."""
    if math.isfinite(value):
        return float(value)
    return Unscored("not_finite", f"the reward is {value}")
