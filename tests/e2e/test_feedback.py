"""Generations that a server logs, and feedback on them, through the client."""

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from graftwork import (
    AlreadyExists,
    Answer,
    Conversation,
    FailedPrecondition,
    Feedback,
    FinishReason,
    InvalidArgument,
    Message,
    NotFound,
    Origin,
    Preference,
    Ranking,
    Refusal,
    Source,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.server import ServerUnderTest, serving, tiny_settings, until
from tests.support.tiny_serving import PROMPT, TinyBase, ask, one_torch_thread, tiny_base

__all__ = ["one_torch_thread", "tiny_base"]

SERVICE = "graftwork.v1.FeedbackService"


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    settings = tiny_settings(
        tmp_path,
        tiny_base.model,
        adapters={"roots": [str(tiny_base.folder)]},
        feedback={"labels": ["colours=red,blue"]},
    )
    async with serving(settings) as server:
        yield server
        await server.check_idle()


async def generations(running: ServerUnderTest, **query: object):
    return [found async for found in running.client.feedback.generations(**query)]


async def test_a_generation_is_logged_with_all_that_made_it(
    running: ServerUnderTest, tiny_base: TinyBase
) -> None:
    version = await running.client.adapters.create("poet", tiny_base.adapter(1))
    before = datetime.now(UTC)
    answer = await running.client.generate(
        [Message("user", "hello")],
        adapter="poet",
        max_tokens=5,
        ignore_eos=True,
        n=2,
        temperature=0.8,
        seed=11,
        logit_bias={7: 1.5},
        logprobs=0,
        episode_id="talk",
    )
    found = {one.id: one for one in await generations(running, group_id=answer.group_id)}
    assert found.keys() == {choice.generation_id for choice in answer.choices}
    for choice in answer.choices:
        logged = found[choice.generation_id]
        assert (logged.episode_id, logged.task, logged.origin) == ("talk", "poet", Origin.USER)
        assert logged.served_by == answer.served_by
        assert logged.served_by.digest == version.digest
        assert logged.input == Conversation((Message("user", "hello"),), ())
        assert logged.completion == choice.text
        assert logged.completion_token_ids == choice.token_ids
        assert logged.completion_logprobs == tuple(t.logprob for t in choice.logprobs)
        assert logged.finish_reason is FinishReason.LENGTH
        assert len(logged.template_hash) == 64
        assert before <= logged.create_time <= logged.finish_time
        assert logged.sampling["temperature"] == pytest.approx(0.8)
        assert logged.sampling["logit_bias"] == {7: 1.5}
    assert found[answer.choices[0].generation_id].sampling["seed"] == 11
    tokens = await running.client.tokenize([Message("user", "hello")])
    assert logged.prompt_token_ids == tokens.token_ids


async def test_log_probabilities_come_without_being_asked_for(running: ServerUnderTest) -> None:
    shown = await running.client.generate(PROMPT, max_tokens=6, ignore_eos=True, logprobs=0)
    plain = await running.client.generate(PROMPT, max_tokens=6, ignore_eos=True)
    assert not plain.choices[0].logprobs
    (logged,) = await generations(running, ids=[plain.choices[0].generation_id])
    expected = [token.logprob for token in shown.choices[0].logprobs]
    assert logged.completion_logprobs == pytest.approx(expected, abs=1e-5)
    assert logged.input == tuple(PROMPT)


async def test_what_is_not_to_be_stored_is_not(running: ServerUnderTest) -> None:
    answer = await running.client.generate("hi", max_tokens=2, store=False)
    assert await generations(running) == []
    with pytest.raises(NotFound, match="store=false") as caught:
        await running.client.feedback.submit(
            generation_id=answer.choices[0].generation_id, thumbs=True
        )
    assert caught.value.field == "feedback.generation_id"


async def test_task_and_origin(running: ServerUnderTest) -> None:
    await running.client.generate("hi", max_tokens=1, task="greetings", origin=Origin.ROLLOUT)
    await running.client.generate("hi", max_tokens=1)
    (rollout,) = await generations(running, origins=[Origin.ROLLOUT])
    assert (rollout.task, rollout.origin) == ("greetings", Origin.ROLLOUT)
    (plain,) = await generations(running, origins=[Origin.USER])
    assert plain.task == ""
    with pytest.raises(InvalidArgument, match="task: must be 1 to 63 characters"):
        await running.client.generate("hi", max_tokens=1, task="Not A Name")


async def test_a_stop_string_ends_what_is_logged(running: ServerUnderTest) -> None:
    whole = await running.client.generate(PROMPT, max_tokens=12, ignore_eos=True)
    middle = whole.text[4:6]
    cut = await running.client.generate(PROMPT, max_tokens=12, ignore_eos=True, stop=middle)
    (logged,) = await generations(running, ids=[cut.choices[0].generation_id])
    assert logged.completion == cut.text == whole.text[: whole.text.index(middle)]
    assert logged.finish_reason is FinishReason.STOP
    assert len(logged.completion_logprobs) == len(logged.completion_token_ids)


async def test_an_answer_that_the_caller_leaves_is_logged_as_cancelled(
    running: ServerUnderTest,
) -> None:
    async with running.client.stream(PROMPT, max_tokens=400, ignore_eos=True) as stream:
        delta = await anext(stream)
    await until(lambda: not running.server.dispatcher.num_in_flight)
    (logged,) = await generations(running)
    assert logged.id == delta.generation_id
    assert logged.finish_reason is FinishReason.CANCELLED
    assert logged.completion.startswith(delta.text)


async def test_feedback_can_follow_at_once(running: ServerUnderTest) -> None:
    """The generation may still wait in the journal's queue."""
    for _ in range(5):
        answer = await ask(running, num_tokens=1)
        feedback = await running.client.feedback.submit(
            generation_id=answer.choices[0].generation_id,
            correction="better",
            author="ada",
            comment="shorter, please",
        )
        assert (feedback.kind, feedback.value, feedback.source) == (
            "correction",
            "better",
            Source.HUMAN,
        )
    listed = [one async for one in running.client.feedback.list(author="ada", page_size=2)]
    assert len(listed) == 5
    assert listed[0] == feedback


async def test_every_kind_of_feedback(running: ServerUnderTest) -> None:
    answer = await running.client.generate(
        PROMPT, max_tokens=6, n=3, temperature=1.5, seed=1, ignore_eos=True, episode_id="e"
    )
    ids = [choice.generation_id for choice in answer.choices]
    prompt = [Message("user", "what colour is the sky?")]
    items = [
        {"generation_id": ids[0], "thumbs": False},
        {"group_id": answer.group_id, "reward": 0.5},
        {"episode_id": "e", "remark": "odd"},
        {"prompt": prompt, "task": "colours", "label": "blue"},
        {"prompt": "Say hi", "demonstration": "hi"},
        {"generation_id": ids[0], "preference": Preference(Answer("x"), Answer("", ids[1]), 0.5)},
        {
            "group_id": answer.group_id,
            "ranking": Ranking(
                ((Answer(generation_id=ids[2]),), tuple(Answer(generation_id=i) for i in ids[:2]))
            ),
        },
        {"prompt": [*prompt, Message("assistant", "blue")], "thumbs": True},
    ]
    outcomes = await running.client.feedback.submit_many(items)
    assert all(isinstance(outcome, Feedback) for outcome in outcomes), outcomes
    listed = [one async for one in running.client.feedback.list()]
    assert listed == outcomes[::-1]
    assert listed[1].value == items[6]["ranking"]
    assert listed[2].value == items[5]["preference"]


async def test_one_refused_item_does_not_hold_up_the_others(running: ServerUnderTest) -> None:
    answer = await ask(running)
    outcomes = await running.client.feedback.submit_many(
        [
            {"generation_id": answer.choices[0].generation_id, "reward": math.inf},
            {"generation_id": answer.choices[0].generation_id, "thumbs": True},
            {"prompt": "sky", "task": "colours", "label": "green"},
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [Refusal, Feedback, Refusal]
    assert outcomes[0].field == "feedback.reward"
    assert "finite" in outcomes[0].message
    assert outcomes[2].reason == "LABEL_NOT_IN_SET"
    assert '"blue", "red"' in outcomes[2].message


async def test_contradictory_feedback_names_what_to_supersede(running: ServerUnderTest) -> None:
    generation_id = (await ask(running)).choices[0].generation_id
    submit = running.client.feedback.submit
    first = await submit(generation_id=generation_id, thumbs=True, author="ada")
    with pytest.raises(AlreadyExists, match=first.id):
        await submit(generation_id=generation_id, thumbs=False, author="ada")
    second = await submit(
        generation_id=generation_id, thumbs=False, author="ada", supersedes=first.id
    )
    with pytest.raises(FailedPrecondition, match=second.id):
        await submit(generation_id=generation_id, thumbs=True, author="ada", supersedes=first.id)
    with pytest.raises(FailedPrecondition, match="another author"):
        await submit(generation_id=generation_id, thumbs=True, author="bob", supersedes=second.id)
    assert [one.id async for one in running.client.feedback.list()] == [second.id]


async def test_a_repeated_request_returns_the_first_answer(running: ServerUnderTest) -> None:
    generation_id = (await ask(running)).choices[0].generation_id
    request_id = "0b8c1f0e-5f0f-4a57-9a53-6f1b3c0c5f11"
    submit = running.client.feedback.submit
    first, second = await asyncio.gather(
        *(submit(generation_id=generation_id, thumbs=True, request_id=request_id) for _ in "12")
    )
    assert first == second
    with pytest.raises(InvalidArgument, match="was used for a different request"):
        await submit(generation_id=generation_id, thumbs=False, request_id=request_id)


async def test_unrelated_answers_are_not_compared(running: ServerUnderTest) -> None:
    one, other = await ask(running), await running.client.generate("hi", max_tokens=2)
    chosen, rejected = one.choices[0].generation_id, other.choices[0].generation_id
    with pytest.raises(InvalidArgument, match="answers to one prompt") as caught:
        await running.client.feedback.submit(
            generation_id=chosen, preference=Preference(Answer("", chosen), Answer("", rejected))
        )
    assert caught.value.field == "feedback.preference.rejected.generation_id"


async def test_deletion_takes_feedback_along(running: ServerUnderTest) -> None:
    kept, gone = await ask(running), await ask(running)
    for answer, author in ((kept, "bob"), (gone, "ada"), (gone, "bob")):
        await running.client.feedback.submit(
            generation_id=answer.choices[0].generation_id, thumbs=True, author=author
        )
    deleted = await running.client.feedback.delete(author="ada")
    assert (deleted.num_generations, deleted.num_feedback) == (1, 2)
    (left,) = await generations(running)
    assert left.id == kept.choices[0].generation_id
    with pytest.raises(NotFound):
        await running.client.feedback.submit(
            generation_id=gone.choices[0].generation_id, thumbs=True
        )
    with pytest.raises(InvalidArgument, match="exactly one"):
        await running.client.feedback.delete()


async def test_examples_are_exported_scrubbed(running: ServerUnderTest) -> None:
    answer = await running.client.generate([Message("user", "mail me")], max_tokens=2, task="mail")
    await running.client.feedback.submit(
        generation_id=answer.choices[0].generation_id, correction="write to ada@example.com"
    )
    await running.client.feedback.submit(prompt="x", task="other", demonstration="y")
    await running.client.feedback.submit(
        prompt=[Message("user", "q"), Message("assistant", "a")], task="mail", thumbs=True
    )
    export = running.client.feedback.export
    (line,) = [line async for line in export("sft", tasks=["mail"])]
    assert line["completion"] == "write to [EMAIL]"
    assert line["generation_ids"] == [answer.choices[0].generation_id]
    (line,) = [line async for line in export("sft", tasks=["mail"], scrub=False)]
    assert line["completion"] == "write to ada@example.com"
    (line,) = [line async for line in export("unpaired")]
    assert (line["prompt"], line["completion"], line["label"]) == (
        {"messages": [{"role": "user", "content": "q"}]},
        "a",
        True,
    )
    with pytest.raises(InvalidArgument, match=r"selection\.format: must be one of sft"):
        await anext(export("poems"))


async def test_evaluations_are_no_examples_by_default(running: ServerUnderTest) -> None:
    answer = await running.client.generate("q", max_tokens=2, task="t", origin=Origin.EVALUATION)
    await running.client.feedback.submit(
        generation_id=answer.choices[0].generation_id, correction="c"
    )
    export = running.client.feedback.export
    assert [line async for line in export("sft")] == []
    assert len([line async for line in export("sft", origins=[Origin.EVALUATION])]) == 1


async def test_the_service_is_healthy_and_counted(running: ServerUnderTest) -> None:
    await running.client.feedback.submit(prompt="p", task="t", label="l")
    async with grpc.aio.insecure_channel(running.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.server.metrics_port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
    assert 'graftwork_feedback_total{kind="label"} 1.0' in text
    assert "graftwork_journal_queue_generations" in text


async def test_without_a_journal_nothing_is_kept(tiny_base: TinyBase, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, tiny_base.model, journal={"enabled": False})
    async with serving(settings) as running:
        await ask(running)
        with pytest.raises(Exception, match="Method not found") as caught:
            await running.client.feedback.submit(prompt="p", label="l")
        assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert not (tmp_path / "data" / "journal.sqlite3").exists()
