"""The adapters of a server, for the async client: `client.adapters`."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path

from graftwork import requests, responses
from graftwork.adapters import Adapters
from graftwork.aio_calls import AsyncCalls
from graftwork.calls import Calls
from graftwork.folders import FolderWriter, Progress
from graftwork.types import Adapter, AdapterVersion
from graftwork.v1 import adapter_service_pb2 as adapter_pb
from graftwork.v1.adapter_service_pb2_grpc import AdapterServiceStub


class AsyncAdapters:
    """Registers, versions, moves and removes adapters; meanings as in `graftwork.adapters`."""

    def __init__(self, calls: AsyncCalls) -> None:
        self._calls = calls
        self._stub = AdapterServiceStub(calls.channel)  # type: ignore[no-untyped-call]

    async def create(
        self,
        adapter: str,
        source: str | os.PathLike[str],
        *,
        make_live: bool | None = None,
        task_id: int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> AdapterVersion:
        """Registers a version from a path or URI that the server may read."""
        request = requests.create_version_request(adapter, source, make_live, request_id, task_id)
        answer = await self._calls.unary(self._stub.CreateAdapterVersion, request, timeout)
        return responses.adapter_version(answer)

    async def upload(
        self,
        adapter: str,
        folder: str | Path,
        *,
        make_live: bool | None = None,
        task_id: int | None = None,
        ephemeral_owner: str = "",
        progress: Progress | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> AdapterVersion:
        """Registers a version from a PEFT folder; `progress` is called from another thread."""
        # By a thread and a channel of its own: grpc.aio loses the status of a call that the server
        # refuses while it writes.
        calls = Calls(self._calls.connection)
        try:
            return await asyncio.to_thread(
                Adapters(calls).upload,
                adapter,
                folder,
                make_live=make_live,
                task_id=task_id,
                ephemeral_owner=ephemeral_owner,
                progress=progress,
                request_id=request_id,
                timeout=timeout,
            )
        finally:
            calls.channel.close()  # where this task is cancelled, it ends the thread's call

    async def download(
        self,
        selector: str,
        folder: str | Path,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> AdapterVersion:
        """Writes the PEFT folder of a version to `folder`, which appears whole or not at all."""
        version = await self.get_version(selector, timeout=timeout)
        request = adapter_pb.DownloadAdapterVersionRequest(adapter=version.selector)
        call = self._calls.stream(self._stub.DownloadAdapterVersion, request, timeout)
        with FolderWriter(folder) as writer:
            async with aclosing(call):
                async for message in call:
                    await asyncio.to_thread(writer.write, message.chunk)
                    if progress is not None:
                        progress(writer.received, max(writer.received, version.size_bytes))
        return version

    async def get(self, name: str, *, timeout: float | None = None) -> Adapter:
        request = adapter_pb.GetAdapterRequest(name=name)
        return responses.adapter(await self._calls.unary(self._stub.GetAdapter, request, timeout))

    async def list(
        self, *, page_size: int = 0, timeout: float | None = None
    ) -> AsyncIterator[Adapter]:
        """All adapters, page by page as the iterator is drawn."""
        token = ""
        while True:
            request = adapter_pb.ListAdaptersRequest(page_size=page_size, page_token=token)
            page = await self._calls.unary(self._stub.ListAdapters, request, timeout)
            for adapter in page.adapters:
                yield responses.adapter(adapter)
            token = page.next_page_token
            if not token:
                return

    async def get_version(self, selector: str, *, timeout: float | None = None) -> AdapterVersion:
        request = adapter_pb.GetAdapterVersionRequest(adapter=selector)
        answer = await self._calls.unary(self._stub.GetAdapterVersion, request, timeout)
        return responses.adapter_version(answer)

    async def versions(
        self, name: str = "", *, page_size: int = 0, timeout: float | None = None
    ) -> AsyncIterator[AdapterVersion]:
        """The versions of one adapter, or of all, page by page."""
        token = ""
        while True:
            request = adapter_pb.ListAdapterVersionsRequest(
                adapter=name, page_size=page_size, page_token=token
            )
            page = await self._calls.unary(self._stub.ListAdapterVersions, request, timeout)
            for version in page.adapter_versions:
                yield responses.adapter_version(version)
            token = page.next_page_token
            if not token:
                return

    async def delete(
        self, selector: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> None:
        """Deletes "name@version", which must be neither live nor in a traffic split."""
        request = requests.delete_version_request(selector, request_id)
        await self._calls.unary(self._stub.DeleteAdapterVersion, request, timeout)

    async def update(
        self,
        name: str,
        *,
        live_version: int | None = None,
        traffic_split: Mapping[int, int] | None = None,
        pinned: bool | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Adapter:
        """Changes what is not None, in one transaction; {} ends a traffic split."""
        request = requests.update_request(
            name,
            live_version=live_version,
            traffic_split=traffic_split,
            pinned=pinned,
            request_id=request_id,
        )
        answer = await self._calls.unary(self._stub.UpdateAdapter, request, timeout)
        return responses.adapter(answer)

    async def rollback(
        self, name: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Adapter:
        """Makes the version that was live before the present one live again."""
        request = requests.rollback_request(name, request_id)
        answer = await self._calls.unary(self._stub.RollbackAdapter, request, timeout)
        return responses.adapter(answer)

    async def load(self, selector: str, *, timeout: float | None = None) -> AdapterVersion:
        """Brings a version onto the device. A request loads what it needs by itself."""
        request = adapter_pb.LoadAdapterRequest(adapter=selector)
        answer = await self._calls.unary(self._stub.LoadAdapter, request, timeout)
        return responses.adapter_version(answer)

    async def unload(self, selector: str, *, timeout: float | None = None) -> AdapterVersion:
        """Takes a version off the device and out of host memory once no request uses it."""
        request = adapter_pb.UnloadAdapterRequest(adapter=selector)
        answer = await self._calls.unary(self._stub.UnloadAdapter, request, timeout)
        return responses.adapter_version(answer)
