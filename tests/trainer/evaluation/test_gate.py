"""The decision as a pure function of made-up evidence."""

import math
import random

import pytest
from graftwork_trainer.evaluation.gate import Verdict, decide
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.evaluation.outcomes import Outcome, Role, Split, TaskEvidence
from hypothesis import given, settings
from hypothesis import strategies as st

CLASSES = ("ham", "spam")


def references(count: int) -> tuple[str, ...]:
    return tuple("spam" if index % 5 == 0 else "ham" for index in range(count))


def answers(right: tuple[str, ...], num_wrong: int, *, seed: int = 0) -> tuple[Outcome, ...]:
    """All right but so many, drawn by the seed."""
    wrong = set(random.Random(seed).sample(range(len(right)), num_wrong))
    return tuple(
        Outcome(
            str(index),
            -0.1,
            1,
            predicted=("ham" if label == "spam" else "spam") if index in wrong else label,
        )
        for index, label in enumerate(right)
    )


def classes(
    count: int = 100, task: str = "sms", split: Split = Split.VALIDATION, **num_wrong: int
) -> TaskEvidence:
    """`classes(candidate=3, base=20)`: how many each contender has wrong."""
    right = references(count)
    outcomes = {
        Role[name.upper()]: answers(right, wrong, seed=len(name))
        for name, wrong in num_wrong.items()
    }
    return TaskEvidence(task, split, CLASSES, "spam", right, outcomes)


def texts(logprobs: dict[Role, list[float]]) -> TaskEvidence:
    count = len(logprobs[Role.CANDIDATE])
    outcomes = {
        role: tuple(Outcome(str(i), value, 4, "a text") for i, value in enumerate(values))
        for role, values in logprobs.items()
    }
    return TaskEvidence("poems", Split.VALIDATION, (), "", ("a text",) * count, outcomes)


def failed(verdict: Verdict) -> set[tuple[str, str]]:
    return {(check.name, check.task) for check in verdict.checks if not check.passed}


def test_thresholds_are_absolute_where_they_are_set():
    evidence = [classes(candidate=4, base=30)]
    assert decide(GateSpec(), evidence).passed
    assert decide(GateSpec(min_accuracy=0.96), evidence).passed
    verdict = decide(GateSpec(min_accuracy=0.97, min_f1=0.95), evidence)
    assert failed(verdict) == {("min_accuracy", "sms"), ("min_f1", "sms")}
    assert any("accuracy 0.960" in reason and "below 0.970" in reason for reason in verdict.reasons)


def test_the_gain_over_the_base_is_held_against_its_threshold():
    evidence = [classes(candidate=4, base=10)]
    assert decide(GateSpec(min_gain_over_base=0.06), evidence).passed
    verdict = decide(GateSpec(min_gain_over_base=0.07), evidence)
    assert failed(verdict) == {("gain_over_base", "sms")}
    assert failed(decide(GateSpec(), [classes(candidate=10, base=4)])) == {
        ("gain_over_base", "sms")
    }


@pytest.mark.parametrize(
    ("candidate", "incumbent", "passes"),
    [
        (5, 4, True),  # exactly at the tolerance
        (6, 5, True),
        (5, 2, True),  # three of a hundred may be luck
        (15, 2, False),
        (2, 15, True),
    ],
)
def test_only_what_is_surely_worse_is_a_regression(candidate: int, incumbent: int, passes: bool):
    verdict = decide(GateSpec(), [classes(candidate=candidate, incumbent=incumbent)])
    assert verdict.passed is passes


def test_golden_sets_of_other_tasks_have_a_tolerance_of_their_own():
    own = classes(candidate=4, base=30)
    worse = classes(400, "other", Split.GOLDEN, candidate=30, incumbent=0)
    verdict = decide(GateSpec(), [own, worse])
    assert failed(verdict) == {("regression", "other (golden set)")}
    assert decide(GateSpec(max_other_task_regression=0.08), [own, worse]).passed
    same_task = classes(400, "sms", Split.GOLDEN, candidate=30, incumbent=0)
    assert not decide(GateSpec(max_other_task_regression=0.08), [own, same_task]).passed


def test_free_text_is_judged_by_wins():
    noise = random.Random(0)
    base = [-5 + noise.random() for _ in range(60)]
    better = [value + 1 for value in base]
    verdict = decide(GateSpec(), [texts({Role.CANDIDATE: better, Role.BASE: base})])
    assert verdict.passed
    found = texts({Role.CANDIDATE: base, Role.INCUMBENT: better, Role.BASE: base})
    verdict = decide(GateSpec(), [found])
    assert failed(verdict) == {("regression", "poems")}
    assert "share of wins" in verdict.reasons[0]


def test_a_threshold_that_nothing_meets_does_not_pass_unseen():
    evidence = [texts({Role.CANDIDATE: [-1.0] * 10})]
    verdict = decide(GateSpec(min_accuracy=0.5), evidence)
    assert "the answers of no task are classes" in verdict.reasons[0]


@pytest.mark.parametrize("logprob", [math.nan, -math.inf])
def test_a_loss_that_is_not_finite_is_refused(logprob: float):
    verdict = decide(GateSpec(), [texts({Role.CANDIDATE: [-1.0, logprob]})])
    assert failed(verdict) == {("finite_loss", "poems")}


def test_few_examples_are_not_enough_to_say_it_learned_nothing():
    verdict = decide(GateSpec(), [classes(6, candidate=1)])
    assert "learned" not in {check.name for check in verdict.checks}
    assert any("6 validation examples are few" in advice for advice in verdict.advice)


def test_without_a_validation_split_nothing_is_decided():
    with pytest.raises(ValueError, match="validation"):
        decide(GateSpec(), [classes(candidate=0, split=Split.GOLDEN)])


def test_labels_that_were_shuffled_seldom_pass():
    """1% by the permutation test's own limit: 3 of 60 would be far outside."""
    passed = 0
    right = references(100)
    for seed in range(60):
        dealt = random.Random(seed).sample(right, len(right))
        outcomes = tuple(Outcome(str(i), -0.1, 1, predicted=p) for i, p in enumerate(dealt))
        found = TaskEvidence(
            "sms", Split.VALIDATION, CLASSES, "spam", right, {Role.CANDIDATE: outcomes}
        )
        passed += decide(GateSpec(), [found]).passed
    assert passed <= 3


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_verdict_holds_together(candidate: int, incumbent: int, base: int):
    verdict = decide(
        GateSpec(min_accuracy=0.8), [classes(candidate=candidate, incumbent=incumbent, base=base)]
    )
    assert verdict.passed == (not verdict.reasons)
    assert verdict == decide(
        GateSpec(min_accuracy=0.8), [classes(candidate=candidate, incumbent=incumbent, base=base)]
    )
    if candidate > 20:
        assert ("min_accuracy", "sms") in failed(verdict)
    if candidate <= incumbent:
        assert ("regression", "sms") not in failed(verdict)
