"""Whether a canary goes live or loses its share of the traffic: decided by live feedback alone.

A canary is judged once it has `CanarySpec.feedback` items: rolled back when its share of bad
feedback is above the incumbent's by more than `CanarySpec.tolerance`, made live otherwise. So a
canary never waits longer than that many items. Two rules keep few items from deciding by luck:

- An incumbent with fewer items than the canary needs gets the missing ones as good ones: an answer
  or two that went wrong while it was measured must not make way for a canary that is bad.
- A canary is rolled back before it has all its items only when the items still to come could not
  change that (a curtailed test: it looks after every item without more false alarms than one look
  at the end), and when, by the items there are, it is worse with a probability of at least 95%.
"""

import enum
import math
from dataclasses import dataclass

# Before all items are in: how sure the counts must make us that the canary is worse.
EARLY_PROBABILITY = 0.95
# Shares are quotients of small integers and thresholds come as 32-bit floats; differences below
# this are rounding.
_ROUNDING = 1e-6
_GRID = 4096


class CanaryVerdict(enum.Enum):
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class CanarySpec:
    """When a canary is judged, as in `PromotionSpec`. ValueError for a value that cannot be."""

    feedback: int = 20  # items of live feedback on the canary
    tolerance: float = 0.1  # in share of bad feedback

    def __post_init__(self) -> None:
        if self.feedback < 1:
            raise ValueError(f"canary_feedback: at least 1 is wanted, not {self.feedback}")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"canary_tolerance: within [0, 1] is wanted, not {self.tolerance}")


@dataclass(frozen=True, slots=True)
class CanaryDecision:
    verdict: CanaryVerdict
    reason: str  # one sentence with the counts, for people
    probability_worse: float  # that it is worse by more than the tolerance, by the counts alone


def canary_verdict(
    incumbent_good: int,
    incumbent_bad: int,
    canary_good: int,
    canary_bad: int,
    spec: CanarySpec,
) -> CanaryDecision:
    """Decides by the items of live feedback on either version, counted since the canary began.

    Deterministic, and once the canary is judged, one more good item on it never turns a promotion
    into a rollback. ValueError for a negative count.
    """
    if min(incumbent_good, incumbent_bad, canary_good, canary_bad) < 0:
        raise ValueError("counts of feedback cannot be negative")
    num_incumbent, num_canary = incumbent_good + incumbent_bad, canary_good + canary_bad
    allowed = incumbent_bad / max(num_incumbent, spec.feedback) + spec.tolerance + _ROUNDING
    probability = probability_of_worse(
        (incumbent_good, incumbent_bad), (canary_good, canary_bad), spec.tolerance
    )
    counts = (
        f"{canary_bad} of {num_canary} items on the canary are bad, "
        f"{incumbent_bad} of {num_incumbent} on the incumbent"
    )
    # The share of bad feedback that the canary has at its end where only good items follow.
    lowest_share = canary_bad / max(num_canary, spec.feedback)
    if num_canary >= spec.feedback:
        if lowest_share > allowed:
            reason = f"{counts}: worse by more than {spec.tolerance:g}"
            return CanaryDecision(CanaryVerdict.ROLLBACK, reason, probability)
        reason = f"{counts}: not worse by more than {spec.tolerance:g}"
        return CanaryDecision(CanaryVerdict.PROMOTE, reason, probability)
    if lowest_share > allowed and probability >= EARLY_PROBABILITY:
        reason = f"{counts}: the items still to come cannot bring it within {spec.tolerance:g}"
        return CanaryDecision(CanaryVerdict.ROLLBACK, reason, probability)
    missing = spec.feedback - num_canary
    reason = f"{counts}: {missing} more {'item is' if missing == 1 else 'items are'} wanted"
    return CanaryDecision(CanaryVerdict.WAIT, reason, probability)


def probability_of_worse(
    incumbent: tuple[int, int], canary: tuple[int, int], tolerance: float
) -> float:
    """P(canary's share of bad > incumbent's + tolerance), with uniform priors on both shares.

    `incumbent` and `canary` are (good, bad) counts. Integrated over a grid; good to about 1e-3.
    """
    canary_weights = _posterior(*canary)
    below = [0.0]  # below[i]: weight of the incumbent's shares under i / _GRID
    for weight in _posterior(*incumbent):
        below.append(below[-1] + weight)
    total = 0.0
    for index, weight in enumerate(canary_weights):
        position = index + 0.5 - tolerance * _GRID
        if position > 0:
            cell = int(position)
            inside = (position - cell) * (below[cell + 1] - below[cell])
            total += weight * (below[cell] + inside)
    return min(total, 1.0)


def _posterior(good: int, bad: int) -> list[float]:
    """Weights of a Beta(bad + 1, good + 1) at the middles of the grid's cells; their sum is 1."""
    logs = [
        bad * math.log((index + 0.5) / _GRID) + good * math.log1p(-(index + 0.5) / _GRID)
        for index in range(_GRID)
    ]
    largest = max(logs)
    weights = [math.exp(value - largest) for value in logs]
    total = sum(weights)
    return [weight / total for weight in weights]
