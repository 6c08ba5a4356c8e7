"""How often each adapter is asked for."""

from dataclasses import dataclass
from typing import Protocol


class Popularity(Protocol):
    """Turns a number of adapters into the weight of each, the most popular first."""

    def weights(self, num_adapters: int) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class Even:
    """All alike. Of one selector, "", this is traffic of the base alone."""

    def weights(self, num_adapters: int) -> list[float]:
        return [1.0] * num_adapters


@dataclass(frozen=True, slots=True)
class Zipf:
    """The weight of the k-th is k to the power of -exponent."""

    exponent: float

    def __post_init__(self) -> None:
        if self.exponent < 0:
            raise ValueError(f"exponent: must be at least 0, not {self.exponent:g}")

    def weights(self, num_adapters: int) -> list[float]:
        return [rank**-self.exponent for rank in range(1, num_adapters + 1)]


@dataclass(frozen=True, slots=True)
class OneHot:
    """The first gets this share of the requests, the others the rest in equal parts."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: must be in (0, 1], not {self.share:g}")

    def weights(self, num_adapters: int) -> list[float]:
        if num_adapters == 1:
            return [1.0]
        rest = (1 - self.share) / (num_adapters - 1)
        return [self.share, *[rest] * (num_adapters - 1)]
