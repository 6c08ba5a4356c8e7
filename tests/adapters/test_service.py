"""AdapterService over a real in-process server, on a tiny base."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import field_mask_pb2
from graftwork.status import WireError, details_of, to_grpc_status
from graftwork.v1 import adapter_service_pb2 as pb
from graftwork.v1 import adapter_service_pb2_grpc as pb_grpc
from graftwork_adapters.background import background_executor
from graftwork_adapters.folder import CONFIG_FILE, FILES, WEIGHTS_FILE
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.records import VersionRecord
from graftwork_adapters.registration import Registrar
from graftwork_adapters.registry import Registry
from graftwork_adapters.residency import Residency
from graftwork_adapters.selector import Selector
from graftwork_adapters.service import AdapterServicer
from graftwork_adapters.stamp import stamp_folder
from graftwork_adapters.store import ImmutableStore

from tests.adapters.helpers import DescribedModel, save_lora, tiny_llama


class FakeResidency:
    """Loads at once; remembers what it was told."""

    def __init__(self) -> None:
        self.resident: set[str] = set()
        self.pinned: set[str] = set()

    def residency_of(self, digest: str) -> Residency:
        return Residency.DEVICE if digest in self.resident else Residency.DISK

    async def load(self, version: VersionRecord) -> None:
        self.resident.add(version.digest)

    async def unload(self, version: VersionRecord) -> None:
        self.resident.discard(version.digest)

    def set_pinned(self, digest: str, pinned: bool) -> None:
        (self.pinned.add if pinned else self.pinned.remove)(digest)


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Maps WireErrors as the server's interceptor does."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        for kind in ("unary_unary", "stream_unary"):
            if (method := getattr(handler, kind)) is not None:
                return handler._replace(**{kind: self._unary(method)})
        assert handler.unary_stream is not None
        return handler._replace(unary_stream=self._stream(handler.unary_stream))

    def _unary(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            try:
                return await method(request, context)
            except WireError as error:
                await context.abort_with_status(to_grpc_status(error))

        return call

    def _stream(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for response in method(request, context):
                    yield response
            except WireError as error:
                await context.abort_with_status(to_grpc_status(error))

        return call


class Served:
    """A running service, what it is made of, and a stub to call it with."""

    def __init__(self, folder: Path, limits: AdapterLimits) -> None:
        self.root = folder / "root"
        self.root.mkdir(exist_ok=True)
        self.base = DescribedModel(tiny_llama())
        self.store = ImmutableStore(folder / "store", limits)
        self.executor = background_executor()
        self.registry = Registry(folder / "registry.sqlite", self.store, self.executor)
        self.residency = FakeResidency()
        self.changed: list[str] = []
        registrar = Registrar(self.registry, self.store, self.base, [self.root], limits)
        self.server = grpc.aio.server(interceptors=[StatusInterceptor()])
        servicer = AdapterServicer(registrar, self.residency, self.executor, self.changed.append)
        pb_grpc.add_AdapterServiceServicer_to_server(servicer, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    async def __aenter__(self) -> "Served":
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = pb_grpc.AdapterServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(None)
        self.executor.shutdown()
        self.registry.close()
        self.store.close()

    async def create(self, adapter: str, folder: Path, **fields: Any) -> pb.AdapterVersion:
        request = pb.CreateAdapterVersionRequest(adapter=adapter, source=str(folder), **fields)
        return await self.stub.CreateAdapterVersion(request)

    async def upload(
        self, adapter: str, files: Iterable[tuple[str, bytes]], **fields: Any
    ) -> pb.AdapterVersion:
        header = pb.UploadAdapterVersionRequest.Header(adapter=adapter, **fields)
        chunks = [pb.FileChunk(filename=name, data=data) for name, data in files]
        messages = [pb.UploadAdapterVersionRequest(header=header)]
        messages += [pb.UploadAdapterVersionRequest(chunk=chunk) for chunk in chunks]
        return await self.stub.UploadAdapterVersion(iter(messages))

    async def download(self, adapter: str) -> dict[str, bytes]:
        request = pb.DownloadAdapterVersionRequest(adapter=adapter)
        files: dict[str, bytes] = {}
        async for response in self.stub.DownloadAdapterVersion(request):
            chunk = response.chunk
            files[chunk.filename] = files.get(chunk.filename, b"") + chunk.data
        return files

    async def update(self, paths: list[str], **fields: Any) -> pb.Adapter:
        request = pb.UpdateAdapterRequest(adapter=pb.Adapter(**fields))
        request.update_mask.paths.extend(paths)
        return await self.stub.UpdateAdapter(request)


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with Served(tmp_path, AdapterLimits(max_rank=8)) as served:
        yield served


@pytest.fixture
def folder(served: Served) -> Path:
    return save_lora(served.root / "a", tiny_llama())


def small_chunks(folder: Path) -> list[tuple[str, bytes]]:
    return [
        (name, data[start : start + 1000])
        for name in FILES
        for data in [(folder / name).read_bytes()]
        for start in range(0, len(data), 1000)
    ]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a folder has no event
        await asyncio.sleep(0.01)


async def refused(call: Awaitable[Any]) -> tuple[str, str, str | None]:
    """Code, reason and field of the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = details_of(caught.value)
    return caught.value.code().name, details.reason, details.field


async def test_create_describes_the_version(served: Served, folder: Path) -> None:
    version = await served.create("task-a", folder)
    assert (version.adapter, version.version, version.method) == ("task-a", 1, "LORA")
    assert (version.rank, version.num_virtual_tokens, version.base_verified) == (4, 0, False)
    assert version.base_digest == served.base.digest
    assert version.source == str(folder)
    assert version.residency == pb.RESIDENCY_DISK
    assert version.size_bytes == sum((folder / name).stat().st_size for name in FILES)
    adapter = await served.stub.GetAdapter(pb.GetAdapterRequest(name="task-a"))
    assert adapter.live_version == 1
    fetched = await served.stub.GetAdapterVersion(pb.GetAdapterVersionRequest(adapter="task-a@1"))
    assert fetched == version


async def test_upload_equals_create_and_comes_back(served: Served, folder: Path) -> None:
    created = await served.create("a", f"file://{folder}")
    uploaded = await served.upload("a", small_chunks(folder), make_live=True)
    assert (uploaded.version, uploaded.digest) == (2, created.digest)
    assert uploaded.source == "upload"
    files = await served.download("a@2")
    assert files == {name: (folder / name).read_bytes() for name in FILES}
    assert served.registry.leases() == {}


async def test_an_ephemeral_upload_replaces_its_owners_last(served: Served, folder: Path) -> None:
    other = save_lora(served.root / "other", tiny_llama(), r=2)
    first = await served.upload("a", small_chunks(folder), ephemeral_owner="job")
    assert (first.version, first.ephemeral) == (1, True)
    await served.stub.LoadAdapter(pb.LoadAdapterRequest(adapter="a@1"))
    second = await served.upload("a", small_chunks(other), ephemeral_owner="job")
    assert second.version == 2
    assert served.residency.resident == set()
    adapter = await served.stub.GetAdapter(pb.GetAdapterRequest(name="a"))
    assert adapter.live_version == 0
    gone = served.stub.GetAdapterVersion(pb.GetAdapterVersionRequest(adapter="a@1"))
    assert (await refused(gone))[:2] == ("NOT_FOUND", "UNKNOWN_ADAPTER")
    await served.stub.DeleteAdapterVersion(pb.DeleteAdapterVersionRequest(adapter="a@2"))
    assert not served.store.path(second.digest).exists()


async def test_request_ids_make_mutations_idempotent(served: Served, folder: Path) -> None:
    request_id = str(uuid.uuid4())
    created = [await served.create("a", folder, request_id=request_id) for _ in range(2)]
    assert created[0] == created[1]
    again = served.create("b", folder, request_id=request_id)
    assert await refused(again) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", "request_id")
    upload_id = str(uuid.uuid4())
    uploaded = [
        await served.upload("a", small_chunks(folder), request_id=upload_id) for _ in range(2)
    ]
    assert uploaded[0] == uploaded[1]
    malformed = served.create("b", folder, request_id="42")
    assert await refused(malformed) == ("INVALID_ARGUMENT", "INVALID_FIELD", "request_id")
    assert served.store.digests() == {created[0].digest}


async def test_live_split_rollback_and_delete(served: Served, folder: Path) -> None:
    other = save_lora(served.root / "other", tiny_llama(), r=2)
    await served.create("a", folder)
    await served.create("a", other, make_live=False)
    adapter = await served.update(["live_version"], name="a", live_version=2)
    assert adapter.live_version == 2
    shares = [pb.TrafficShare(version=v, percent=50) for v in (1, 2)]
    adapter = await served.update(["traffic_split"], name="a", traffic_split=shares)
    assert list(adapter.traffic_split) == shares
    delete = pb.DeleteAdapterVersionRequest(adapter="a@2")
    assert (await refused(served.stub.DeleteAdapterVersion(delete)))[1] == "VERSION_IN_USE"
    rolled_back = await served.stub.RollbackAdapter(pb.RollbackAdapterRequest(name="a"))
    assert (rolled_back.live_version, list(rolled_back.traffic_split)) == (1, [])
    await served.stub.LoadAdapter(pb.LoadAdapterRequest(adapter="a@2"))
    await served.stub.DeleteAdapterVersion(delete)
    assert served.residency.resident == set()
    assert len(served.store.digests()) == 1
    missing = served.stub.GetAdapterVersion(pb.GetAdapterVersionRequest(adapter="a@2"))
    assert (await refused(missing))[:2] == ("NOT_FOUND", "UNKNOWN_ADAPTER")


async def test_pins_follow_the_live_version(served: Served, folder: Path) -> None:
    other = save_lora(served.root / "other", tiny_llama(), r=2)
    first = await served.create("a", folder)
    await served.update(["pinned"], name="a", pinned=True)
    assert served.residency.pinned == {first.digest}
    second = await served.create("a", other, make_live=True)
    assert served.residency.pinned == {second.digest}
    await served.update(["pinned"], name="a", pinned=False)
    assert served.residency.pinned == set()


async def test_every_mutation_is_told(served: Served, folder: Path) -> None:
    await served.create("a", folder)
    await served.create("b", folder)
    await served.stub.UpdateAdapter(
        pb.UpdateAdapterRequest(
            adapter=pb.Adapter(name="b", live_version=0),
            update_mask=field_mask_pb2.FieldMask(paths=["live_version"]),
        )
    )
    await served.stub.DeleteAdapterVersion(pb.DeleteAdapterVersionRequest(adapter="b@1"))
    for call in (
        served.stub.RollbackAdapter(pb.RollbackAdapterRequest(name="a")),
        served.stub.DeleteAdapterVersion(pb.DeleteAdapterVersionRequest(adapter="a@1")),
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    assert served.changed == ["a", "b", "b", "b"]


async def test_load_and_unload(served: Served, folder: Path) -> None:
    await served.create("a", folder)
    loaded = await served.stub.LoadAdapter(pb.LoadAdapterRequest(adapter="a"))
    assert loaded.residency == pb.RESIDENCY_DEVICE
    unloaded = await served.stub.UnloadAdapter(pb.UnloadAdapterRequest(adapter="a"))
    assert unloaded.residency == pb.RESIDENCY_DISK
    assert served.registry.leases() == {}


async def test_lists_page(served: Served, folder: Path) -> None:
    for name in ("a", "b", "c"):
        await served.create(name, folder)
    page = await served.stub.ListAdapters(pb.ListAdaptersRequest(page_size=2))
    assert [adapter.name for adapter in page.adapters] == ["a", "b"]
    rest = await served.stub.ListAdapters(
        pb.ListAdaptersRequest(page_size=2, page_token=page.next_page_token)
    )
    assert ([a.name for a in rest.adapters], rest.next_page_token) == (["c"], "")
    versions = await served.stub.ListAdapterVersions(pb.ListAdapterVersionsRequest())
    assert [version.adapter for version in versions.adapter_versions] == ["a", "b", "c"]


async def test_fields_are_validated(served: Served, folder: Path) -> None:
    await served.create("a", folder)
    stub = served.stub
    cases: list[tuple[Awaitable[Any], str]] = [
        (served.create("Upper", folder), "adapter"),
        (served.create("", folder), "adapter"),
        (served.create("b", Path("relative/path")), "source"),
        (served.create("b", Path(f"{folder}/../a")), "source"),
        (served.create("b", "hf://someone/something"), "source"),
        (served.create("b", ""), "source"),
        (stub.GetAdapterVersion(pb.GetAdapterVersionRequest(adapter="")), "adapter"),
        (stub.GetAdapterVersion(pb.GetAdapterVersionRequest(adapter="a@0")), "adapter"),
        (stub.DeleteAdapterVersion(pb.DeleteAdapterVersionRequest(adapter="a")), "adapter"),
        (stub.ListAdapters(pb.ListAdaptersRequest(page_size=-1)), "page_size"),
        (stub.ListAdapters(pb.ListAdaptersRequest(page_size=1001)), "page_size"),
        (stub.ListAdapters(pb.ListAdaptersRequest(page_token="?")), "page_token"),
        (served.update(["digest"], name="a"), "update_mask"),
        (served.update([], name="a", pinned=True), "update_mask"),
        (served.update(["live_version"], name="a", live_version=-1), "adapter.live_version"),
        (stub.UploadAdapterVersion(iter([])), "header"),
        (served.upload("b", [(CONFIG_FILE, bytes(1024**2 + 1))]), "chunk.data"),
        (served.upload("b", [], ephemeral_owner="o" * 129), "header.ephemeral_owner"),
        (served.upload("b", [], ephemeral_owner="o", make_live=True), "header.make_live"),
    ]
    for call, field in cases:
        assert await refused(call) == ("INVALID_ARGUMENT", "INVALID_FIELD", field)


async def test_bad_uploads_leave_nothing(served: Served, folder: Path) -> None:
    config = (folder / CONFIG_FILE).read_bytes()
    weights = (folder / WEIGHTS_FILE).read_bytes()
    cases = [
        [("../adapter_config.json", config)],
        [("adapter_model.bin", b"pickle")],
        [(CONFIG_FILE, config)],
        [(CONFIG_FILE, config), (WEIGHTS_FILE, weights[:-1])],
        [(CONFIG_FILE, config), (WEIGHTS_FILE, weights), (CONFIG_FILE, config)],
        [(CONFIG_FILE, b"[]"), (WEIGHTS_FILE, weights)],
    ]
    for files in cases:
        assert await refused(served.upload("b", files)) == (
            "INVALID_ARGUMENT",
            "INVALID_ARTIFACT",
            None,
        )
    served.executor.submit(int).result()  # what was discarded before is gone now
    assert list(served.store._staging.iterdir()) == []
    assert served.store.digests() == frozenset()
    assert (await served.stub.ListAdapters(pb.ListAdaptersRequest())).adapters == []


async def test_an_upload_that_is_cancelled_leaves_nothing(served: Served, folder: Path) -> None:
    call = served.stub.UploadAdapterVersion()
    header = pb.UploadAdapterVersionRequest.Header(adapter="a")
    await call.write(pb.UploadAdapterVersionRequest(header=header))
    chunk = pb.FileChunk(filename=CONFIG_FILE, data=b"{")
    await call.write(pb.UploadAdapterVersionRequest(chunk=chunk))
    staging = served.store._staging
    await until(lambda: any(staging.glob(f"*/{CONFIG_FILE}")))
    call.cancel()
    await until(lambda: not any(staging.iterdir()))
    assert (await served.stub.ListAdapters(pb.ListAdaptersRequest())).adapters == []


async def test_paths_outside_the_roots(served: Served, folder: Path, tmp_path: Path) -> None:
    outside = save_lora(tmp_path / "outside", tiny_llama())
    (served.root / "link").symlink_to(outside)
    (served.root / "half").mkdir()
    (served.root / "half" / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())
    (served.root / "half" / WEIGHTS_FILE).symlink_to(outside / WEIGHTS_FILE)
    for path in (outside, served.root / "link", served.root / "half", tmp_path / "nowhere"):
        assert (await refused(served.create("b", path)))[:2] == (
            "PERMISSION_DENIED",
            "PATH_NOT_ALLOWED",
        )
    missing = served.create("b", served.root / "nowhere")
    assert (await refused(missing))[:2] == ("NOT_FOUND", "SOURCE_NOT_FOUND")


async def test_links_within_the_roots_are_followed(served: Served, folder: Path) -> None:
    """The cache of the Hugging Face hub is made of them."""
    snapshot = served.root / "snapshot"
    snapshot.mkdir()
    for name in FILES:
        (snapshot / name).symlink_to(folder / name)
    assert (await served.create("a", snapshot)).version == 1


async def test_rank_over_the_cap(served: Served) -> None:
    folder = save_lora(served.root / "big", tiny_llama(), r=9)
    call = served.create("a", folder)
    assert (await refused(call))[:2] == ("FAILED_PRECONDITION", "RANK_OVER_CAP")


async def test_the_training_stamp(served: Served, folder: Path, tmp_path: Path) -> None:
    stamp_folder(folder, served.base.digest)
    assert (await served.create("a", folder)).base_verified
    stamp_folder(folder, "sha256:" + "c" * 64)
    call = served.create("a", folder)
    assert (await refused(call))[:2] == ("FAILED_PRECONDITION", "WRONG_BASE")


async def test_a_server_may_require_the_stamp(tmp_path: Path) -> None:
    async with Served(tmp_path, AdapterLimits(require_verified_base=True)) as served:
        folder = save_lora(served.root / "a", tiny_llama())
        call = served.create("a", folder)
        assert (await refused(call))[:2] == ("FAILED_PRECONDITION", "UNVERIFIED_BASE")
        stamp_folder(folder, served.base.digest)
        assert (await served.create("a", folder)).base_verified


async def test_a_config_field_that_is_not_supported(served: Served, folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "use_qalora": True}))
    with pytest.raises(grpc.aio.AioRpcError, match="use_qalora = true is not supported") as caught:
        await served.create("a", folder)
    assert details_of(caught.value).reason == "UNSUPPORTED_FIELD"


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    limits = AdapterLimits()
    async with Served(tmp_path, limits) as served:
        version = await served.create("a", save_lora(served.root / "a", tiny_llama()))
        await served.update(["pinned"], name="a", pinned=True)
    async with Served(tmp_path, limits) as served:
        assert served.registry.lookup(Selector("a")).digest == version.digest
        assert served.residency.pinned == {version.digest}
