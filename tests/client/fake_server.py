"""A real gRPC server on a free port with canned answers, which records what it is asked.

Its answers are those of `fake_generation_service`; adapters are held in memory.
"""

import threading
from concurrent import futures

import grpc
from google.protobuf import timestamp_pb2
from graftwork.status import WireError, to_grpc_status
from graftwork.v1 import adapter_service_pb2 as adapter_pb
from graftwork.v1 import (
    adapter_service_pb2_grpc,
    generation_service_pb2_grpc,
    training_service_pb2_grpc,
)
from graftwork.v1 import generation_service_pb2 as generation_pb

from tests.client.fake_adapter_service import AdapterService
from tests.client.fake_generation_service import GenerationService
from tests.client.fake_training_service import TrainingService

BASE_DIGEST = "sha256:" + "b" * 64


class UnknownAdapterError(WireError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_ADAPTER"


class FakeServer:
    """`failures` maps a method's name to the errors that its next calls raise, in order."""

    create_time = timestamp_pb2.Timestamp(seconds=1_700_000_000)
    base_digest = BASE_DIGEST

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.requests: list = []
        self.metadata: list[dict] = []
        self.failures: dict[str, list[WireError]] = {}
        self.endless = False  # streams go on until they are cancelled
        self.token_delay_s = 0.0
        self.stream_cancelled = threading.Event()
        self.tenth_token = threading.Event()
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
        self.training = TrainingService(self)
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(self.training, self._server)
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
            self.fail(context, pending.pop(0))

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
            create_time=self.create_time,
            source="upload",
        )
        self.versions[name, number] = version
        self.files[name, number] = [
            adapter_pb.FileChunk(filename=filename, data=data[start : start + 1000])
            for filename, data in files.items()
            for start in range(0, max(len(data), 1), 1000)
        ]
        adapter = self.adapters.setdefault(
            name,
            adapter_pb.Adapter(
                name=name, create_time=self.create_time, update_time=self.create_time
            ),
        )
        if make_live or (make_live is None and not adapter.live_version):
            self.move_live(adapter, number)
        return version

    def move_live(self, adapter: adapter_pb.Adapter, number: int) -> None:
        self.previous.setdefault(adapter.name, []).append(adapter.live_version)
        adapter.live_version = number

    def fail(self, context, error: WireError) -> None:
        context.abort_with_status(to_grpc_status(error))

    def resolve(self, selector: str, context) -> adapter_pb.AdapterVersion:
        name, _, number = selector.partition("@")
        adapter = self.adapters.get(name)
        if adapter is None:
            self.fail(context, UnknownAdapterError(f"adapter {name!r} is not known"))
        key = (name, int(number) if number else adapter.live_version)
        if key not in self.versions:
            self.fail(context, UnknownAdapterError(f"version {key[1]} of {name!r} is not known"))
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
