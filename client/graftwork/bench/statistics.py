"""Summaries of measured values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Distribution:
    """In the unit of the values it was made of."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """None of no values."""
        if not values:
            return None
        ordered = sorted(values)
        p50, p90, p99 = (percentile(ordered, percent) for percent in (50, 90, 99))
        return cls(math.fsum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of ascending values, at least one; between two of them on the line through both, as NumPy's
    default does."""
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def jain_index(shares: Sequence[float]) -> float:
    """How evenly something is shared: 1 where all get the same, 1/n where one of n gets everything.

    (Σx)² / (n Σx²), of Jain, Chiu and Hawe, "A Quantitative Measure of Fairness", 1984. Raises
    ValueError of no shares; where nobody gets anything, nobody gets more than another: 1.
    """
    if not shares:
        raise ValueError("shares: there are none")
    squares = math.fsum(share * share for share in shares)
    if squares == 0:
        return 1.0
    return math.fsum(shares) ** 2 / (len(shares) * squares)
