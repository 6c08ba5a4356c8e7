"""One contender's figures on one task's examples."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftwork_trainer.evaluation import metrics
from graftwork_trainer.evaluation.intervals import Estimate, Indices, bootstrap, wilson
from graftwork_trainer.evaluation.outcomes import Role, Split, TaskEvidence, task_name


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures over the examples that the contender answered; those of classes are None for free
    text. Intervals are of 95%."""

    task: str
    split: Split
    role: Role
    num_examples: int
    num_unanswered: int
    loss: float  # of the right answers, nats per token
    perplexity: float
    exact_match: Estimate  # of what was generated without constraint
    win_rate_over_base: Estimate | None  # by log-probability of the right answer; None for the base
    length_ratio: float  # mean words generated over mean words of the right answers
    distinct_1: float
    distinct_2: float
    accuracy: Estimate | None
    f1: Estimate | None
    classification: metrics.ClassificationMetrics | None

    @property
    def name(self) -> str:
        """As `TaskEvidence.name`."""
        return task_name(self.task, self.split)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "task": self.task,
            "split": self.split.value,
            "contender": self.role.value,
            "num_examples": self.num_examples,
            "num_unanswered": self.num_unanswered,
            "loss": self.loss,
            "perplexity": self.perplexity,
            "exact_match": self.exact_match.to_json(),
            "length_ratio": self.length_ratio,
            "distinct_1": self.distinct_1,
            "distinct_2": self.distinct_2,
        }
        if self.win_rate_over_base is not None:
            found["win_rate_over_base"] = self.win_rate_over_base.to_json()
        if self.classification is not None and self.accuracy is not None and self.f1 is not None:
            found["accuracy"] = self.accuracy.to_json()
            found["f1"] = self.f1.to_json()
            found["classification"] = _classification_json(self.classification)
        return found


def summarize(evidence: TaskEvidence, role: Role) -> Summary:
    """The figures of one contender; all are NaN where it answered nothing."""
    positions = evidence.answered(role)
    outcomes = [evidence.outcomes[role][index] for index in positions]
    references = [evidence.references[index] for index in positions]
    answers = [outcome.answer for outcome in outcomes]
    loss = metrics.token_loss([o.logprob for o in outcomes], [o.num_tokens for o in outcomes])
    matches = sum(a.strip() == r.strip() for a, r in zip(answers, references, strict=True))
    has_classes = bool(evidence.classes) and bool(positions)
    words = metrics.mean_words(references)
    return Summary(
        task=evidence.task,
        split=evidence.split,
        role=role,
        num_examples=len(positions),
        num_unanswered=len(evidence.references) - len(positions),
        loss=loss,
        perplexity=metrics.perplexity(loss),
        exact_match=wilson(matches, len(positions)),
        win_rate_over_base=_win_rate(evidence, role, Role.BASE),
        length_ratio=metrics.mean_words(answers) / words if words else math.nan,
        distinct_1=metrics.distinct_n(answers, 1),
        distinct_2=metrics.distinct_n(answers, 2),
        accuracy=_accuracy(evidence, role, positions) if has_classes else None,
        f1=f1_estimate(evidence, role, positions) if has_classes else None,
        classification=(
            metrics.classification_metrics(
                references,
                [outcome.predicted for outcome in outcomes],
                evidence.classes,
                evidence.positive,
            )
            if has_classes
            else None
        ),
    )


def f1_estimate(evidence: TaskEvidence, role: Role, positions: list[int]) -> Estimate:
    """F1 of the positive class, or macro over the classes, with a bootstrap interval."""
    references, predictions = encoded(evidence, role, positions)
    if evidence.positive:
        wanted = [evidence.classes.index(evidence.positive)]
    else:
        wanted = list(range(len(evidence.classes)))

    def f1(draw: Indices) -> float:
        drawn_references, drawn_predictions = references[draw], predictions[draw]
        scores = []
        for label in wanted:
            right = np.count_nonzero((drawn_references == label) & (drawn_predictions == label))
            either = np.count_nonzero(drawn_references == label) + np.count_nonzero(
                drawn_predictions == label
            )
            scores.append(2 * right / either if either else 0.0)
        return float(np.mean(scores))

    return bootstrap(len(positions), f1)


def encoded(evidence: TaskEvidence, role: Role, positions: list[int]) -> tuple[Indices, Indices]:
    """References and predictions as numbers of classes, -1 for what is none: (num_positions,)."""
    number = {label: index for index, label in enumerate(evidence.classes)}
    outcomes = evidence.outcomes[role]
    references = [number[evidence.references[index]] for index in positions]
    predictions = [number.get(outcomes[index].predicted, -1) for index in positions]
    return np.array(references, dtype=np.int64), np.array(predictions, dtype=np.int64)


def _accuracy(evidence: TaskEvidence, role: Role, positions: list[int]) -> Estimate:
    return wilson(sum(evidence.right(role, positions)), len(positions))


def _win_rate(evidence: TaskEvidence, role: Role, other: Role) -> Estimate | None:
    if role is other or other not in evidence.outcomes:
        return None
    positions = evidence.answered(role, other)
    return metrics.win_rate(evidence.logprobs(role, positions), evidence.logprobs(other, positions))


def _classification_json(found: metrics.ClassificationMetrics) -> dict[str, Any]:
    return {
        "labels": list(found.labels),
        "positive": found.positive,
        "macro_precision": found.macro_precision,
        "macro_recall": found.macro_recall,
        "macro_f1": found.macro_f1,
        "classes": {
            item.label: {
                "precision": item.precision,
                "recall": item.recall,
                "f1": item.f1,
                "support": item.support,
            }
            for item in found.classes
        },
        "confusion": [list(row) for row in found.confusion],
    }
