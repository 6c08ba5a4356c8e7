"""A real gRPC server on a free port with canned answers, which records what it is asked.

`echo` is its model: the answer to a text or a conversation is "<served by>: <last text>", a word a
token. Adapters are held in memory.
"""

import itertools
import json
import threading
import time
from concurrent import futures

import grpc
from google.protobuf import empty_pb2, timestamp_pb2
from graftwork.status import InvalidFieldError, WireError, to_grpc_status
from graftwork.v1 import adapter_service_pb2 as adapter_pb
from graftwork.v1 import adapter_service_pb2_grpc, generation_service_pb2_grpc
from graftwork.v1 import generation_service_pb2 as generation_pb

CREATE_TIME = timestamp_pb2.Timestamp(seconds=1_700_000_000)
BASE_DIGEST = "sha256:" + "b" * 64


class UnknownAdapterError(WireError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_ADAPTER"


class FakeServer:
    """`failures` maps a method's name to the errors that its next calls raise, in order."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.requests: list = []
        self.metadata: list[dict] = []
        self.failures: dict[str, list[WireError]] = {}
        self.endless = False  # streams go on until they are cancelled
        self.token_delay_s = 0.0
        self.stream_cancelled = threading.Event()
        self.adapters: dict[str, adapter_pb.Adapter] = {}
        self.versions: dict[tuple[str, int], adapter_pb.AdapterVersion] = {}
        self.files: dict[tuple[str, int], list[adapter_pb.FileChunk]] = {}
        self.previous: dict[str, list[int]] = {}
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(
            GenerationService(self), self._server
        )
        adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(
            AdapterService(self), self._server
        )
        if credentials is None:
            self.port = self._server.add_insecure_port("localhost:0")
        else:
            self.port = self._server.add_secure_port("localhost:0", credentials)
        self._server.start()

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def stop(self) -> None:
        self._server.stop(grace=None).wait()

    def enter(self, method: str, request, context) -> None:
        """Records a call, and fails it where a test said so."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        pending = self.failures.get(method)
        if pending:
            fail(context, pending.pop(0))

    def requests_of(self, kind: type) -> list:
        return [request for request in self.requests if isinstance(request, kind)]

    def add_version(
        self, name: str, files: dict[str, bytes], make_live: bool | None = None
    ) -> adapter_pb.AdapterVersion:
        number = 1 + sum(1 for adapter, _ in self.versions if adapter == name)
        version = adapter_pb.AdapterVersion(
            adapter=name,
            version=number,
            digest="sha256:" + f"{number:064x}",
            method="LORA",
            rank=8,
            num_parameters=1_234_567,
            size_bytes=sum(len(data) for data in files.values()),
            base_digest=BASE_DIGEST,
            base_verified=True,
            residency=adapter_pb.RESIDENCY_DISK,
            create_time=CREATE_TIME,
            source="upload",
        )
        self.versions[name, number] = version
        self.files[name, number] = [
            adapter_pb.FileChunk(filename=filename, data=data[start : start + 1000])
            for filename, data in files.items()
            for start in range(0, max(len(data), 1), 1000)
        ]
        adapter = self.adapters.setdefault(
            name, adapter_pb.Adapter(name=name, create_time=CREATE_TIME, update_time=CREATE_TIME)
        )
        if make_live or (make_live is None and not adapter.live_version):
            self.move_live(adapter, number)
        return version

    def move_live(self, adapter: adapter_pb.Adapter, number: int) -> None:
        self.previous.setdefault(adapter.name, []).append(adapter.live_version)
        adapter.live_version = number

    def resolve(self, selector: str, context) -> adapter_pb.AdapterVersion:
        name, _, number = selector.partition("@")
        adapter = self.adapters.get(name)
        if adapter is None:
            fail(context, UnknownAdapterError(f"adapter {name!r} is not known"))
        key = (name, int(number) if number else adapter.live_version)
        if key not in self.versions:
            fail(context, UnknownAdapterError(f"version {key[1]} of {name!r} is not known"))
        return self.versions[key]

    def served_by(self, selector: str, context) -> generation_pb.ServedBy:
        if not selector:
            return generation_pb.ServedBy(base_digest=BASE_DIGEST)
        version = self.resolve(selector, context)
        return generation_pb.ServedBy(
            adapter=version.adapter,
            version=version.version,
            digest=version.digest,
            base_digest=BASE_DIGEST,
        )


def fail(context, error: WireError) -> None:
    context.abort_with_status(to_grpc_status(error))


def words(text: str) -> list[str]:
    """Tokens of a text: its words, each with the space before it."""
    return [word if index == 0 else " " + word for index, word in enumerate(text.split(" "))]


def prompt_text(request) -> str:
    kind = request.WhichOneof("input")
    if kind == "conversation":
        messages = request.conversation.messages
        return messages[-1].content if messages else ""
    if kind == "token_ids":
        return " ".join(str(token_id) for token_id in request.token_ids.ids)
    return request.text


class GenerationService(generation_service_pb2_grpc.GenerationServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self.server = server

    def _answer(self, request, context):
        served_by = self.server.served_by(request.adapter, context)
        name = f"{served_by.adapter}@{served_by.version}" if served_by.adapter else "base"
        tokens = words(f"{name}: {prompt_text(request)}")
        limit = request.max_tokens if request.HasField("max_tokens") else len(tokens)
        stopped = limit >= len(tokens)
        reason = generation_pb.FINISH_REASON_STOP if stopped else generation_pb.FINISH_REASON_LENGTH
        return served_by, tokens[:limit], reason

    def Generate(self, request, context):
        self.server.enter("Generate", request, context)
        served_by, tokens, reason = self._answer(request, context)
        choices = [
            generation_pb.Choice(
                index=index,
                generation_id=f"generation-{index}",
                text="".join(tokens),
                token_ids=range(len(tokens)),
                finish_reason=reason,
                logprobs=_logprobs(tokens) if request.HasField("logprobs") else (),
            )
            for index in range(max(request.n, 1))
        ]
        return generation_pb.GenerateResponse(
            group_id="group",
            served_by=served_by,
            choices=choices,
            usage=_usage(request, len(tokens)),
            create_time=CREATE_TIME,
            seed=request.sampling.seed or 7,
        )

    def StreamGenerate(self, request, context):
        self.server.enter("StreamGenerate", request, context)
        served_by, tokens, reason = self._answer(request, context)
        context.add_callback(lambda: self._ended(context))
        tokens = itertools.cycle([*tokens, " "]) if self.server.endless else iter(tokens)
        yield generation_pb.StreamGenerateResponse(
            served_by=served_by, group_id="group", create_time=CREATE_TIME, seed=7
        )
        count = 0
        for count, token in enumerate(tokens, start=1):
            if not context.is_active():
                return
            time.sleep(self.server.token_delay_s)
            yield generation_pb.StreamGenerateResponse(
                served_by=served_by,
                group_id="group",
                deltas=[
                    generation_pb.ChoiceDelta(
                        index=index,
                        generation_id=f"generation-{index}",
                        text=token,
                        token_ids=[count - 1],
                        logprobs=_logprobs([token]) if request.HasField("logprobs") else (),
                    )
                    for index in range(max(request.n, 1))
                ],
            )
        self.server.enter("EndOfStream", request, context)
        yield generation_pb.StreamGenerateResponse(
            served_by=served_by,
            group_id="group",
            deltas=[
                generation_pb.ChoiceDelta(
                    index=index, generation_id=f"generation-{index}", finish_reason=reason
                )
                for index in range(max(request.n, 1))
            ],
            usage=_usage(request, count),
        )

    def _ended(self, context) -> None:
        if self.server.endless:
            self.server.stream_cancelled.set()

    def Score(self, request, context):
        self.server.enter("Score", request, context)
        served_by = self.server.served_by(request.adapter, context)
        scores = []
        for completion in request.completions:
            tokens = words(completion.text) if completion.text else completion.token_ids.ids
            scores.append(
                generation_pb.ScoreResponse.CompletionScore(
                    logprobs=_logprobs([str(token) for token in tokens]),
                    total_logprob=-0.5 * len(tokens),
                )
            )
        return generation_pb.ScoreResponse(
            served_by=served_by, scores=scores, usage=_usage(request, 0)
        )

    def Tokenize(self, request, context):
        self.server.enter("Tokenize", request, context)
        text = prompt_text(request)
        if not text:
            fail(context, InvalidFieldError("text", "is empty"))
        tokens = words(text)
        return generation_pb.TokenizeResponse(
            token_ids=range(len(tokens)), tokens=tokens, text=text
        )

    def GetModel(self, request, context):
        self.server.enter("GetModel", request, context)
        return generation_pb.Model(
            name="echo",
            digest=BASE_DIGEST,
            quantization="none",
            device="cpu",
            architecture="EchoForCausalLM",
            num_parameters=134_515_008,
            weight_bytes=150_000_000,
            limits=generation_pb.Model.Limits(max_context_tokens=8192, max_n=16),
            server_version="0.1.0",
        )


def _logprobs(tokens: list[str]) -> list[generation_pb.TokenLogprob]:
    return [
        generation_pb.TokenLogprob(
            token_id=index,
            token=token,
            logprob=-0.5,
            top=[generation_pb.TokenLogprob.Alternative(token_id=9, token="x", logprob=-1.0)],
        )
        for index, token in enumerate(tokens)
    ]


def _usage(request, completion_tokens: int) -> generation_pb.Usage:
    return generation_pb.Usage(
        prompt_tokens=len(words(prompt_text(request))), completion_tokens=completion_tokens
    )


class AdapterService(adapter_service_pb2_grpc.AdapterServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self.server = server

    def CreateAdapterVersion(self, request, context):
        self.server.enter("CreateAdapterVersion", request, context)
        make_live = request.make_live if request.HasField("make_live") else None
        version = self.server.add_version(
            request.adapter, {"adapter_config.json": b"{}"}, make_live
        )
        version.source = request.source
        return version

    def UploadAdapterVersion(self, request_iterator, context):
        header = next(request_iterator).header
        self.server.enter("UploadAdapterVersion", header, context)
        files: dict[str, bytes] = {}
        for message in request_iterator:
            self.server.requests.append(message)
            chunk = message.chunk
            files[chunk.filename] = files.get(chunk.filename, b"") + chunk.data
        json.loads(files["adapter_config.json"])
        make_live = header.make_live if header.HasField("make_live") else None
        return self.server.add_version(header.adapter, files, make_live)

    def DownloadAdapterVersion(self, request, context):
        self.server.enter("DownloadAdapterVersion", request, context)
        version = self.server.resolve(request.adapter, context)
        for chunk in self.server.files[version.adapter, version.version]:
            yield adapter_pb.DownloadAdapterVersionResponse(chunk=chunk)

    def GetAdapter(self, request, context):
        self.server.enter("GetAdapter", request, context)
        if request.name not in self.server.adapters:
            fail(context, UnknownAdapterError(f"adapter {request.name!r} is not known"))
        return self.server.adapters[request.name]

    def ListAdapters(self, request, context):
        self.server.enter("ListAdapters", request, context)
        page, token = _page(sorted(self.server.adapters), request)
        return adapter_pb.ListAdaptersResponse(
            adapters=[self.server.adapters[name] for name in page], next_page_token=token
        )

    def GetAdapterVersion(self, request, context):
        self.server.enter("GetAdapterVersion", request, context)
        return self.server.resolve(request.adapter, context)

    def ListAdapterVersions(self, request, context):
        self.server.enter("ListAdapterVersions", request, context)
        keys = [key for key in sorted(self.server.versions) if request.adapter in ("", key[0])]
        page, token = _page(keys, request)
        return adapter_pb.ListAdapterVersionsResponse(
            adapter_versions=[self.server.versions[key] for key in page], next_page_token=token
        )

    def DeleteAdapterVersion(self, request, context):
        self.server.enter("DeleteAdapterVersion", request, context)
        version = self.server.resolve(request.adapter, context)
        del self.server.versions[version.adapter, version.version]
        return empty_pb2.Empty()

    def UpdateAdapter(self, request, context):
        self.server.enter("UpdateAdapter", request, context)
        adapter = self.server.adapters[request.adapter.name]
        for path in request.update_mask.paths:
            if path == "live_version":
                self.server.move_live(adapter, request.adapter.live_version)
            elif path == "traffic_split":
                del adapter.traffic_split[:]
                adapter.traffic_split.extend(request.adapter.traffic_split)
            else:
                adapter.pinned = request.adapter.pinned
        return adapter

    def RollbackAdapter(self, request, context):
        self.server.enter("RollbackAdapter", request, context)
        adapter = self.server.adapters[request.name]
        adapter.live_version = self.server.previous[request.name].pop()
        return adapter

    def LoadAdapter(self, request, context):
        self.server.enter("LoadAdapter", request, context)
        version = self.server.resolve(request.adapter, context)
        version.residency = adapter_pb.RESIDENCY_DEVICE
        return version

    def UnloadAdapter(self, request, context):
        self.server.enter("UnloadAdapter", request, context)
        version = self.server.resolve(request.adapter, context)
        version.residency = adapter_pb.RESIDENCY_DISK
        return version


def _page(items: list, request) -> tuple[list, str]:
    """Tokens are offsets."""
    start, size = int(request.page_token or 0), request.page_size or 50
    token = str(start + size) if start + size < len(items) else ""
    return items[start : start + size], token
