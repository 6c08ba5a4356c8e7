import pytest
from graftwork_trainer.rewards.checks import LengthReward, RegexReward
from graftwork_trainer.rewards.composition import WeightedSum
from graftwork_trainer.rewards.reward import Reward, Unscored, finite

from tests.trainer.rewards.answers import answer


class Fixed(Reward):
    """The same scores whatever is asked."""

    def __init__(self, *scores) -> None:
        self.scores = list(scores)
        self.closed = False

    async def score(self, answers):
        return self.scores

    async def close(self):
        self.closed = True


async def test_a_pattern_matches_anywhere_or_the_whole():
    texts = [answer("Sorry, no."), answer("I am Sorry"), answer("Sorry")]
    assert await RegexReward("Sorry").score(texts) == [1, 1, 1]
    assert await RegexReward("^Sorry").score(texts) == [1, 0, 1]
    assert await RegexReward("Sorry", whole=True).score(texts) == [0, 0, 1]


async def test_a_pattern_that_backtracks_without_end_is_given_up():
    (score,) = await RegexReward(r"(a|aa|a?)+$").score([answer("a" * 60 + "b")])
    assert isinstance(score, Unscored)
    assert score.reason == "timed_out"


def test_what_is_no_pattern_is_refused():
    with pytest.raises(ValueError, match="no regular expression"):
        RegexReward("(")


async def test_length_falls_off_on_both_sides():
    reward = LengthReward(4, 8)
    lengths = [0, 2, 4, 8, 16, 80]
    scores = await reward.score([answer("x", num_tokens=n) for n in lengths])
    assert scores == [0, 0.5, 1, 1, 0.5, 0.1]
    assert await LengthReward(0, 3).score([answer("", num_tokens=0)]) == [1]


@pytest.mark.parametrize("bounds", [(5, 4), (-1, 4), (0, 0)])
def test_lengths_that_are_no_range_are_refused(bounds):
    with pytest.raises(ValueError, match="range"):
        LengthReward(*bounds)


async def test_a_sum_weighs_its_parts_and_skips_what_one_skips():
    skipped = Unscored("raised")
    parts = [Fixed(1.0, 2.0, skipped), Fixed(0.5, skipped, 1.0)]
    whole = WeightedSum([(parts[0], 2.0), (parts[1], -1.0)])
    assert await whole.score([answer("a")] * 3) == [1.5, skipped, skipped]
    await whole.close()
    assert all(part.closed for part in parts)


async def test_a_sum_that_overflows_is_no_reward():
    whole = WeightedSum([(Fixed(1e308), 1e10)])
    (score,) = await whole.score([answer("a")])
    assert isinstance(score, Unscored)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_reward(value):
    score = finite(value)
    assert isinstance(score, Unscored)
    assert score.reason == "not_finite"
