"""Metrics against values known from the literature, by hand, or from scikit-learn 1.5."""

import math

import pytest
from graftwork_trainer.evaluation import metrics
from graftwork_trainer.evaluation.intervals import bootstrap, wilson
from hypothesis import given, settings
from hypothesis import strategies as st

REFERENCES = ["cat", "dog", "cat", "cat", "bird", "dog", "cat", "bird"]
PREDICTIONS = ["cat", "cat", "cat", "dog", "bird", "dog", "eel", "dog"]
LABELS = ("bird", "cat", "dog")


def test_classification_by_hand():
    found = metrics.classification_metrics(REFERENCES, PREDICTIONS, LABELS)
    assert found.accuracy == 0.5
    assert found.confusion == ((1, 0, 1, 0), (0, 2, 1, 1), (0, 1, 1, 0))
    bird, cat, dog = found.classes
    assert (bird.precision, bird.recall, bird.support) == (1.0, 0.5, 2)
    assert (cat.precision, cat.recall, cat.support) == (pytest.approx(2 / 3), 0.5, 4)
    assert (dog.precision, dog.recall) == (pytest.approx(1 / 3), 0.5)
    assert found.macro_precision == pytest.approx(2 / 3)
    assert found.macro_recall == 0.5
    assert found.macro_f1 == pytest.approx((2 / 3 + 4 / 7 + 0.4) / 3)
    assert found.f1 == found.macro_f1


def test_the_rarer_of_two_classes_is_the_positive_one():
    references = ["ham"] * 8 + ["spam"] * 2
    predictions = ["ham"] * 7 + ["spam", "spam", "ham"]
    positive = metrics.positive_class(references)
    assert positive == "spam"
    found = metrics.classification_metrics(references, predictions, ("ham", "spam"), positive)
    assert found.f1 == 0.5
    assert found.accuracy == 0.8
    assert metrics.positive_class(["a", "b", "c"]) == metrics.positive_class(["a"]) == ""


def test_a_class_that_is_never_predicted_has_no_precision():
    found = metrics.classification_metrics(["a", "b"], ["a", "a"], ("a", "b"))
    assert (found.classes[1].precision, found.classes[1].recall, found.classes[1].f1) == (0, 0, 0)


def test_a_reference_outside_the_labels_is_refused():
    with pytest.raises(ValueError, match="none of the labels"):
        metrics.confusion_matrix(["c"], ["a"], ["a", "b"])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=1))
def test_classification_holds_together(pairs):
    references, predictions = zip(*pairs, strict=True)
    found = metrics.classification_metrics(references, predictions, "abc")
    assert sum(map(sum, found.confusion)) == len(pairs)
    assert sum(item.support for item in found.classes) == len(pairs)
    hits = sum(found.confusion[index][index] for index in range(3))
    assert found.accuracy == pytest.approx(hits / len(pairs))
    for item in found.classes:
        low, high = sorted([item.precision, item.recall])
        assert low - 1e-9 <= item.f1 <= high + 1e-9


def test_wilson_by_known_values():
    # Newcombe (1998), table I: 81 of 263, and 0 of 20.
    found = wilson(81, 263)
    assert (found.low, found.high) == (
        pytest.approx(0.2553, abs=5e-5),
        pytest.approx(0.3662, abs=5e-5),
    )
    found = wilson(0, 20)
    assert (found.low, found.high) == (0.0, pytest.approx(0.1611, abs=5e-5))
    assert wilson(0, 0).low == 0
    assert math.isnan(wilson(0, 0).value)


@settings(max_examples=60)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_share(counts):
    found = wilson(*counts)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_bootstrap_of_a_mean_is_about_the_normal_interval():
    values = [float(index % 2) for index in range(400)]
    found = bootstrap(400, lambda draw: sum(values[i] for i in draw) / len(draw))
    assert found.value == 0.5
    assert found.low == pytest.approx(0.451, abs=0.01)
    assert found.high == pytest.approx(0.549, abs=0.01)
    assert found == bootstrap(400, lambda draw: sum(values[i] for i in draw) / len(draw))


def test_loss_and_perplexity():
    loss = metrics.token_loss([-2.0, -4.0], [1, 3])
    assert loss == 1.5
    assert metrics.perplexity(loss) == pytest.approx(math.exp(1.5))
    assert math.isnan(metrics.token_loss([], []))
    assert metrics.perplexity(1e6) == math.inf


def test_win_rate_counts_ties_half_and_nan_as_lost():
    found = metrics.win_rate([1.0, 2.0, 3.0, math.nan], [0.0, 2.0, 4.0, 1.0])
    assert found.value == 1.5 / 4
    assert metrics.win_rate([math.nan], [math.nan]).value == 0.5
    assert metrics.win_rate([-math.inf], [-math.inf]).value == 0.5


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1))
def test_win_rates_of_two_sides_are_complements(pairs):
    ours, theirs = zip(*pairs, strict=True)
    assert metrics.win_rate(ours, theirs).value == pytest.approx(
        1 - metrics.win_rate(theirs, ours).value
    )


def test_rewards():
    assert metrics.reward_margin([2.0, 1.0], [1.0, 1.5]) == 0.25
    assert metrics.reward_accuracy([2.0, 1.0, 1.0], [1.0, 1.5, 1.0]) == 0.5
    assert metrics.preference_probabilities([0.0, 800.0, -800.0], [0.0, 0.0, 0.0]) == [
        0.5,
        1.0,
        0.0,
    ]


def test_calibration_by_hand():
    # Bin 0.9: 0.9 said, 0.5 true. Bin 0.1: 0.1 said, none true.
    error = metrics.expected_calibration_error(
        [0.92, 0.92, 0.12, 0.12], [True, False, False, False]
    )
    assert error == pytest.approx((0.42 * 2 + 0.12 * 2) / 4)
    assert metrics.expected_calibration_error([1.0, 0.0], [True, False]) == 0
    with pytest.raises(ValueError, match="probabilities"):
        metrics.expected_calibration_error([1.5], [True])


def test_texts():
    assert metrics.exact_match([" yes", "no"], ["yes\n", "No"]) == 0.5
    assert metrics.distinct_n(["a b a", "a b"], 1) == 2 / 5
    assert metrics.distinct_n(["a b a", "a b"], 2) == 2 / 3
    assert math.isnan(metrics.distinct_n(["a"], 2))
    assert metrics.mean_words(["a b", ""]) == 1
