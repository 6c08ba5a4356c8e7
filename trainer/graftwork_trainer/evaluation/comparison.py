"""The candidate beside another contender, on the examples that both answered."""

import math
from dataclasses import dataclass

import numpy as np

from graftwork_trainer.evaluation.intervals import Estimate, Indices, bootstrap
from graftwork_trainer.evaluation.metrics import win_rate
from graftwork_trainer.evaluation.outcomes import Role, TaskEvidence
from graftwork_trainer.evaluation.summary import encoded

# Answers more probable than this by chance alone have not been learned.
CHANCE_LIMIT = 0.01
# Two-sided, so that either bound by itself holds at 95%.
_CONFIDENCE = 0.9
_PERMUTATIONS = 2000
_CHUNK = 100  # permutations in memory at a time


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the candidate is: in accuracy, or for free text in share of wins above one
    half, by log-probability of the right answer. Paired; the interval is of 90%."""

    gain: Estimate
    num_examples: int
    measure: str  # for people

    @property
    def surely_worse(self) -> bool:
        return self.gain.high < 0


def difference(evidence: TaskEvidence, other: Role) -> Difference | None:
    """None where there is no example that both answered."""
    positions = evidence.answered(Role.CANDIDATE, other)
    if not positions:
        return None
    if evidence.classes:
        gains = np.array(evidence.right(Role.CANDIDATE, positions), dtype=np.int64)
        gains -= np.array(evidence.right(other, positions), dtype=np.int64)

        def mean(draw: Indices) -> float:
            return float(gains[draw].mean())

        gain = bootstrap(len(positions), mean, confidence=_CONFIDENCE)
        return Difference(gain, len(positions), "accuracy")
    share = win_rate(
        evidence.logprobs(Role.CANDIDATE, positions),
        evidence.logprobs(other, positions),
        confidence=_CONFIDENCE,
    )
    gain = Estimate(share.value - 0.5, share.low - 0.5, share.high - 0.5)
    return Difference(gain, len(positions), "share of wins above one half")


def chance_probability(evidence: TaskEvidence, role: Role, positions: list[int]) -> float:
    """How probable answers as good as these are where they do not depend on the prompts.

    A permutation test of the balanced accuracy (mean recall of the classes that occur), which no
    imbalance of the classes can raise: predictions are dealt out anew at random. NaN where the
    examples are too few or too much alike for even flawless answers to be told from chance.
    """
    references, predictions = encoded(evidence, role, positions)
    if _permuted(references, references) > CHANCE_LIMIT:
        return math.nan
    return _permuted(references, predictions)


def _permuted(references: Indices, predictions: Indices) -> float:
    labels, counts = np.unique(references, return_counts=True)
    weights = np.zeros(int(references.max(initial=0)) + 1)
    weights[labels] = 1 / counts
    weight_of = weights[references]  # (num_positions,), so that each class weighs the same

    observed = weight_of[predictions == references].sum() - 1e-9
    generator = np.random.default_rng(0)
    as_good = 0
    for start in range(0, _PERMUTATIONS, _CHUNK):
        rows = np.tile(predictions, (min(_CHUNK, _PERMUTATIONS - start), 1))
        dealt = generator.permuted(rows, axis=1)  # (rows, num_positions)
        as_good += int(np.count_nonzero((dealt == references) @ weight_of >= observed))
    return (1 + as_good) / (1 + _PERMUTATIONS)
