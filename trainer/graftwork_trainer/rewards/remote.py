"""Rewards by models: a reward adapter of the server, and a judge elsewhere, over gRPC."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import groupby

import grpc
from graftwork import AsyncClient, GraftworkError, InvalidArgument
from graftwork.requests import judge_request
from graftwork.types import CompletionScore
from graftwork.v1 import judge_service_pb2 as judge_pb
from graftwork.v1.judge_service_pb2_grpc import JudgeServiceStub

from graftwork_trainer.client_prompts import client_prompt
from graftwork_trainer.datasets.prompts import Prompt
from graftwork_trainer.rewards.errors import InvalidJudgement, NotARewardModel, RewardUnavailable
from graftwork_trainer.rewards.reward import Answer, Reward, Score, Unscored, finite

_CALLS_AT_ONCE = 8


class AdapterReward(Reward):
    """The logit of a reward adapter, by Score on the same base that serves. Does not own the
    client."""

    def __init__(self, client: AsyncClient, adapter: str) -> None:
        self._client = client
        self._adapter = adapter
        self._calls = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._most_completions = 0  # of one call; 0 until the server was asked

    async def score(self, answers: Sequence[Answer]) -> list[Score]:
        try:
            if not self._most_completions:
                model = await self._client.model()
                self._most_completions = model.limits.max_completions
            parts = await asyncio.gather(
                *(self._score(*part) for part in _by_prompt(answers, self._most_completions))
            )
        except GraftworkError as error:
            raise RewardUnavailable(
                f'reward adapter "{self._adapter}" could not be asked: {error}'
            ) from error
        return [score for part in parts for score in part]

    async def _score(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        async with self._calls:
            try:
                result = await self._client.score(
                    client_prompt(prompt), texts, adapter=self._adapter
                )
            except InvalidArgument as error:  # such as an answer that exceeds the context
                return [Unscored("refused", str(error))] * len(texts)
        return [self._reward(score) for score in result.scores]

    def _reward(self, score: CompletionScore) -> Score:
        if score.classification is None or score.classification.reward is None:
            raise NotARewardModel(self._adapter)
        return finite(score.classification.reward)


class JudgeReward(Reward):
    """A JudgeService at `target`, with TLS where `tls`; `timeout_s` is for the answers to one
    prompt."""

    def __init__(self, target: str, *, tls: bool, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        if tls:
            self._channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials())
        else:
            self._channel = grpc.aio.insecure_channel(target)
        self._stub = JudgeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._calls = asyncio.Semaphore(_CALLS_AT_ONCE)

    async def score(self, answers: Sequence[Answer]) -> list[Score]:
        parts = await asyncio.gather(*(self._score(*part) for part in _by_prompt(answers)))
        return [score for part in parts for score in part]

    async def close(self) -> None:
        await self._channel.close(None)

    async def _score(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        request = judge_request(client_prompt(prompt), texts)
        async with self._calls:
            try:
                response: judge_pb.JudgeResponse = await self._stub.Score(
                    request, timeout=self._timeout_s
                )
            except grpc.aio.AioRpcError as error:
                return [self._failure(error)] * len(texts)
        if len(response.rewards) != len(texts):
            raise InvalidJudgement(
                f"the judge at {self._target} gave {len(response.rewards)} rewards for "
                f"{len(texts)} completions: one for each is wanted, in order"
            )
        return [_judgement(reward) for reward in response.rewards]

    def _failure(self, error: grpc.aio.AioRpcError) -> Unscored:
        """What is wrong with these answers; raises RewardUnavailable where it is the judge."""
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unscored("timed_out", f"the judge took over {self._timeout_s:g} s")
        if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED}:
            raise RewardUnavailable(
                f"the judge at {self._target} cannot be reached: {error.details()}"
            ) from error
        return Unscored("raised", f"the judge answered {code.name}: {error.details()}")


def _judgement(reward: judge_pb.JudgeResponse.Reward) -> Score:
    if not reward.HasField("value"):
        return Unscored("no_opinion", "the judge gave no reward")
    return finite(reward.value)


def _by_prompt(
    answers: Sequence[Answer], most: int | None = None
) -> Iterator[tuple[Prompt, list[str]]]:
    """Neighbours that answer one prompt, at most so many together."""
    for prompt, group in groupby(answers, key=lambda answer: answer.prompt):
        texts = [answer.text for answer in group]
        size = most or len(texts)
        for start in range(0, len(texts), size):
            yield prompt, texts[start : start + size]
