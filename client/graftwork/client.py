"""The synchronous client."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from graftwork import requests, responses
from graftwork.adapters import Adapters
from graftwork.calls import Calls
from graftwork.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, Connection, Pem
from graftwork.errors import from_rpc_error
from graftwork.feedback import FeedbackJournal
from graftwork.requests import GenerateOptions
from graftwork.streams import Assembly
from graftwork.training import Training
from graftwork.types import Delta, Generation, Model, Prompt, ScoreResult, Tokenization
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork.v1.generation_service_pb2_grpc import GenerationServiceStub


class GenerationStream(Iterator[Delta]):
    """The parts of an answer as they are sampled. Closing it, or dropping it, cancels the call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._assembly = Assembly()
        self._waiting: deque[Delta] = deque()
        self._closed = False

    def __next__(self) -> Delta:
        while not self._waiting:
            if self._closed:
                raise StopIteration
            try:
                message = next(self._call)
            except grpc.RpcError as error:
                if self._closed:  # by another thread
                    raise StopIteration from error
                raise from_rpc_error(error) from error
            self._waiting.extend(self._assembly.add(message))
        return self._waiting.popleft()

    @property
    def result(self) -> Generation:
        """What has arrived so far, as `generate` would return it. RuntimeError before anything."""
        return self._assembly.generation

    def close(self) -> None:
        """Cancels the call where it is not at its end; the server frees its memory."""
        self._closed = True
        self._waiting.clear()
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Client:
    """Talks to one Graftwork server; safe to share between threads, closed by `close` or `with`.

        with Client("localhost:50051") as client:
            print(client.generate("Once upon a time", adapter="poet", max_tokens=64).text)

    `tls` turns TLS on with the system's authorities; `ca` names others (a PEM file's path, or its
    bytes); `client_cert` and `client_key` identify the caller in mutual TLS. `timeout` is the
    deadline in seconds of every call that names no other; None is no deadline. `metadata` goes with
    every call. Calls raise the errors of `graftwork.errors`.
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
        self._calls = Calls(connection)
        self._stub = GenerationServiceStub(self._calls.channel)  # type: ignore[no-untyped-call]
        self.adapters = Adapters(self._calls)
        self.feedback = FeedbackJournal(self._calls)
        self.training = Training(self._calls)

    def generate(
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
        return responses.generation(self._calls.unary(self._stub.Generate, request, timeout))

    def stream(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationStream:
        """Generates and yields the answer as it is sampled; arguments as for `generate`."""
        request = requests.generate_request(prompt, options)
        return GenerationStream(self._calls.start(self._stub.StreamGenerate, request, timeout))

    def score(
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
        return responses.score_result(self._calls.unary(self._stub.Score, request, timeout))

    def tokenize(self, prompt: Prompt, *, timeout: float | None = None) -> Tokenization:
        """The tokens of a text or a conversation, as `generate` would see them."""
        request = requests.tokenize_request(prompt)
        return responses.tokenization(self._calls.unary(self._stub.Tokenize, request, timeout))

    def model(self, *, recompute_digest: bool = False, timeout: float | None = None) -> Model:
        """The base model and the limits of the server; its digest computed anew over the weights
        in memory where `recompute_digest`."""
        request = generation_pb.GetModelRequest(recompute_digest=recompute_digest)
        return responses.model(self._calls.unary(self._stub.GetModel, request, timeout))

    def close(self) -> None:
        """Cancels what is running and closes the connection."""
        self._calls.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
