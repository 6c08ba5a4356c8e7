"""What a server does for those who run it: TLS, metrics of adapters, draining, freeing memory."""

import asyncio
import signal
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from graftwork import (
    AsyncClient,
    AsyncGenerationStream,
    Cancelled,
    Client,
    DeadlineExceeded,
    Unavailable,
)
from graftwork.v1 import generation_service_pb2 as pb
from graftwork.v1.generation_service_pb2_grpc import GenerationServiceStub
from graftwork_server.serve import load_base, running_server
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.certificates import Authority, needs_openssl
from tests.support.server import ServerUnderTest, serving, tiny_settings, until
from tests.support.server_process import server_process
from tests.support.tiny_serving import PROMPT, TinyBase, ask, one_torch_thread, tiny_base

__all__ = ["one_torch_thread", "tiny_base"]


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    roots = {"roots": [str(tiny_base.folder)]}
    async with serving(tiny_settings(tmp_path, tiny_base.model, adapters=roots)) as server:
        yield server
        await server.check_idle()


# TLS


@needs_openssl
@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
async def test_tls(mutual: bool, tiny_base: TinyBase, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    client_cert, client_key = authority.issue("client")
    tls = {"tls_cert": str(cert), "tls_key": str(key)}
    if mutual:
        tls["tls_client_ca"] = str(authority.cert)
    settings = tiny_settings(
        tmp_path, tiny_base.model, grpc={"port": 0, "host": "localhost", **tls}
    )
    async with running_server(settings, load_base(settings)) as server:
        target = f"localhost:{server.port}"
        pair = {"client_cert": client_cert, "client_key": client_key}
        async with AsyncClient(target, ca=authority.cert, **(pair if mutual else {})) as client:
            answer = await client.generate(PROMPT, max_tokens=3, timeout=20)
            assert len(answer.choices[0].token_ids) > 0
        strangers = [AsyncClient(target), AsyncClient(target, tls=True)]
        if mutual:
            strangers.append(AsyncClient(target, ca=authority.cert))
        for stranger in strangers:
            async with stranger:
                with pytest.raises((Unavailable, DeadlineExceeded)):
                    await stranger.generate(PROMPT, max_tokens=3, timeout=2)


# Metrics


def metrics_of(running: ServerUnderTest) -> dict[str, float]:
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


async def test_metrics_of_adapters(running: ServerUnderTest, tiny_base: TinyBase) -> None:
    adapters = running.client.adapters
    await adapters.create("poet", tiny_base.adapter(1))
    await adapters.create("poet", tiny_base.adapter(2))
    for name in ("", "poet", "poet@2"):
        await ask(running, name, 5)
    with running.engine_held():
        with pytest.raises(DeadlineExceeded):
            await running.client.generate(PROMPT, max_tokens=5, timeout=1)
        # The caller's clock is the first to give up.
        await until(lambda: not running.server.dispatcher.num_in_flight)
    await running.check_idle()
    await ask(running, num_tokens=1)  # after a step the gauges are up to date
    found = await asyncio.to_thread(metrics_of, running)
    expected = {
        'request_success_total{finish_reason="length"}': 4,
        'adapter_requests_total{adapter="poet"}': 2,
        'adapter_generation_tokens_total{adapter="poet"}': 10,
        'adapter_prompt_tokens_total{adapter="poet"}': 2 * len(PROMPT),
        'adapter_requests_total{adapter="_base"}': 2,
        'adapter_live_version{adapter="poet"}': 1,
        'adapters_resident{tier="device"}': 2,
        'adapter_loads_total{result="ok",tier="host"}': 2,
        "time_to_first_token_seconds_count": 4,
        "num_requests_waiting": 0,
        'request_errors_total{code="DEADLINE_EXCEEDED"}': 1,
        "prefix_cache_hits_total": found["graftwork_prefix_cache_hits_total"],
    }
    assert {name: found[f"graftwork_{name}"] for name in expected} == expected
    assert found["graftwork_prefix_cache_hits_total"] >= 32


async def test_the_live_version_follows_the_pointer(tiny_base: TinyBase, tmp_path: Path) -> None:
    roots = {"roots": [str(tiny_base.folder)]}
    settings = tiny_settings(tmp_path, tiny_base.model, adapters=roots)

    async def live(running: ServerUnderTest) -> float | None:
        found = await asyncio.to_thread(metrics_of, running)
        return found.get('graftwork_adapter_live_version{adapter="poet"}')

    async with serving(settings) as running:
        adapters = running.client.adapters
        assert await live(running) is None
        await adapters.create("poet", tiny_base.adapter(1))
        assert await live(running) == 1
        await adapters.create("poet", tiny_base.adapter(2), make_live=True)
        assert await live(running) == 2
        await adapters.rollback("poet")
        assert await live(running) == 1
        await adapters.update("poet", live_version=2)
    async with serving(settings) as running:
        adapters = running.client.adapters
        assert await live(running) == 2
        await adapters.delete("poet@1")
        await adapters.update("poet", live_version=0)
        assert await live(running) == 0
        await adapters.delete("poet@2")
        assert await live(running) is None


# Freeing


@pytest.mark.parametrize("adapter", ["", "poet"])
@pytest.mark.parametrize("by", ["deadline", "cancel", "disconnect"])
async def test_who_goes_away_frees_its_blocks(
    by: str, adapter: str, running: ServerUnderTest, tiny_base: TinyBase
) -> None:
    await running.client.adapters.create("poet", tiny_base.adapter(1))
    await running.client.adapters.load("poet")
    scheduler = running.server.scheduler
    client = AsyncClient(running.target)
    timeout = 1.0 if by == "deadline" else None
    stream = client.stream(
        PROMPT, adapter=adapter, max_tokens=400, ignore_eos=True, n=2, timeout=timeout
    )
    await anext(stream)
    with running.engine_held():
        assert scheduler.num_running
        assert running.num_free_blocks < scheduler.blocks.num_blocks
        match by:
            case "deadline":
                with pytest.raises(DeadlineExceeded):
                    await read_on(stream)
            case "cancel":
                await stream.aclose()
            case "disconnect":
                await client.close()
        await until(lambda: not running.server.dispatcher.num_in_flight)
        assert scheduler.num_running  # nothing is taken away under a step in progress
    # One step later all is free.
    await ask(running, num_tokens=1)
    assert scheduler.num_running == 0
    assert running.num_free_blocks == scheduler.blocks.num_blocks
    assert not running.server.registry.leases()
    await client.close()


async def read_on(stream: AsyncGenerationStream) -> None:
    async for _ in stream:
        pass


async def test_who_waits_may_go_away_too(running: ServerUnderTest) -> None:
    with running.engine_held():
        for _ in range(5):
            with pytest.raises(DeadlineExceeded):
                await running.client.generate(PROMPT, max_tokens=5, timeout=0.05)
        await until(lambda: not running.server.dispatcher.num_in_flight)
    await ask(running)


# Draining


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals, tiny_base: TinyBase, tmp_path: Path) -> None:
    options = ("--adapter-root", str(tiny_base.folder), "--engine-threads", "1")
    with server_process(tmp_path / "data", tiny_base.model, *options) as server:
        with (
            Client(server.target, timeout=60) as client,
            grpc.insecure_channel(server.target) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            stub = GenerationServiceStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == 1
            client.adapters.create("poet", tiny_base.adapter(1))
            # Slow enough to be at work for a while: sixteen long answers at once.
            request = pb.GenerateRequest(adapter="poet", max_tokens=470, ignore_eos=True, n=16)
            request.token_ids.ids.extend(PROMPT)
            stream = stub.StreamGenerate(request, timeout=60)
            next(stream)
            server.process.send_signal(number)
            refusal = wait_for_refusal(stub)
            assert refusal.code() is grpc.StatusCode.UNAVAILABLE
            assert "shutting down" in str(refusal.details())
            status = health.Check(health_pb2.HealthCheckRequest()).status
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            parts = list(stream)
            assert parts[-1].usage.completion_tokens == 16 * 470
        assert server.process.wait(30) == 0


def wait_for_refusal(stub: GenerationServiceStub) -> grpc.RpcError:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            stub.Generate(pb.GenerateRequest(text="fox", max_tokens=1), timeout=10)
        except grpc.RpcError as error:
            return error
    pytest.fail("a draining server goes on taking requests")


async def test_what_does_not_end_in_time_is_cut_off(tiny_base: TinyBase, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, tiny_base.model, grpc={"port": 0, "drain_grace_s": 0.2})
    base = load_base(settings)
    release = threading.Event()
    async with running_server(settings, base) as server:
        client = AsyncClient(f"127.0.0.1:{server.port}")
        stream = client.stream(PROMPT, max_tokens=400, ignore_eos=True)
        await anext(stream)
        server.dispatcher._engine._commands.post(lambda: release.wait(60))
        threading.Timer(2.5, release.set).start()
        started = time.monotonic()
    assert 2 < time.monotonic() - started < 10
    with pytest.raises((Cancelled, Unavailable)):
        await read_on(stream)
    await client.close()
