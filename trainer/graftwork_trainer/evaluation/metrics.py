"""Figures about answers, as pure functions: classes, texts, log-probabilities and rewards.

Undefined quotients are 0 for precision, recall and F1 (a class that is never predicted has not been
found), as scikit-learn's `zero_division=0`, and NaN elsewhere.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from graftwork_trainer.evaluation.intervals import Estimate, wilson

# What counts as equal in a comparison of two scores: a tie, not a win.
_TIE = 1e-6


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """How well one class is found."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # references of this class


@dataclass(frozen=True, slots=True)
class ClassificationMetrics:
    """How well predictions meet their references.

    `confusion` has a row for each label as reference and a column for each label as prediction;
    its last column counts predictions that are no label. `positive` is the class whose F1 is told
    where there are two, and "" otherwise.
    """

    labels: tuple[str, ...]
    positive: str
    accuracy: float
    classes: tuple[ClassMetrics, ...]  # in the order of `labels`
    confusion: tuple[tuple[int, ...], ...]

    @property
    def macro_precision(self) -> float:
        return _mean([item.precision for item in self.classes])

    @property
    def macro_recall(self) -> float:
        return _mean([item.recall for item in self.classes])

    @property
    def macro_f1(self) -> float:
        return _mean([item.f1 for item in self.classes])

    @property
    def f1(self) -> float:
        """Of the positive class where one is named; macro otherwise."""
        for item in self.classes:
            if item.label == self.positive:
                return item.f1
        return self.macro_f1


def positive_class(references: Sequence[str]) -> str:
    """The rarer of exactly two classes, the alphabetically first of equals; "" for other numbers.

    The class worth finding, such as spam, is nearly always the rare one; accuracy says little
    about it.
    """
    counts = Counter(references)
    if len(counts) != 2:
        return ""
    return min(counts, key=lambda label: (counts[label], label))


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> float:
    """The share of predictions that are their reference, NaN of none."""
    pairs = list(zip(references, predictions, strict=True))
    return _mean([float(reference == prediction) for reference, prediction in pairs])


def exact_match(references: Sequence[str], answers: Sequence[str]) -> float:
    """As `accuracy`, of whole texts without the white space around them."""
    return accuracy([text.strip() for text in references], [text.strip() for text in answers])


def confusion_matrix(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Counts by reference (row) and prediction (column), with a last column for what is no label.

    ValueError for a reference that is no label.
    """
    column = {label: index for index, label in enumerate(labels)}
    rows = [[0] * (len(labels) + 1) for _ in labels]
    for reference, prediction in zip(references, predictions, strict=True):
        if reference not in column:
            raise ValueError(f"reference {reference!r} is none of the labels {list(labels)}")
        rows[column[reference]][column.get(prediction, len(labels))] += 1
    return tuple(tuple(row) for row in rows)


def classification_metrics(
    references: Sequence[str],
    predictions: Sequence[str],
    labels: Sequence[str],
    positive: str = "",
) -> ClassificationMetrics:
    """All figures of predictions among `labels`; one that is no label is wrong, whatever it is."""
    confusion = confusion_matrix(references, predictions, labels)
    classes = []
    for index, label in enumerate(labels):
        hits, support = confusion[index][index], sum(confusion[index])
        predicted = sum(row[index] for row in confusion)
        precision, recall = _quotient(hits, predicted), _quotient(hits, support)
        f1 = _quotient(2 * hits, predicted + support)
        classes.append(ClassMetrics(label, precision, recall, f1, support))
    return ClassificationMetrics(
        tuple(labels), positive, accuracy(references, predictions), tuple(classes), confusion
    )


def token_loss(total_logprobs: Sequence[float], num_tokens: Sequence[int]) -> float:
    """Mean negative log-probability in nats per token, over all tokens of all answers."""
    tokens = sum(num_tokens)
    if tokens == 0:
        return math.nan
    return -sum(total_logprobs) / tokens


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is beyond every float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def win_rate(
    scores: Sequence[float], others: Sequence[float], *, confidence: float = 0.95
) -> Estimate:
    """The share of items on which `scores` is higher than `others`, paired; a tie counts half.

    Higher is better: log-probabilities of the reference answer, rewards, or a judge's marks. The
    interval is Wilson's. A score that is NaN loses.
    """
    wins = 0.0
    for score, other in zip(scores, others, strict=True):
        if math.isnan(score) or math.isnan(other):
            wins += 0.5 if math.isnan(score) and math.isnan(other) else float(math.isnan(other))
        elif score == other or abs(score - other) <= _TIE:
            wins += 0.5
        else:
            wins += float(score > other)
    return wilson(wins, len(scores), confidence=confidence)


def reward_margin(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """The mean by which the reward of what was preferred is higher."""
    return _mean([a - b for a, b in zip(chosen, rejected, strict=True)])


def reward_accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """The share of pairs whose preferred side has the higher reward; a tie counts half."""
    return win_rate(chosen, rejected).value


def preference_probabilities(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    """P(chosen over rejected) under Bradley and Terry (1952): the sigmoid of the margin."""
    return [_sigmoid(a - b) for a, b in zip(chosen, rejected, strict=True)]


def expected_calibration_error(
    probabilities: Sequence[float], outcomes: Sequence[bool], *, num_bins: int = 10
) -> float:
    """How far stated probabilities are from what happened, over equal bins (Guo et al. 2017).

    The mean over bins, weighted by their size, of |mean probability - share of true outcomes|.
    For pairs, give both orders: a preference's probability with True, and one minus it with False.
    """
    bins: dict[int, list[tuple[float, bool]]] = {}
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        if not 0 <= probability <= 1:
            raise ValueError(f"probabilities: within [0, 1] is wanted, not {probability}")
        index = min(int(probability * num_bins), num_bins - 1)
        bins.setdefault(index, []).append((probability, outcome))
    if not bins:
        return math.nan
    error = sum(abs(sum(p for p, _ in items) - sum(o for _, o in items)) for items in bins.values())
    return error / len(probabilities)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams of the texts (Li et al. 2016); NaN of none."""
    if n < 1:
        raise ValueError(f"n: at least 1 is wanted, not {n}")
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.split()
        grams.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(grams) / grams.total() if grams else math.nan


def mean_words(texts: Sequence[str]) -> float:
    """The mean length in words, split at white space; NaN of none."""
    return _mean([float(len(text.split())) for text in texts])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _quotient(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else 0.0


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
