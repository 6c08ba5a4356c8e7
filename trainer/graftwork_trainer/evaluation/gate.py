"""Whether a candidate may replace what is live: a pure function of the evidence.

A candidate is refused when one of these holds on a task of the validation split:

    answered        it cannot answer more than 5% of what the plain base can
    finite_loss     the loss of the right answers is not a finite number
    not_constant    it gives one class whatever is asked, though the right answers differ
    learned         its classes could as well have been drawn by chance (permutation test, 1%)
    min_accuracy    below the threshold, where one is set
    min_f1          below the threshold, where one is set
    regression      worse than the incumbent by more than the tolerance, and surely worse (95%)
    gain_over_base  the gain over the plain base is below the threshold

On the golden sets `finite_loss` and `regression` are checked; for tasks of which the validation
split has no examples the tolerance is `max_other_task_regression`. Few-shot prompting decides
nothing: it is told as advice.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graftwork_trainer.evaluation.comparison import (
    CHANCE_LIMIT,
    chance_probability,
    difference,
)
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.evaluation.intervals import Estimate
from graftwork_trainer.evaluation.outcomes import Role, Split, TaskEvidence
from graftwork_trainer.evaluation.summary import Summary, summarize

_MAX_UNANSWERED = 0.05
_ROUNDING = 1e-6  # thresholds come as 32-bit floats
_FEW_EXAMPLES = 50


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what came of it."""

    name: str
    task: str  # with the split where it is the golden set
    passed: bool
    reason: str  # in words, whether passed or not
    value: float | None = None
    threshold: float | None = None
    interval: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "task": self.task,
            "passed": self.passed,
            "reason": self.reason,
            "value": self.value,
            "threshold": self.threshold,
            "interval": None if self.interval is None else self.interval.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision. It passes where every check does."""

    checks: tuple[Check, ...]
    advice: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was refused; empty where it passed."""
        return tuple(f"{c.task}: {c.reason}" for c in self.checks if not c.passed)


def decide(spec: GateSpec, evidence: Sequence[TaskEvidence]) -> Verdict:
    """Decides about the candidate, which every item of evidence must have outcomes of.

    The incumbent, the base and the few-shot prompt are compared with where they took part.
    ValueError without any evidence from the validation split.
    """
    validated = [item for item in evidence if item.split is Split.VALIDATION]
    if not validated:
        raise ValueError("evidence: at least one task of the validation split is wanted")
    checks: list[Check] = []
    for item in evidence:
        checks += _checks(spec, item, {task.task for task in validated})
    checks += _unmeasured(spec, validated)
    return Verdict(tuple(checks), tuple(_advice(validated)))


def _checks(spec: GateSpec, item: TaskEvidence, validated: set[str]) -> Iterator[Check]:
    positions = item.answered(Role.CANDIDATE)
    yield _answered(item)
    if not positions:
        return
    summary = summarize(item, Role.CANDIDATE)
    yield _finite_loss(item, summary)
    if item.split is Split.VALIDATION:
        if len({item.references[index] for index in positions}) > 1 and item.classes:
            yield from _sensible(item, positions)
        yield from _absolute(spec, item, summary)
        if Role.BASE in item.outcomes:
            yield from _gain_over_base(spec, item)
    if Role.INCUMBENT in item.outcomes:
        own = item.split is Split.VALIDATION or item.task in validated
        yield from _regression(item, spec.max_regression if own else spec.max_other_task_regression)


def _answered(item: TaskEvidence) -> Check:
    possible = item.answered(Role.BASE) if Role.BASE in item.outcomes else []
    possible = possible or list(range(len(item.references)))
    failed = [item.outcomes[Role.CANDIDATE][index] for index in possible]
    failed = [outcome for outcome in failed if outcome.error]
    share = len(failed) / len(possible)
    passed = share <= _MAX_UNANSWERED
    reason = f"it answered {len(possible) - len(failed)} of {len(possible)} examples"
    if failed:
        reason += f"; the first that failed: {failed[0].error}"
    return Check("answered", item.name, passed, reason, share, _MAX_UNANSWERED)


def _finite_loss(item: TaskEvidence, summary: Summary) -> Check:
    finite = math.isfinite(summary.loss)
    reason = (
        f"the loss of the right answers is {summary.loss:.3f} nats per token"
        if finite
        else "the loss of the right answers is not a finite number: the training has diverged"
    )
    return Check("finite_loss", item.name, finite, reason, summary.loss)


def _sensible(item: TaskEvidence, positions: list[int]) -> Iterator[Check]:
    predicted = {item.outcomes[Role.CANDIDATE][index].predicted for index in positions}
    if len(predicted) == 1:
        only = predicted.pop()
        reason = f'it answers "{only}" to all {len(positions)} examples, whatever they ask'
        yield Check("not_constant", item.name, passed=False, reason=reason)
        return
    reason = f"its answers are of {len(predicted)} kinds"
    yield Check("not_constant", item.name, passed=True, reason=reason)
    probability = chance_probability(item, Role.CANDIDATE, positions)
    if math.isnan(probability):
        return
    learned = probability <= CHANCE_LIMIT
    reason = f"answers as good as its own come about by chance with probability {probability:.4f}"
    if not learned:
        reason += ": its classes do not depend on what is asked, as if the labels had been shuffled"
    yield Check("learned", item.name, learned, reason, probability, CHANCE_LIMIT)


def _absolute(spec: GateSpec, item: TaskEvidence, summary: Summary) -> Iterator[Check]:
    kind = f'F1 of "{item.positive}"' if item.positive else "macro F1"
    for name, what, estimate, threshold in (
        ("min_accuracy", "accuracy", summary.accuracy, spec.min_accuracy),
        ("min_f1", kind, summary.f1, spec.min_f1),
    ):
        if threshold is None or estimate is None:
            continue
        passed = estimate.value >= threshold - _ROUNDING
        relation = "at least" if passed else "below"
        reason = f"{what} {estimate} is {relation} {threshold:.3f}"
        yield Check(name, item.name, passed, reason, estimate.value, threshold, estimate)


def _gain_over_base(spec: GateSpec, item: TaskEvidence) -> Iterator[Check]:
    found = difference(item, Role.BASE)
    if found is None:
        return
    threshold = spec.min_gain_over_base
    passed = found.gain.value >= threshold - _ROUNDING
    relation = "at least" if passed else "below"
    reason = (
        f"its gain over the plain base in {found.measure}, {found.gain} on "
        f"{found.num_examples} examples, is {relation} {threshold:.3f}"
    )
    yield Check(
        "gain_over_base", item.name, passed, reason, found.gain.value, threshold, found.gain
    )


def _regression(item: TaskEvidence, tolerance: float) -> Iterator[Check]:
    found = difference(item, Role.INCUMBENT)
    if found is None:
        return
    beyond = found.gain.value < -tolerance - _ROUNDING
    passed = not (beyond and found.surely_worse)
    if not beyond:
        judgement = f"not worse by more than {tolerance:.3f}"
    elif passed:
        judgement = f"worse by more than {tolerance:.3f}, but so few examples may show that by luck"
    else:
        judgement = f"worse by more than {tolerance:.3f}"
    reason = (
        f"against the incumbent it gains {found.gain} in {found.measure} on "
        f"{found.num_examples} examples: {judgement}"
    )
    yield Check("regression", item.name, passed, reason, found.gain.value, -tolerance, found.gain)


def _unmeasured(spec: GateSpec, validated: Sequence[TaskEvidence]) -> Iterator[Check]:
    """A threshold that nothing can be held against must not pass unseen."""
    if any(item.classes for item in validated):
        return
    for name, threshold in (("min_accuracy", spec.min_accuracy), ("min_f1", spec.min_f1)):
        if threshold is not None:
            reason = f"{name} is set, but the answers of no task are classes: leave it out"
            tasks = ", ".join(item.task for item in validated)
            yield Check(name, tasks, passed=False, reason=reason, threshold=threshold)


def _advice(validated: Sequence[TaskEvidence]) -> Iterator[str]:
    for item in validated:
        found = difference(item, Role.FEW_SHOT) if Role.FEW_SHOT in item.outcomes else None
        if found is not None:
            yield (
                f"{item.task}: against few-shot prompting the candidate gains {found.gain} in "
                f"{found.measure} on {found.num_examples} examples: {_worth(found.gain)}."
            )
        if len(item.references) < _FEW_EXAMPLES:
            yield (
                f"{item.task}: {len(item.references)} validation examples are few; "
                "the intervals say how little such figures tell."
            )
        if Role.INCUMBENT not in item.outcomes:
            yield f"{item.task}: no version is live, so there was no incumbent to compare with."


def _worth(gain: Estimate) -> str:
    if gain.low > 0:
        return "fine-tuning is worth it"
    if gain.high >= 0:
        return "a few examples in the prompt may do as well, so fine-tuning may not be worth it"
    return "a few examples in the prompt do better: look at the data and the recipe"
