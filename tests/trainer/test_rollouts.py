"""Rollouts from a real server over a tiny base, and from one that misbehaves."""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import grpc
import pytest
import torch
from graftwork import AsyncClient, GraftworkError, NotFound
from graftwork.status import InvalidFieldError
from graftwork.v1 import generation_service_pb2 as pb
from graftwork.v1 import generation_service_pb2_grpc
from graftwork_trainer.datasets.prompts import Conversation, Message, Text, TokenIds
from graftwork_trainer.rl.losses import token_logprobs
from graftwork_trainer.rollouts import NoRollouts, RolloutSampler, RolloutSettings

from tests.support.grpc_server import serving_alone
from tests.support.peft_adapters import reference_logits
from tests.support.server import serving, tiny_settings
from tests.support.tiny_serving import tiny_base  # noqa: F401 - a fixture

PROMPTS = [
    Text("The quick brown"),
    Conversation((Message("user", "A model answers?"),)),
    TokenIds((40, 41, 42)),
]


def settings(**changes) -> RolloutSettings:
    values = {"num_samples": 3, "max_tokens": 8, "max_length": 64, "task": "words", "seed": 1}
    return RolloutSettings(**{**values, **changes})


def sampler(client, **changes) -> RolloutSampler:
    return RolloutSampler(client, adapter="policy", owner="job-1", settings=settings(**changes))


async def test_the_policy_answers_and_its_logprobs_are_the_models_own(tmp_path, tiny_base):  # noqa: F811
    policy = Path(tiny_base.adapter(1))
    async with serving(tiny_settings(tmp_path, tiny_base.model)) as running:
        rollouts = sampler(running.client)
        await rollouts.check()
        first = await rollouts.sample(PROMPTS, iteration=0)
        again = await rollouts.sample(PROMPTS, iteration=0)
        other = await rollouts.sample(PROMPTS, iteration=1)
        await rollouts.set_policy(policy)
        moved = await rollouts.sample(PROMPTS, iteration=1)
        await rollouts.set_policy(Path(tiny_base.adapter(2)))
        with pytest.raises(NotFound):
            await running.client.adapters.get_version("policy@1")
        await rollouts.close()
        await rollouts.close()
        assert [v async for v in running.client.adapters.versions("policy")] == []
        await running.check_idle()

    assert [r.token_ids for r in first.rollouts] == [r.token_ids for r in again.rollouts]
    assert [r.token_ids for r in first.rollouts] != [r.token_ids for r in other.rollouts]
    assert Counter(r.group for r in first.rollouts) + Counter() == Counter({0: 3, 1: 3, 2: 3})
    assert len({r.token_ids for r in first.rollouts if r.group == 0}) > 1
    for batch, folder in ((first, None), (moved, policy)):
        for rollout in batch.rollouts:
            ids = [*rollout.prompt_ids, *rollout.token_ids]
            logits = reference_logits(tiny_base.reference, folder, ids)
            own = token_logprobs(logits[:-1], torch.tensor(ids[1:]))[-len(rollout.token_ids) :]
            torch.testing.assert_close(torch.tensor(rollout.logprobs), own, atol=1e-3, rtol=0)
            assert rollout.is_truncated == (len(rollout.token_ids) == 8)


class Careless(generation_service_pb2_grpc.GenerationServiceServicer):
    """Answers with the choices it was given; its queue may be full at first."""

    def __init__(self, *choices: pb.Choice, full: int = 0, error=None) -> None:
        self.choices, self.full, self.error = choices, full, error
        self.requests = []

    async def GetModel(self, request, context):
        limits = pb.Model.Limits(max_n=4, max_new_tokens=16)
        return pb.Model(limits=limits)

    async def Tokenize(self, request, context):
        return pb.TokenizeResponse(token_ids=range(len(request.text)))

    async def Generate(self, request, context):
        self.requests.append(request)
        if self.error is not None:
            await context.abort(self.error, "as the test said")
        if self.full:
            self.full -= 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        return pb.GenerateResponse(choices=self.choices)


def choice(text="fine", logprobs=(-1.0,), num_tokens=None) -> pb.Choice:
    length = len(logprobs) if num_tokens is None else num_tokens
    return pb.Choice(
        text=text,
        token_ids=range(length),
        finish_reason=pb.FINISH_REASON_STOP,
        logprobs=[pb.TokenLogprob(token_id=i, logprob=p) for i, p in enumerate(logprobs)],
    )


@contextlib.asynccontextmanager
async def careless(*choices, **options):
    servicer = Careless(*choices, **options)
    add = generation_service_pb2_grpc.add_GenerationServiceServicer_to_server
    async with serving_alone(add, servicer) as target, AsyncClient(target) as client:
        yield servicer, client


async def test_what_cannot_be_trained_on_is_skipped_and_counted():
    choices = [
        choice(),
        choice(""),
        choice(" \n"),
        choice("long", [-1.0] * 6),
        choice("odd", [float("nan")]),
        choice("odd", [-1.0], num_tokens=2),
    ]
    async with careless(*choices) as (servicer, client):
        batch = await sampler(client, max_length=10).sample(
            [Text("12345"), Text("1234567890")], iteration=0
        )
    assert [rollout.text for rollout in batch.rollouts] == ["fine"]
    assert batch.skipped == {"empty": 2, "over_long": 1 + 3, "not_finite": 2}
    (request,) = servicer.requests
    assert (request.task, request.origin) == ("words", pb.ORIGIN_ROLLOUT)
    assert request.sampling.temperature == 1
    assert not request.adapter


async def test_nothing_to_train_on_is_an_error():
    async with careless(choice(""), choice("")) as (_, client):
        with pytest.raises(NoRollouts, match="none of 6 rollouts can be trained on: 4 empty"):
            await sampler(client).sample([Text("a"), Text("b")], iteration=0)


async def test_a_full_queue_is_waited_for(monkeypatch):
    monkeypatch.setattr("graftwork_trainer.rollouts._WAIT_S", 0.01)
    async with careless(choice(), full=3) as (servicer, client):
        batch = await sampler(client).sample([Text("a")], iteration=0)
    assert len(batch.rollouts) == 1
    assert len(servicer.requests) == 4


async def test_an_error_ends_all_calls():
    async with careless(error=grpc.StatusCode.INTERNAL) as (_, client):
        with pytest.raises(GraftworkError, match="as the test said"):
            await sampler(client).sample([Text(str(n)) for n in range(40)], iteration=0)
        assert not [task for task in asyncio.all_tasks() if "answered" in repr(task)]


async def test_a_server_that_allows_less_is_an_error():
    async with careless() as (_, client):
        with pytest.raises(InvalidFieldError, match=r"recipe_options.num_samples: is 5.* 4"):
            await sampler(client, num_samples=5).check()
        with pytest.raises(InvalidFieldError, match=r"recipe_options.max_tokens: is 17.* 16"):
            await sampler(client, max_tokens=17).check()
