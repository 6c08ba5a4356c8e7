"""Confidence intervals of shares and of statistics of paired answers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = NDArray[np.int64]  # (num_examples,), positions of examples, with repeats

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the interval that holds it at the stated confidence."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: float, total: int, *, confidence: float = 0.95) -> Estimate:
    """A share of `total` with Wilson's score interval (1927); a tie may count as half a success.

    With a total of 0 the share is NaN and the interval is [0, 1].
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes: within [0, {total}] is wanted, not {successes}")
    if total == 0:
        return Estimate(math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    half /= 1 + z * z / total
    # At the ends of the scale the exact bounds are the ends; the sums only round to them.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == total else middle + half
    return Estimate(share, low, high)


def bootstrap(
    num_examples: int,
    statistic: Callable[[Indices], float],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic of the examples with its percentile interval (Efron 1979).

    `statistic` gets positions of examples, drawn with repeats; a paired difference reads both sides
    at the same positions. The same seed gives the same interval. Resamples for which it is NaN are
    left out; with no example, or where all are NaN, everything is NaN.
    """
    if num_examples == 0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(statistic(np.arange(num_examples)))
    generator = np.random.default_rng(seed)
    values: NDArray[Any] = np.array(
        [statistic(generator.integers(0, num_examples, num_examples)) for _ in range(_RESAMPLES)]
    )
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))
