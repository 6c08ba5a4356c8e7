"""A judge and a reward adapter, behind real gRPC servers."""

import contextlib

import grpc
import pytest
from graftwork import AsyncClient
from graftwork.status import InvalidFieldError
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork.v1 import generation_service_pb2_grpc, judge_service_pb2_grpc
from graftwork.v1 import judge_service_pb2 as judge_pb
from graftwork_trainer.datasets.prompts import TokenIds
from graftwork_trainer.rewards.errors import InvalidJudgement, NotARewardModel, RewardUnavailable
from graftwork_trainer.rewards.remote import AdapterReward, JudgeReward
from graftwork_trainer.rewards.reward import Unscored
from graftwork_trainer.rewards.settings import build_reward, parse_rewards

from tests.support.grpc_server import serving_alone
from tests.trainer.rewards.answers import TEXT_PROMPT, answer


class Judge(judge_service_pb2_grpc.JudgeServiceServicer):
    """Likes long completions; has its ways with some."""

    def __init__(self) -> None:
        self.requests = []

    async def Score(self, request, context):
        self.requests.append(request)
        if "slow" in request.completions:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow")
        if "broken" in request.completions:
            await context.abort(grpc.StatusCode.INTERNAL, "out of order")
        response = judge_pb.JudgeResponse()
        for text in request.completions:
            reward = response.rewards.add()
            if text != "unclear":
                reward.value = float("nan") if text == "nan" else len(text)
        if "short" in request.completions:
            del response.rewards[-1]
        return response


class Scorer(generation_service_pb2_grpc.GenerationServiceServicer):
    """A server whose adapter "critic" is a reward model, and "poet" is none."""

    def __init__(self) -> None:
        self.requests = []

    async def GetModel(self, request, context):
        return generation_pb.Model(limits=generation_pb.Model.Limits(max_completions=2))

    async def Score(self, request, context):
        self.requests.append(request)
        texts = [completion.text for completion in request.completions]
        if "endless" in texts:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "exceeds the context")
        if request.adapter == "lost":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such adapter")
        response = generation_pb.ScoreResponse()
        for text in texts:
            score = response.scores.add(total_logprob=-1)
            if request.adapter == "critic":
                score.classification.reward = len(text)
        return response


@contextlib.asynccontextmanager
async def judging(timeout_s=20.0):
    judge = Judge()
    async with serving_alone(
        judge_service_pb2_grpc.add_JudgeServiceServicer_to_server, judge
    ) as target:
        reward = JudgeReward(target, tls=False, timeout_s=timeout_s)
        try:
            yield judge, reward
        finally:
            await reward.close()


@contextlib.asynccontextmanager
async def scoring():
    scorer = Scorer()
    async with (
        serving_alone(
            generation_service_pb2_grpc.add_GenerationServiceServicer_to_server, scorer
        ) as target,
        AsyncClient(target) as client,
    ):
        yield scorer, client


async def test_a_judge_sees_the_answers_to_one_prompt_together():
    async with judging() as (judge, reward):
        answers = [answer("a"), answer("bb"), answer("ccc", prompt=TEXT_PROMPT)]
        answers.append(answer("dddd", prompt=TokenIds((1, 2))))
        assert await reward.score(answers) == [1, 2, 3, 4]
    asked = {len(request.completions): request for request in judge.requests}
    assert asked[2].conversation.messages[0].content == "Say something nice."
    kinds = sorted(request.WhichOneof("prompt") for request in judge.requests)
    assert kinds == ["conversation", "text", "token_ids"]


async def test_a_judge_may_fail_or_have_no_opinion():
    async with judging() as (_, reward):
        texts = ["fine", "unclear", "nan", "slow", "broken"]
        prompts = [TokenIds((number,)) for number in range(len(texts))]
        scores = await reward.score(
            [answer(text, prompt=prompt) for text, prompt in zip(texts, prompts, strict=True)]
        )
    assert scores[0] == 4
    reasons = [score.reason for score in scores[1:]]
    assert reasons == ["no_opinion", "not_finite", "timed_out", "raised"]


async def test_a_judge_that_answers_something_else_is_an_error():
    async with judging() as (_, reward):
        with pytest.raises(InvalidJudgement, match="gave 1 rewards for 2"):
            await reward.score([answer("short"), answer("x")])


async def test_a_judge_that_is_not_there_is_an_error():
    reward = JudgeReward("localhost:1", tls=False, timeout_s=5)
    with pytest.raises(RewardUnavailable, match="localhost:1 cannot be reached"):
        await reward.score([answer("x")])
    await reward.close()


async def test_a_reward_adapter_is_asked_within_the_servers_limits():
    async with scoring() as (scorer, client):
        reward = AdapterReward(client, "critic")
        answers = [answer("a"), answer("bb"), answer("ccc"), answer("d", prompt=TEXT_PROMPT)]
        assert await reward.score(answers) == [1, 2, 3, 1]
    assert sorted(len(request.completions) for request in scorer.requests) == [1, 1, 2]


async def test_an_answer_that_the_server_refuses_is_skipped():
    async with scoring() as (_, client):
        reward = AdapterReward(client, "critic")
        kept, skipped = await reward.score([answer("a"), answer("endless", prompt=TEXT_PROMPT)])
    assert kept == 1
    assert isinstance(skipped, Unscored)
    assert skipped.reason == "refused"


async def test_an_adapter_that_is_no_reward_model_is_an_error():
    async with scoring() as (_, client):
        with pytest.raises(NotARewardModel, match='"poet" gives no reward'):
            await AdapterReward(client, "poet").score([answer("a")])
        with pytest.raises(RewardUnavailable, match="no such adapter"):
            await AdapterReward(client, "lost").score([answer("a")])


async def test_settings_become_a_weighted_sum():
    async with scoring() as (_, client):
        settings = parse_rewards(
            [
                {"kind": "regex", "pattern": "please", "weight": 2},
                {"kind": "length", "longest": 3},
                {"kind": "adapter", "adapter": "critic", "weight": 0.1},
            ],
            "recipe_options.rewards",
        )
        reward = build_reward(settings, client)
        assert await reward.score([answer("please")]) == [pytest.approx(2 + 1 + 0.6)]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "rewards"),
        ("regex", "rewards"),
        ([{"kind": "oracle"}], r"rewards\[0\]"),
        ([{"pattern": "x"}], r"rewards\[0\]"),
        ([{"kind": "regex"}], r"rewards\[0\].pattern"),
        ([{"kind": "length", "longest": 3}, {"kind": "regex", "pattern": "(", "w": 1}],
         r"rewards\[1\].w"),
        ([{"kind": "regex", "pattern": "x", "weight": 0}], r"rewards\[0\]"),
        ([{"kind": "regex", "pattern": "x", "weight": float("nan")}], r"rewards\[0\].weight"),
        ([{"kind": "plugin", "name": "x", "timeout_s": 0}], r"rewards\[0\].timeout_s"),
        ([{"kind": "regex", "pattern": "("}], r"rewards\[0\]"),
        ([{"kind": "json_schema", "schema": {"type": 3}}], r"rewards\[0\]"),
        ([{"kind": "length", "shortest": 9, "longest": 3}], r"rewards\[0\]"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong_are_named(value, field):
    with pytest.raises(InvalidFieldError, match=f"^{field}: "):
        parse_rewards(value, "rewards")
