"""AdapterService: validates, hands what is slow to the background thread, answers.

Raises WireErrors; the server's interceptor turns them into statuses.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf import empty_pb2
from graftwork.status import InvalidFieldError
from graftwork.v1 import adapter_service_pb2 as pb
from graftwork.v1 import adapter_service_pb2_grpc as pb_grpc

from graftwork_adapters.messages import (
    adapter_change,
    adapter_message,
    check_request_id,
    mutation_request,
    named_selector,
    version_message,
)
from graftwork_adapters.paging import check_page_size
from graftwork_adapters.paths import open_regular
from graftwork_adapters.records import VersionRecord
from graftwork_adapters.registration import Registrar
from graftwork_adapters.residency import AdapterResidency
from graftwork_adapters.selector import Selector, parse_name
from graftwork_adapters.store import Staging

MAX_CHUNK_BYTES = 1024**2
MAX_OWNER_CHARS = 128

Result = TypeVar("Result")
Context = grpc.aio.ServicerContext[Any, Any]


class AdapterServicer(pb_grpc.AdapterServiceServicer):
    """`executor` is background_executor() or the like; everything else stays on the event loop."""

    def __init__(
        self,
        registrar: Registrar,
        residency: AdapterResidency,
        executor: Executor,
        on_change: Callable[[str], None],
    ) -> None:
        """`on_change` gets the name of an adapter after each mutation of it, on the event loop."""
        self._registrar = registrar
        self._registry = registrar.registry
        self._store = registrar.store
        self._residency = residency
        self._executor = executor
        self._on_change = on_change
        self._pinned: frozenset[str] = frozenset()
        self._apply_pins()

    async def CreateAdapterVersion(
        self,
        request: pb.CreateAdapterVersionRequest,
        context: Context,
    ) -> pb.AdapterVersion:
        name = parse_name(request.adapter, field="adapter")
        version = await self._mutate(
            name,
            self._registrar.register_source,
            name,
            request.source,
            make_live=request.make_live if request.HasField("make_live") else None,
            request=mutation_request(request.request_id, request),
            task_id=_task_id(request, "task_id"),
        )
        return self._version_message(version)

    async def UploadAdapterVersion(
        self,
        request_iterator: AsyncIterator[pb.UploadAdapterVersionRequest],
        context: Context,
    ) -> pb.AdapterVersion:
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidFieldError("header", "must come in the first message of the stream")
        header = first.header
        name = parse_name(header.adapter, field="header.adapter")
        request_id = check_request_id(header.request_id)
        task_id = _task_id(header, "header.task_id")
        owner = _ephemeral_owner(header)
        # Inline: a mkdir, and a cancelled await would leave its folder behind.
        staging = self._store.stage(ephemeral=owner != "")
        try:
            await self._receive(request_iterator, staging)
            if owner:
                version = await self._replace_ephemeral(name, staging, owner, task_id)
            else:
                version = await self._mutate(
                    name,
                    self._registrar.register_upload,
                    name,
                    staging,
                    make_live=header.make_live if header.HasField("make_live") else None,
                    request_id=request_id,
                    task_id=task_id,
                )
        finally:
            # Not awaited: a caller that hung up has cancelled this coroutine. The one background
            # thread runs it after any registration that still uses the folder.
            self._executor.submit(staging.discard)
        return self._version_message(version)

    async def DownloadAdapterVersion(
        self,
        request: pb.DownloadAdapterVersionRequest,
        context: Context,
    ) -> AsyncIterator[pb.DownloadAdapterVersionResponse]:
        version = self._registry.lookup(named_selector(request.adapter))
        with self._registry.resolve(Selector(version.adapter, version.version)):
            folder = self._store.path(version.digest)
            for filename in await self._run(self._store.files, version.digest):
                file = await self._run(open_regular, folder / filename)
                with file:
                    while data := await self._run(file.read, MAX_CHUNK_BYTES):
                        chunk = pb.FileChunk(filename=filename, data=data)
                        yield pb.DownloadAdapterVersionResponse(chunk=chunk)

    async def GetAdapter(
        self,
        request: pb.GetAdapterRequest,
        context: Context,
    ) -> pb.Adapter:
        name = parse_name(request.name, field="name")
        return adapter_message(self._registry.get_adapter(name))

    async def ListAdapters(
        self,
        request: pb.ListAdaptersRequest,
        context: Context,
    ) -> pb.ListAdaptersResponse:
        page = self._registry.list_adapters(
            page_size=check_page_size(request.page_size), page_token=request.page_token
        )
        return pb.ListAdaptersResponse(
            adapters=[adapter_message(record) for record in page.items],
            next_page_token=page.next_page_token,
        )

    async def GetAdapterVersion(
        self,
        request: pb.GetAdapterVersionRequest,
        context: Context,
    ) -> pb.AdapterVersion:
        return self._version_message(self._registry.lookup(named_selector(request.adapter)))

    async def ListAdapterVersions(
        self,
        request: pb.ListAdapterVersionsRequest,
        context: Context,
    ) -> pb.ListAdapterVersionsResponse:
        if request.adapter:
            parse_name(request.adapter, field="adapter")
        page = self._registry.list_versions(
            request.adapter,
            page_size=check_page_size(request.page_size),
            page_token=request.page_token,
        )
        return pb.ListAdapterVersionsResponse(
            adapter_versions=[self._version_message(record) for record in page.items],
            next_page_token=page.next_page_token,
        )

    async def DeleteAdapterVersion(
        self,
        request: pb.DeleteAdapterVersionRequest,
        context: Context,
    ) -> empty_pb2.Empty:
        selector = named_selector(request.adapter)
        if selector.version is None:
            raise InvalidFieldError("adapter", f'must name a version, as "{selector.name}@1"')
        version = await self._mutate(
            selector.name,
            self._registry.delete_version,
            selector,
            request=mutation_request(request.request_id, request),
        )
        await self._unload_unregistered(version)
        return empty_pb2.Empty()

    async def UpdateAdapter(
        self,
        request: pb.UpdateAdapterRequest,
        context: Context,
    ) -> pb.Adapter:
        name = parse_name(request.adapter.name, field="adapter.name")
        record = await self._mutate(
            name,
            self._registry.update,
            name,
            adapter_change(request),
            request=mutation_request(request.request_id, request),
        )
        return adapter_message(record)

    async def RollbackAdapter(
        self,
        request: pb.RollbackAdapterRequest,
        context: Context,
    ) -> pb.Adapter:
        name = parse_name(request.name, field="name")
        record = await self._mutate(
            name,
            self._registry.rollback,
            name,
            request=mutation_request(request.request_id, request),
        )
        return adapter_message(record)

    async def LoadAdapter(
        self,
        request: pb.LoadAdapterRequest,
        context: Context,
    ) -> pb.AdapterVersion:
        version = self._registry.lookup(named_selector(request.adapter))
        with self._registry.resolve(Selector(version.adapter, version.version)):
            await self._residency.load(version)
        return self._version_message(version)

    async def UnloadAdapter(
        self,
        request: pb.UnloadAdapterRequest,
        context: Context,
    ) -> pb.AdapterVersion:
        version = self._registry.lookup(named_selector(request.adapter))
        await self._residency.unload(version)
        return self._version_message(version)

    async def _replace_ephemeral(
        self, name: str, staging: Staging, owner: str, task_id: int | None
    ) -> VersionRecord:
        earlier = self._registry.ephemeral_versions(name, owner)
        version = await self._mutate(
            name, self._registrar.register_ephemeral, name, staging, owner, task_id=task_id
        )
        for replaced in earlier:
            await self._unload_unregistered(replaced)
        return version

    async def _unload_unregistered(self, version: VersionRecord) -> None:
        if not self._registry.is_registered(version.digest):
            await self._residency.unload(version)

    async def _receive(
        self, messages: AsyncIterator[pb.UploadAdapterVersionRequest], staging: Staging
    ) -> None:
        async for message in messages:
            if message.WhichOneof("part") != "chunk":
                raise InvalidFieldError("chunk", "must be what follows the header")
            chunk = message.chunk
            if len(chunk.data) > MAX_CHUNK_BYTES:
                raise InvalidFieldError(
                    "chunk.data", f"must be at most {MAX_CHUNK_BYTES} bytes; got {len(chunk.data)}"
                )
            await self._run(staging.write, chunk.filename, chunk.data)

    def _version_message(self, version: VersionRecord) -> pb.AdapterVersion:
        return version_message(version, self._residency.residency_of(version.digest))

    async def _run(self, function: Callable[..., Result], *args: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def _mutate(
        self, name: str, function: Callable[..., Result], *args: Any, **kwargs: Any
    ) -> Result:
        """Runs a mutation of an adapter to its end, though its caller may have hung up, and moves
        the pins."""
        call = partial(function, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(self._executor, call)

        def finish(done: asyncio.Future[Result]) -> None:
            self._apply_pins()
            if not done.cancelled() and done.exception() is None:
                self._on_change(name)

        future.add_done_callback(finish)
        return await asyncio.shield(future)

    def _apply_pins(self) -> None:
        pinned = self._registry.pinned_digests()
        for digest in self._pinned - pinned:
            self._residency.set_pinned(digest, False)
        for digest in pinned - self._pinned:
            self._residency.set_pinned(digest, True)
        self._pinned = pinned


def _ephemeral_owner(header: pb.UploadAdapterVersionRequest.Header) -> str:
    owner = header.ephemeral_owner
    if len(owner) > MAX_OWNER_CHARS:
        raise InvalidFieldError(
            "header.ephemeral_owner", f"must have at most {MAX_OWNER_CHARS} characters"
        )
    if owner and header.make_live:
        raise InvalidFieldError("header.make_live", "an ephemeral version can never be live")
    return owner


def _task_id(
    message: pb.CreateAdapterVersionRequest | pb.UploadAdapterVersionRequest.Header, field: str
) -> int | None:
    if not message.HasField("task_id"):
        return None
    if message.task_id < 0:
        raise InvalidFieldError(field, "must not be negative")
    return message.task_id
