"""When requests are sent."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """Everything is due at the start."""

    def due_times(self, chance: random.Random) -> Iterator[float]:  # noqa: ARG002
        """Seconds after the start, without end."""
        return itertools.repeat(0.0)


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals, whatever the server does: the gaps are exponential."""

    rate_per_s: float

    def __post_init__(self) -> None:
        if not self.rate_per_s > 0:
            raise ValueError(f"rate_per_s: must be above 0, not {self.rate_per_s:g}")

    def due_times(self, chance: random.Random) -> Iterator[float]:
        """Seconds after the start, without end."""
        due = 0.0
        while True:
            due += chance.expovariate(self.rate_per_s)
            yield due


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """So many callers, each of whom asks again when the answer is complete."""

    concurrency: int

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency: must be at least 1, not {self.concurrency}")


Arrivals = AllAtOnce | Poisson | ClosedLoop
