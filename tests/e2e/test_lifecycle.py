"""Adapters that come, move, go and make room for one another while requests run."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from graftwork import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NotFound,
    Residency,
    ResourceExhausted,
    Unavailable,
)
from graftwork.v1 import generation_service_pb2 as pb
from graftwork.v1.generation_service_pb2_grpc import GenerationServiceStub

from tests.support.server import ServerUnderTest, serving, tiny_settings, until
from tests.support.tiny_serving import (
    PROMPT,
    TinyBase,
    ask,
    model_digest,
    one_torch_thread,
    tiny_base,
    tokens_of,
)

__all__ = ["one_torch_thread", "tiny_base"]

LONG = 120  # tokens of an answer that goes on while the test does something


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    async with serving(settings_of(tiny_base, tmp_path)) as server:
        yield server
        await server.check_idle()


def settings_of(tiny_base: TinyBase, folder: Path, **adapters: object):
    roots = {"roots": [str(tiny_base.folder)]}
    return tiny_settings(folder, tiny_base.model, adapters={**roots, **adapters})


async def test_a_stream_stays_on_its_version_when_the_name_moves(
    running: ServerUnderTest, tiny_base: TinyBase
) -> None:
    await running.client.adapters.create("poet", tiny_base.adapter(1))
    expected = tokens_of(await ask(running, "poet", LONG))
    request = pb.GenerateRequest(adapter="poet", max_tokens=LONG, ignore_eos=True)
    request.token_ids.ids.extend(PROMPT)
    async with grpc.aio.insecure_channel(running.target) as channel:
        call = GenerationServiceStub(channel).StreamGenerate(request)
        messages = aiter(call)
        parts = [await anext(messages)]
        with running.engine_held():
            await running.client.adapters.create("poet", tiny_base.adapter(2), make_live=True)
            assert running.server.dispatcher.num_in_flight == 1
        moved = await ask(running, "poet")
        parts += [part async for part in messages]
    assert moved.served_by.version == 2
    assert tokens_of(moved) != expected[:12]
    assert {part.served_by.version for part in parts} == {1}
    assert len({part.served_by.digest for part in parts}) == 1
    assert [t for part in parts for d in part.deltas for t in d.token_ids] == expected


async def test_rollback(running: ServerUnderTest, tiny_base: TinyBase) -> None:
    answers = {}
    for seed in (1, 2, 3):
        await running.client.adapters.create("poet", tiny_base.adapter(seed), make_live=True)
        answers[seed] = tokens_of(await ask(running, "poet"))
    for version in (2, 1):
        adapter = await running.client.adapters.rollback("poet")
        answer = await ask(running, "poet")
        assert adapter.live_version == answer.served_by.version == version
        assert tokens_of(answer) == answers[version]
    with pytest.raises(FailedPrecondition, match="no other live version"):
        await running.client.adapters.rollback("poet")
    exact = await ask(running, "poet@3")
    assert (exact.served_by.version, tokens_of(exact)) == (3, answers[3])


async def test_a_traffic_split_is_sticky_by_episode(
    running: ServerUnderTest, tiny_base: TinyBase
) -> None:
    for seed in (1, 2):
        await running.client.adapters.create("poet", tiny_base.adapter(seed))
    await running.client.adapters.update("poet", traffic_split={1: 50, 2: 50})

    async def version_of(episode: str) -> int:
        answer = await running.client.generate(
            PROMPT, adapter="poet", max_tokens=1, episode_id=episode
        )
        return answer.served_by.version

    episodes = [f"episode-{index}" for index in range(16)]
    first = await asyncio.gather(*(version_of(episode) for episode in episodes))
    again = await asyncio.gather(*(version_of(episode) for episode in episodes))
    assert first == again
    assert set(first) == {1, 2}
    assert set(await asyncio.gather(*(version_of("") for _ in range(24)))) == {1, 2}
    await running.client.adapters.update("poet", traffic_split={})
    assert set(await asyncio.gather(*(version_of(episode) for episode in episodes))) == {1}


async def test_unload_waits_for_what_runs(running: ServerUnderTest, tiny_base: TinyBase) -> None:
    adapters = running.client.adapters
    await adapters.create("poet", tiny_base.adapter(1))
    expected = tokens_of(await ask(running, "poet", LONG))
    async with running.client.stream(
        PROMPT, adapter="poet", max_tokens=LONG, ignore_eos=True
    ) as stream:
        await anext(stream)
        with running.engine_held():
            await adapters.unload("poet")
            assert running.server.dispatcher.num_in_flight == 1
        await anext(stream)  # steps go by
        assert (await adapters.get_version("poet")).residency is Residency.DEVICE
        async for _ in stream:
            pass
    assert tokens_of(stream.result) == expected
    await running.check_idle()
    await ask(running)
    assert (await adapters.get_version("poet")).residency is Residency.DISK
    assert tokens_of(await ask(running, "poet")) == expected[:12]
    assert (await adapters.get_version("poet")).residency is Residency.DEVICE


async def test_delete_lets_what_runs_finish(running: ServerUnderTest, tiny_base: TinyBase) -> None:
    adapters = running.client.adapters
    await adapters.create("poet", tiny_base.adapter(1))
    version = await adapters.create("poet", tiny_base.adapter(2))
    store = running.server.registry._store
    expected = tokens_of(await ask(running, "poet@2", LONG))
    async with running.client.stream(
        PROMPT, adapter="poet@2", max_tokens=LONG, ignore_eos=True
    ) as stream:
        await anext(stream)
        with running.engine_held():
            await adapters.delete("poet@2")
            assert running.server.dispatcher.num_in_flight == 1
        with pytest.raises(NotFound, match="poet@2"):
            await ask(running, "poet@2")
        async for _ in stream:
            pass
    assert tokens_of(stream.result) == expected
    await running.check_idle()
    await until(lambda: version.digest not in store.digests())
    await until(lambda: running.server.scheduler.slots.slot_of(version.digest) is None)
    assert (await ask(running, "poet")).served_by.version == 1
    with pytest.raises(FailedPrecondition, match="live"):
        await adapters.delete("poet@1")
    third = await adapters.create("poet", tiny_base.adapter(2))
    assert (third.version, third.digest) == (3, version.digest)


async def test_two_names_for_the_same_weights(
    running: ServerUnderTest, tiny_base: TinyBase
) -> None:
    adapters = running.client.adapters
    await adapters.create("one", tiny_base.adapter(1))
    await adapters.create("two", tiny_base.adapter(2))
    same = await adapters.create("two", tiny_base.adapter(1))
    expected = tokens_of(await ask(running, "one"))
    assert tokens_of(await ask(running, same.selector)) == expected
    await adapters.delete(same.selector)
    assert tokens_of(await ask(running, "one")) == expected
    assert (await adapters.get_version("one")).residency is Residency.DEVICE
    await adapters.unload("one")
    assert tokens_of(await ask(running, "one")) == expected


async def test_registering_while_streams_run(running: ServerUnderTest, tiny_base: TinyBase) -> None:
    before = await model_digest(running)
    names = ["", "a1", "a2", "a3"]
    for seed in (1, 2, 3):
        await running.client.adapters.create(f"a{seed}", tiny_base.adapter(seed))
    answers = await asyncio.gather(*(ask(running, name, 400) for name in names))
    streams = [asyncio.create_task(ask(running, name, 400)) for name in names * 4]
    await until(lambda: running.server.scheduler.num_running == 16)
    await running.client.adapters.create("new", tiny_base.adapter(20))
    answer = await ask(running, "new")
    assert sum(not stream.done() for stream in streams) == 16
    assert (answer.served_by.adapter, answer.served_by.version) == ("new", 1)
    for expected, stream in zip(answers * 4, streams, strict=True):
        assert tokens_of(await stream) == tokens_of(expected)
    assert tokens_of(await ask(running, "new")) == tokens_of(answer)
    assert await model_digest(running) == before


@pytest.mark.parametrize("host_cache", ["1GiB", "0"])
async def test_many_adapters_share_few_slots(
    host_cache: str, tiny_base: TinyBase, tmp_path: Path
) -> None:
    settings = settings_of(tiny_base, tmp_path, device_slots=3, host_cache_bytes=host_cache)
    async with serving(settings) as running:
        names = ["", *(f"a{seed}" for seed in range(1, 11))]
        for seed in range(1, 11):
            await running.client.adapters.create(f"a{seed}", tiny_base.adapter(seed))
        expected = {name: tokens_of(await ask(running, name)) for name in names}
        assert len({tuple(tokens) for tokens in expected.values()}) == len(names)
        asked = names * 4
        random.Random(0).shuffle(asked)
        answers = await asyncio.gather(*(ask(running, name) for name in asked))
        for name, answer in zip(asked, answers, strict=True):
            assert answer.served_by.adapter == name
            assert tokens_of(answer) == expected[name]
        assert running.server.scheduler.slots.num_evictions >= 7
        await running.check_idle()


async def test_a_pinned_adapter_is_never_evicted(tiny_base: TinyBase, tmp_path: Path) -> None:
    async with serving(settings_of(tiny_base, tmp_path, device_slots=2)) as running:
        adapters = running.client.adapters
        for seed in range(5):
            await adapters.create(f"a{seed}", tiny_base.adapter(seed))
        await adapters.update("a0", pinned=True)
        await adapters.load("a0")
        slots = running.server.scheduler.slots
        slot = slots.slot_of((await adapters.get_version("a0")).digest)
        await asyncio.gather(*(ask(running, f"a{seed}") for seed in (1, 2, 3, 4) * 4))
        version = await adapters.get_version("a0")
        assert version.residency is Residency.DEVICE
        assert slots.slot_of(version.digest) == slot
        # With no slot left that may be freed the error says so, and nothing waits for ever.
        await adapters.update("a1", pinned=True)
        await adapters.load("a1")
        with pytest.raises(ResourceExhausted, match="pinned"):
            await ask(running, "a2")
        with pytest.raises(ResourceExhausted, match="pinned"):
            await adapters.load("a2")
        await adapters.update("a0", pinned=False)
        assert (await ask(running, "a2")).served_by.adapter == "a2"
        await running.check_idle()


async def test_a_load_whose_caller_gave_up(running: ServerUnderTest, tiny_base: TinyBase) -> None:
    await running.client.adapters.create("poet", tiny_base.adapter(1))
    with running.engine_held(), pytest.raises(DeadlineExceeded):
        await running.client.adapters.load("poet", timeout=0.2)
    assert (await ask(running, "poet")).served_by.adapter == "poet"
    assert (await running.client.adapters.load("poet")).residency is Residency.DEVICE


async def test_a_defect_of_the_engine_ends_what_runs_and_says_so(
    tiny_base: TinyBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down() -> None:
        raise RuntimeError("a defect")

    async with serving(settings_of(tiny_base, tmp_path)) as running:
        dispatcher = running.server.dispatcher
        async with running.client.stream(PROMPT, max_tokens=LONG, ignore_eos=True) as stream:
            await anext(stream)
            dispatcher._engine._commands.post(break_down)
            with pytest.raises(Internal, match="incident"):
                async for _ in stream:
                    pass
        await asyncio.wait_for(dispatcher.engine_failed.wait(), 5)
        with pytest.raises(Unavailable):
            await ask(running)
    assert "the engine has died" in caplog.text


async def test_a_restart_keeps_the_registry(tiny_base: TinyBase, tmp_path: Path) -> None:
    async with serving(settings_of(tiny_base, tmp_path)) as running:
        adapters = running.client.adapters
        for seed in (1, 2, 3):
            await adapters.create("poet", tiny_base.adapter(seed), make_live=seed < 3)
        await adapters.create("other", tiny_base.adapter(4))
        await adapters.update("poet", pinned=True)
        await adapters.update("other", traffic_split={1: 100})
        known = [a async for a in adapters.list()], [v async for v in adapters.versions()]
        answers = [tokens_of(await ask(running, name)) for name in ("poet", "poet@3", "other")]
    async with serving(settings_of(tiny_base, tmp_path)) as running:
        adapters = running.client.adapters
        assert not any(running.server.registry.recovery.lost_versions)
        assert [adapter async for adapter in adapters.list()] == known[0]
        found = [version async for version in adapters.versions()]
        assert [v.selector for v in found] == [v.selector for v in known[1]]
        assert [v.digest for v in found] == [v.digest for v in known[1]]
        assert {v.residency for v in found} == {Residency.DISK}
        again = [tokens_of(await ask(running, name)) for name in ("poet", "poet@3", "other")]
        assert again == answers
        assert (await adapters.rollback("poet")).live_version == 1
        # The engine's thread takes the pin in between two steps.
        await until(lambda: running.server.scheduler.slots.is_pinned(found[1].digest))
