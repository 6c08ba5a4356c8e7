"""How many tokens a prompt or an answer has."""

import random
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fixed:
    num_tokens: int

    def __post_init__(self) -> None:
        _check_positive("num_tokens", self.num_tokens)

    @property
    def longest(self) -> int:
        return self.num_tokens

    def draw(self, chance: random.Random) -> int:  # noqa: ARG002
        return self.num_tokens


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every length from `shortest` to `longest`, both included, alike."""

    shortest: int
    longest: int

    def __post_init__(self) -> None:
        _check_positive("shortest", self.shortest)
        if self.longest < self.shortest:
            raise ValueError(f"longest: {self.longest} is below the shortest, {self.shortest}")

    def draw(self, chance: random.Random) -> int:
        return chance.randint(self.shortest, self.longest)


@dataclass(frozen=True, slots=True)
class Normal:
    """Rounded to whole tokens, and cut off at 1 and at three deviations above the mean."""

    mean: float
    deviation: float

    def __post_init__(self) -> None:
        if self.mean < 1:
            raise ValueError(f"mean: must be at least 1, not {self.mean:g}")
        if self.deviation < 0:
            raise ValueError(f"deviation: must be at least 0, not {self.deviation:g}")

    @property
    def longest(self) -> int:
        return round(self.mean + 3 * self.deviation)

    def draw(self, chance: random.Random) -> int:
        return min(max(round(chance.gauss(self.mean, self.deviation)), 1), self.longest)


Lengths = Fixed | Uniform | Normal

_FORMS = "N, SHORTEST-LONGEST or MEAN~DEVIATION"


def parse_lengths(text: str) -> Lengths:
    """ "64", "16-128" (uniform) or "64~20" (normal). Raises ValueError."""
    number = r"(\d+(?:\.\d+)?)"
    if re.fullmatch(r"\d+", text):
        return Fixed(int(text))
    if found := re.fullmatch(r"(\d+)-(\d+)", text):
        return Uniform(int(found[1]), int(found[2]))
    if found := re.fullmatch(f"{number}~{number}", text):
        return Normal(float(found[1]), float(found[2]))
    raise ValueError(f"{text!r} is not {_FORMS}")


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: must be at least 1, not {value}")
