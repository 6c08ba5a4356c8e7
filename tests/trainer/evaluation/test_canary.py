"""Decisions about canaries: known counts, and what must hold for all counts."""

import pytest
from graftwork_trainer.evaluation.canary import (
    CanarySpec,
    CanaryVerdict,
    canary_verdict,
    probability_of_worse,
)
from hypothesis import given, settings
from hypothesis import strategies as st

COUNTS = st.integers(0, 60)


def verdict(*counts: int, spec: CanarySpec | None = None) -> CanaryVerdict:
    return canary_verdict(*counts, spec or CanarySpec()).verdict


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ((90, 10, 0, 0), CanaryVerdict.WAIT),
        ((90, 10, 19, 0), CanaryVerdict.WAIT),  # never live before all items are in
        ((90, 10, 20, 0), CanaryVerdict.PROMOTE),
        ((90, 10, 16, 4), CanaryVerdict.PROMOTE),  # exactly at the tolerance
        ((90, 10, 15, 5), CanaryVerdict.ROLLBACK),
        ((70, 30, 12, 8), CanaryVerdict.PROMOTE),  # 0.4 - 0.3 is over 0.1 in floating point
        ((90, 10, 0, 4), CanaryVerdict.WAIT),  # sixteen good ones would still bring it to 20%
        ((90, 10, 0, 5), CanaryVerdict.ROLLBACK),  # nothing to come could
        ((0, 0, 0, 6), CanaryVerdict.WAIT),  # with what is it to be compared?
        ((0, 0, 0, 20), CanaryVerdict.ROLLBACK),
        ((0, 1, 4, 16), CanaryVerdict.ROLLBACK),  # the incumbent's one bad item says little
        ((0, 0, 20, 0), CanaryVerdict.PROMOTE),
        ((0, 100, 0, 20), CanaryVerdict.PROMOTE),  # as bad as what it replaces
    ],
)
def test_known_counts(counts: tuple[int, int, int, int], wanted: CanaryVerdict):
    assert verdict(*counts) is wanted


@settings(max_examples=60)
@given(COUNTS, COUNTS, COUNTS, COUNTS, st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.3]))
def test_it_decides_by_its_last_item(good, bad, canary_good, canary_bad, feedback, tolerance):
    spec = CanarySpec(feedback, tolerance)
    decided = verdict(good, bad, canary_good, canary_bad, spec=spec)
    if canary_good + canary_bad >= feedback:
        assert decided is not CanaryVerdict.WAIT
    else:
        assert decided is not CanaryVerdict.PROMOTE


@settings(max_examples=40)
@given(COUNTS, COUNTS, st.integers(0, 19), st.integers(0, 19))
def test_an_early_rollback_is_what_the_end_would_decide(good, bad, canary_good, canary_bad):
    if canary_good + canary_bad >= 20:
        return
    if verdict(good, bad, canary_good, canary_bad) is CanaryVerdict.ROLLBACK:
        at_the_end = verdict(good, bad, 20 - canary_bad, canary_bad)
        assert at_the_end is CanaryVerdict.ROLLBACK


@settings(max_examples=40)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_a_good_item_never_undoes_a_promotion(good, bad, canary_good, canary_bad):
    if verdict(good, bad, canary_good, canary_bad) is CanaryVerdict.PROMOTE:
        assert verdict(good, bad, canary_good + 1, canary_bad) is CanaryVerdict.PROMOTE


def test_probability_of_worse_by_known_integrals():
    # Of two uniform shares either is the larger; P(X > Y + t) is the triangle (1 - t)^2 / 2.
    assert probability_of_worse((0, 0), (0, 0), 0.0) == pytest.approx(0.5, abs=1e-3)
    assert probability_of_worse((0, 0), (0, 0), 0.4) == pytest.approx(0.18, abs=1e-3)
    # X ~ Beta(2, 1) with density 2x against a uniform Y: the integral of 2x·x is 2/3.
    assert probability_of_worse((0, 0), (0, 1), 0.0) == pytest.approx(2 / 3, abs=1e-3)
    assert probability_of_worse((10**6, 10**5), (10**5, 10**6), 0.1) == pytest.approx(1.0)


def test_the_reason_tells_the_counts():
    decision = canary_verdict(90, 10, 15, 5, CanarySpec())
    assert decision.reason == (
        "5 of 20 items on the canary are bad, 10 of 100 on the incumbent: worse by more than 0.1"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [({"feedback": 0}, "canary_feedback"), ({"tolerance": 1.5}, "canary_tolerance")],
)
def test_impossible_specs_are_refused(change: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        CanarySpec(**change)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="negative"):
        canary_verdict(0, -1, 0, 0, CanarySpec())
