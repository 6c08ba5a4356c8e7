import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import graftwork
import grpc
import pytest
from graftwork import AsyncClient, Residency
from graftwork.status import InvalidFieldError, WireError

from tests.client.fake_server import FakeServer

CONFIG = {"adapter_config.json": b"{}"}


@pytest.fixture
async def aclient(server: FakeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, timeout=10) as opened:
        yield opened


async def test_calls(server: FakeServer, aclient: AsyncClient) -> None:
    server.add_version("poet", CONFIG)
    answer = await aclient.generate("hi", adapter="poet", seed=3)
    assert (answer.text, answer.seed) == ("poet@1: hi", 3)
    assert (await aclient.score("a", ["b c"])).scores[0].total_logprob == -1
    assert (await aclient.tokenize("a b")).token_ids == (0, 1)
    assert (await aclient.model()).name == "echo"


async def test_many_at_once(aclient: AsyncClient) -> None:
    answers = await asyncio.gather(*(aclient.generate(f"number {i}") for i in range(20)))
    assert [answer.text for answer in answers] == [f"base: number {i}" for i in range(20)]


async def test_a_stream_makes_up_what_generate_returns(aclient: AsyncClient) -> None:
    stream = aclient.stream("a b c")
    parts = [delta.text async for delta in stream]
    assert "".join(parts) == stream.result.text == (await aclient.generate("a b c")).text
    assert stream.result.usage is not None


async def test_closing_a_stream_cancels_it_on_the_server(server, aclient: AsyncClient) -> None:
    server.endless = True
    async with aclient.stream("a b") as stream:
        assert (await anext(stream)).text == "base:"
    assert await asyncio.to_thread(server.stream_cancelled.wait, 5)
    assert [delta async for delta in stream] == []


async def test_closing_from_another_task_ends_the_loop(server, aclient: AsyncClient) -> None:
    server.endless = True
    server.token_delay_s = 0.01
    stream = aclient.stream("a b")
    await anext(stream)
    asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(stream.aclose()))
    assert len([delta async for delta in stream]) > 0


async def test_cancelling_the_task_cancels_the_call(server, aclient: AsyncClient) -> None:
    server.endless = True
    server.token_delay_s = 0.01

    started = asyncio.Event()

    async def consume() -> None:
        async for _ in aclient.stream("a b"):
            started.set()

    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.stream_cancelled.wait, 5)


async def test_errors(server: FakeServer, aclient: AsyncClient) -> None:
    server.failures = {
        "StreamGenerate": [InvalidFieldError("n", "at most 16")],
        "Generate": [WireError("broken", retry_after_s=2)],
    }
    with pytest.raises(graftwork.InvalidArgument, match="at most 16") as invalid:
        await anext(aclient.stream("hi", n=99))
    assert invalid.value.field == "n"
    with pytest.raises(graftwork.Internal) as broken:
        await aclient.generate("hi")
    assert broken.value.retry_after_s == 2
    assert broken.value.code is grpc.StatusCode.INTERNAL
    with pytest.raises(graftwork.NotFound):
        await aclient.adapters.get("nobody")


async def test_round_trip(server, aclient: AsyncClient, peft_folder: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    version = await aclient.adapters.upload(
        "poet", peft_folder, progress=lambda done, total: seen.append(done)
    )
    target = tmp_path / "copy"
    assert await aclient.adapters.download("poet", target) == version
    assert seen[-1] == sum(path.stat().st_size for path in target.iterdir())
    weights = "adapter_model.safetensors"
    assert (target / weights).read_bytes() == (peft_folder / weights).read_bytes()


async def test_a_refused_upload(server, aclient: AsyncClient, peft_folder: Path) -> None:
    server.failures["UploadAdapterVersion"] = [InvalidFieldError("header.adapter", "has a slash")]
    with pytest.raises(graftwork.InvalidArgument, match="has a slash"):
        await aclient.adapters.upload("a/b", peft_folder)


async def test_cancelling_an_upload(server, aclient: AsyncClient, peft_folder: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def progress(done: int, total: int) -> None:
        started.set()
        go_on.wait(5)

    upload = aclient.adapters.upload("poet", peft_folder, progress=progress)
    task = asyncio.create_task(upload)
    assert await asyncio.to_thread(started.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert server.versions == {}


async def test_what_the_progress_callback_raises_comes_out(aclient, peft_folder: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await aclient.adapters.upload("poet", peft_folder, progress=progress)


async def test_a_download_refuses_names_that_lead_out(server, aclient, tmp_path: Path) -> None:
    server.add_version("poet", CONFIG | {"../evil": b"evil"})
    with pytest.raises(graftwork.Internal, match="not a plain name"):
        await aclient.adapters.download("poet", tmp_path / "copy")
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


async def test_lists_page_by_themselves(server: FakeServer, aclient: AsyncClient) -> None:
    for index in range(5):
        server.add_version(f"adapter-{index}", CONFIG)
    names = [adapter.name async for adapter in aclient.adapters.list(page_size=2)]
    assert names == [f"adapter-{index}" for index in range(5)]
    versions = [version.version async for version in aclient.adapters.versions("adapter-1")]
    assert versions == [1]


async def test_pointers_and_residency(aclient: AsyncClient) -> None:
    await aclient.adapters.create("poet", "v1")
    await aclient.adapters.create("poet", "v2", make_live=True)
    assert (await aclient.adapters.rollback("poet")).live_version == 1
    updated = await aclient.adapters.update("poet", traffic_split={1: 50, 2: 50})
    assert updated.traffic_split == {1: 50, 2: 50}
    assert (await aclient.adapters.load("poet@2")).residency is Residency.DEVICE
    assert (await aclient.adapters.unload("poet@2")).residency is Residency.DISK
    await aclient.adapters.delete("poet@2")
    with pytest.raises(graftwork.NotFound):
        await aclient.adapters.get_version("poet@2")
