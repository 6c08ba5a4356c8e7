"""The asynchronous client: as `graftwork.client`, awaited."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from graftwork import requests, responses
from graftwork.aio_adapters import AsyncAdapters
from graftwork.aio_calls import AsyncCalls
from graftwork.aio_feedback import AsyncFeedbackJournal
from graftwork.aio_training import AsyncTraining
from graftwork.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, Connection, Pem
from graftwork.errors import from_rpc_error
from graftwork.requests import GenerateOptions
from graftwork.streams import Assembly
from graftwork.types import Delta, Generation, Model, Prompt, ScoreResult, Tokenization
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork.v1.generation_service_pb2_grpc import GenerationServiceStub


class AsyncGenerationStream(AsyncIterator[Delta]):
    """The parts of an answer as they are sampled. Closing it, or dropping it, cancels the call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._messages = aiter(call)
        self._assembly = Assembly()
        self._waiting: deque[Delta] = deque()
        self._closed = False

    async def __anext__(self) -> Delta:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            try:
                message = await anext(self._messages)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
            except asyncio.CancelledError:
                if self._closed:  # by another task; otherwise this task is the one cancelled
                    raise StopAsyncIteration from None
                raise
            self._waiting.extend(self._assembly.add(message))
        return self._waiting.popleft()

    @property
    def result(self) -> Generation:
        """What has arrived so far, as `generate` would return it. RuntimeError before anything."""
        return self._assembly.generation

    async def aclose(self) -> None:
        """Cancels the call where it is not at its end; the server frees its memory."""
        self._closed = True
        self._waiting.clear()
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class AsyncClient:
    """Talks to one Graftwork server from one event loop; made inside it.

        async with AsyncClient("localhost:50051") as client:
            async with client.stream("Once upon a time", adapter="poet") as stream:
                async for delta in stream:
                    print(delta.text, end="")

    Arguments as for `graftwork.Client`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: bool = False,
        ca: Pem | None = None,
        client_cert: Pem | None = None,
        client_key: Pem | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        connection = Connection.of(
            target,
            tls=tls,
            ca=ca,
            client_cert=client_cert,
            client_key=client_key,
            timeout=timeout,
            metadata=metadata,
        )
        self._calls = AsyncCalls(connection)
        self._stub = GenerationServiceStub(self._calls.channel)  # type: ignore[no-untyped-call]
        self.adapters = AsyncAdapters(self._calls)
        self.feedback = AsyncFeedbackJournal(self._calls)
        self.training = AsyncTraining(self._calls)

    async def generate(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Generates and returns the whole answer; options as in `GenerateOptions`.

        A string is taken as it is; a list of messages goes through the base's chat template.
        """
        request = requests.generate_request(prompt, options)
        return responses.generation(await self._calls.unary(self._stub.Generate, request, timeout))

    def stream(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerationStream:
        """Generates and yields the answer as it is sampled; arguments as for `generate`."""
        request = requests.generate_request(prompt, options)
        return AsyncGenerationStream(self._calls.start(self._stub.StreamGenerate, request, timeout))

    async def score(
        self,
        prompt: Prompt,
        completions: Sequence[str | Sequence[int]] = (),
        *,
        adapter: str = "",
        adapters: Mapping[str, float] | None = None,
        adapter_scale: float | None = None,
        timeout: float | None = None,
    ) -> ScoreResult:
        """The log-probabilities of each completion after the prompt; adapters as for `generate`.

        With a classifier or reward model: the classification of prompt and completion, or of the
        prompt alone where there are no completions.
        """
        request = requests.score_request(prompt, completions, adapter, adapters, adapter_scale)
        return responses.score_result(await self._calls.unary(self._stub.Score, request, timeout))

    async def tokenize(self, prompt: Prompt, *, timeout: float | None = None) -> Tokenization:
        """The tokens of a text or a conversation, as `generate` would see them."""
        request = requests.tokenize_request(prompt)
        answer = await self._calls.unary(self._stub.Tokenize, request, timeout)
        return responses.tokenization(answer)

    async def model(self, *, recompute_digest: bool = False, timeout: float | None = None) -> Model:
        """The base model and the limits of the server; its digest computed anew over the weights
        in memory where `recompute_digest`."""
        request = generation_pb.GetModelRequest(recompute_digest=recompute_digest)
        return responses.model(await self._calls.unary(self._stub.GetModel, request, timeout))

    async def close(self) -> None:
        """Cancels what is running and closes the connection."""
        await self._calls.channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
