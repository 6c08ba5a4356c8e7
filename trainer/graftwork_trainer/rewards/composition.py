"""Several rewards as one: the sum of each times its weight."""

import asyncio
from collections.abc import Sequence

from graftwork_trainer.rewards.reward import Answer, Reward, Score, Unscored, finite


class WeightedSum(Reward):
    """An answer that one part leaves unscored has no sum either. Owns its parts."""

    def __init__(self, parts: Sequence[tuple[Reward, float]]) -> None:
        if not parts:
            raise ValueError("a sum needs at least one reward")
        self._rewards = [reward for reward, _ in parts]
        self._weights = [weight for _, weight in parts]

    async def score(self, answers: Sequence[Answer]) -> list[Score]:
        columns = await asyncio.gather(*(reward.score(answers) for reward in self._rewards))
        return [self._sum(scores) for scores in zip(*columns, strict=True)]

    async def close(self) -> None:
        for reward in self._rewards:
            await reward.close()

    def _sum(self, scores: Sequence[Score]) -> Score:
        total = 0.0
        for score, weight in zip(scores, self._weights, strict=True):
            if isinstance(score, Unscored):
                return score
            total += score * weight
        return finite(total)
