"""Rewards that look at the text alone: 1 where it is as wanted, 0 where not, or between."""

import asyncio
from collections.abc import Sequence

import regex

from graftwork_trainer.rewards.reward import Answer, Reward, Score, Unscored

_REGEX_TIMEOUT_S = 1.0


class RegexReward(Reward):
    """1 where the pattern matches: anywhere in the answer, or all of it where `whole`.

    Raises ValueError for a pattern that is none.
    """

    def __init__(self, pattern: str, *, whole: bool = False) -> None:
        try:
            compiled = regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        self._match = compiled.fullmatch if whole else compiled.search

    async def score(self, answers: Sequence[Answer]) -> list[Score]:
        # On a thread: a pattern that backtracks may take its second for each answer.
        return await asyncio.to_thread(lambda: [self._score(answer.text) for answer in answers])

    def _score(self, text: str) -> Score:
        try:
            return 1.0 if self._match(text, timeout=_REGEX_TIMEOUT_S) else 0.0
        except TimeoutError:
            return Unscored("timed_out", "the regular expression backtracks too long")


class LengthReward(Reward):
    """1 where the answer has `shortest` to `longest` tokens; outside, what share of the nearer
    bound it has, or it exceeds it by: half of `shortest` is worth 0.5, as is twice `longest`."""

    def __init__(self, shortest: int, longest: int) -> None:
        if not 0 <= shortest <= longest or not longest:
            raise ValueError("must be a range of positive lengths, the shortest first")
        self._shortest = shortest
        self._longest = longest

    async def score(self, answers: Sequence[Answer]) -> list[Score]:
        return [self._score(answer.num_tokens) for answer in answers]

    def _score(self, length: int) -> float:
        if length < self._shortest:
            return length / self._shortest
        if length > self._longest:
            return self._longest / length
        return 1.0
