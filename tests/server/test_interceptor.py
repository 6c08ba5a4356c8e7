"""The interceptor on a real in-process server, with a service of each kind of method."""

import asyncio
import contextlib
import logging

import grpc
import pytest
from graftwork.status import InvalidFieldError, details_of
from graftwork.v1 import (
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
)
from graftwork_server.errors import QueueFull
from graftwork_server.interceptor import StatusInterceptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

GENERATE = "/graftwork.v1.GenerationService/Generate"
STREAM = "/graftwork.v1.GenerationService/StreamGenerate"


class FakeGeneration(generation_service_pb2_grpc.GenerationServiceServicer):
    """Does what the request's adapter names."""

    def __init__(self):
        self.closed = asyncio.Event()

    async def _behave(self, request, context):
        match request.adapter:
            case "queue-full":
                raise QueueFull(3, retry_after_s=2.5)
            case "bad-field":
                raise InvalidFieldError("sampling.top_p", "must be above 0")
            case "bug":
                raise RuntimeError("password=hunter2")
            case "abort":
                await context.abort(grpc.StatusCode.NOT_FOUND, "no")
            case "hang":
                await asyncio.sleep(3600)

    async def Generate(self, request, context):
        await self._behave(request, context)
        return generation_service_pb2.GenerateResponse(group_id=request.adapter)

    async def StreamGenerate(self, request, context):
        try:
            yield generation_service_pb2.StreamGenerateResponse(group_id="1")
            await self._behave(request, context)
            yield generation_service_pb2.StreamGenerateResponse(group_id="2")
        finally:
            self.closed.set()


class FakeAdapters(adapter_service_pb2_grpc.AdapterServiceServicer):
    async def UploadAdapterVersion(self, request_iterator, context):
        size = 0
        async for request in request_iterator:
            size += len(request.chunk.data)
        return adapter_service_pb2.AdapterVersion(size_bytes=size)


class Harness:
    def __init__(self):
        self.draining = False
        self.codes = []
        self._another = asyncio.Event()
        self.generation_servicer = FakeGeneration()

    async def counted(self, number):
        """What was counted once `number` calls were, which may be after their answers came."""
        async with asyncio.timeout(5):
            while len(self.codes) < number:
                self._another.clear()
                await self._another.wait()
        return self.codes

    def _count(self, method, code):
        self.codes.append((method, code))
        self._another.set()

    @contextlib.asynccontextmanager
    async def running(self):
        interceptor = StatusInterceptor(
            observe_rpc=self._count,
            is_draining=lambda: self.draining,
        )
        server = grpc.aio.server(interceptors=[interceptor])
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(
            self.generation_servicer, server
        )
        adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(FakeAdapters(), server)
        health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            self.channel = channel
            self.generation = generation_service_pb2_grpc.GenerationServiceStub(channel)
            self.adapters = adapter_service_pb2_grpc.AdapterServiceStub(channel)
            self.health = health_pb2_grpc.HealthStub(channel)
            yield
        await server.stop(None)


@pytest.fixture
async def harness():
    found = Harness()
    async with found.running():
        yield found


def request(adapter):
    return generation_service_pb2.GenerateRequest(adapter=adapter)


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def collect(stream):
    return [response.group_id async for response in stream]


async def test_answers_pass_through_and_are_counted(harness):
    assert (await harness.generation.Generate(request("x"))).group_id == "x"
    assert await collect(harness.generation.StreamGenerate(request("x"))) == ["1", "2"]
    ok = grpc.StatusCode.OK
    assert await harness.counted(2) == [(GENERATE, ok), (STREAM, ok)]


async def test_wire_errors_keep_their_details(harness):
    error = await failure(harness.generation.Generate(request("queue-full")))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(error).retry_after_s == 2.5
    assert details_of(error).reason == "QUEUE_FULL"

    error = await failure(collect(harness.generation.StreamGenerate(request("bad-field"))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error).field == "sampling.top_p"
    assert [code for _, code in await harness.counted(2)] == [
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INVALID_ARGUMENT,
    ]


async def test_a_bug_leaks_nothing_and_is_logged_under_its_incident(harness, caplog):
    for call in (
        lambda: harness.generation.Generate(request("bug")),
        lambda: collect(harness.generation.StreamGenerate(request("bug"))),
    ):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            error = await failure(call())
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "hunter2" not in error.details()
        assert "hunter2" not in str(error.trailing_metadata())
        incident = error.details().rsplit(" ", 1)[1]
        [record] = [r for r in caplog.records if r.name == "graftwork_server.interceptor"]
        assert incident in record.getMessage()
        assert "hunter2" in record.exc_text


async def test_an_abort_of_the_servicer_keeps_its_code(harness):
    error = await failure(harness.generation.Generate(request("abort")))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no")
    assert await harness.counted(1) == [(GENERATE, grpc.StatusCode.NOT_FOUND)]


@pytest.mark.parametrize(
    ("timeout_s", "code"),
    [(0.2, grpc.StatusCode.DEADLINE_EXCEEDED), (None, grpc.StatusCode.CANCELLED)],
)
async def test_the_end_of_a_caller_closes_the_stream(harness, timeout_s, code):
    call = harness.generation.StreamGenerate(request("hang"), timeout=timeout_s)
    await call.read()
    if timeout_s is None:
        call.cancel()
    await asyncio.wait_for(harness.generation_servicer.closed.wait(), 5)
    assert await call.code() is code
    assert await harness.counted(1) == [(STREAM, code)]


async def test_bytes_that_are_no_message_are_the_callers_fault(harness):
    raw = harness.channel.unary_unary(GENERATE)
    error = await failure(raw(b"\x0a\x02\xff\xfe"))  # field 1, a string, not UTF-8
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error).field == "request"

    raw_upload = harness.channel.stream_unary("/graftwork.v1.AdapterService/UploadAdapterVersion")
    error = await failure(raw_upload(iter([b"\x12\xff"])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_request_streams_are_parsed(harness):
    chunk = adapter_service_pb2.FileChunk(data=b"abc")
    parts = [adapter_service_pb2.UploadAdapterVersionRequest(chunk=chunk)] * 3
    assert (await harness.adapters.UploadAdapterVersion(iter(parts))).size_bytes == 9


async def test_a_draining_server_refuses_all_but_health(harness):
    harness.draining = True
    for call in (
        lambda: harness.generation.Generate(request("x")),
        lambda: collect(harness.generation.StreamGenerate(request("x"))),
    ):
        error = await failure(call())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details_of(error).reason == "DRAINING"
    answer = await harness.health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_servicers_that_write_through_the_context_work(harness):
    watch = harness.health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_an_unknown_method_is_unimplemented_and_not_counted(harness):
    error = await failure(harness.channel.unary_unary("/graftwork.v1.Nothing/Here")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert harness.codes == []
