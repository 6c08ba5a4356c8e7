"""The adapters of a server: `client.adapters`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from graftwork import requests, responses
from graftwork.calls import Calls
from graftwork.folders import AdapterFolder, FolderWriter, Progress
from graftwork.types import Adapter, AdapterVersion
from graftwork.v1 import adapter_service_pb2 as adapter_pb
from graftwork.v1.adapter_service_pb2_grpc import AdapterServiceStub


class Adapters:
    """Registers, versions, moves and removes adapters.

    A `selector` is "name" (its live version) or "name@version". A mutation repeated with the same
    `request_id`, a UUID that is drawn where none is given, returns the first one's answer.
    `timeout` is in seconds and defaults to the client's. Errors are those of `graftwork.errors`.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = AdapterServiceStub(calls.channel)  # type: ignore[no-untyped-call]

    def create(
        self,
        adapter: str,
        source: str | os.PathLike[str],
        *,
        make_live: bool | None = None,
        task_id: int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> AdapterVersion:
        """Registers a version from a path or URI that the server may read.

        `make_live` None makes it live only where the adapter has no live version. `task_id` picks
        one task of a multitask file.
        """
        request = requests.create_version_request(adapter, source, make_live, request_id, task_id)
        answer = self._calls.unary(self._stub.CreateAdapterVersion, request, timeout)
        return responses.adapter_version(answer)

    def upload(
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
        """Registers a version from a PEFT folder of the caller.

        Sends the config, the safetensors file and the model card; `progress` is called from
        another thread with the bytes sent and the bytes in all. With an `ephemeral_owner`, the
        version is served until the owner's next one replaces it, and is never live.
        """
        source = AdapterFolder.scan(folder)
        header = requests.upload_header(adapter, make_live, request_id, task_id, ephemeral_owner)

        def messages() -> Iterator[adapter_pb.UploadAdapterVersionRequest]:
            yield header
            sent = 0
            for chunk in source.chunks():
                yield adapter_pb.UploadAdapterVersionRequest(chunk=chunk)
                sent += len(chunk.data)
                if progress is not None:
                    progress(sent, source.size_bytes)

        answer = self._calls.upload(self._stub.UploadAdapterVersion, messages(), timeout)
        return responses.adapter_version(answer)

    def download(
        self,
        selector: str,
        folder: str | Path,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> AdapterVersion:
        """Writes the PEFT folder of a version to `folder`, which appears whole or not at all.

        Raises FileExistsError where `folder` exists and is not empty, and Internal for a file whose
        name could lead out of it.
        """
        version = self.get_version(selector, timeout=timeout)
        request = adapter_pb.DownloadAdapterVersionRequest(adapter=version.selector)
        call = self._calls.stream(self._stub.DownloadAdapterVersion, request, timeout)
        with FolderWriter(folder) as writer, closing(call):
            for message in call:
                writer.write(message.chunk)
                if progress is not None:
                    progress(writer.received, max(writer.received, version.size_bytes))
        return version

    def get(self, name: str, *, timeout: float | None = None) -> Adapter:
        request = adapter_pb.GetAdapterRequest(name=name)
        return responses.adapter(self._calls.unary(self._stub.GetAdapter, request, timeout))

    def list(self, *, page_size: int = 0, timeout: float | None = None) -> Iterator[Adapter]:
        """All adapters, page by page as the iterator is drawn; `page_size` 0 is the server's."""
        token = ""
        while True:
            request = adapter_pb.ListAdaptersRequest(page_size=page_size, page_token=token)
            page = self._calls.unary(self._stub.ListAdapters, request, timeout)
            yield from map(responses.adapter, page.adapters)
            token = page.next_page_token
            if not token:
                return

    def get_version(self, selector: str, *, timeout: float | None = None) -> AdapterVersion:
        request = adapter_pb.GetAdapterVersionRequest(adapter=selector)
        answer = self._calls.unary(self._stub.GetAdapterVersion, request, timeout)
        return responses.adapter_version(answer)

    def versions(
        self, name: str = "", *, page_size: int = 0, timeout: float | None = None
    ) -> Iterator[AdapterVersion]:
        """The versions of one adapter, or of all, page by page."""
        token = ""
        while True:
            request = adapter_pb.ListAdapterVersionsRequest(
                adapter=name, page_size=page_size, page_token=token
            )
            page = self._calls.unary(self._stub.ListAdapterVersions, request, timeout)
            yield from map(responses.adapter_version, page.adapter_versions)
            token = page.next_page_token
            if not token:
                return

    def delete(
        self, selector: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> None:
        """Deletes "name@version", which must be neither live nor in a traffic split."""
        request = requests.delete_version_request(selector, request_id)
        self._calls.unary(self._stub.DeleteAdapterVersion, request, timeout)

    def update(
        self,
        name: str,
        *,
        live_version: int | None = None,
        traffic_split: Mapping[int, int] | None = None,
        pinned: bool | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Adapter:
        """Changes what is not None, in one transaction.

        `traffic_split` gives percents by version, adding up to 100, and overrides the live version;
        {} ends it. A pinned adapter's live versions stay on the device.
        """
        request = requests.update_request(
            name,
            live_version=live_version,
            traffic_split=traffic_split,
            pinned=pinned,
            request_id=request_id,
        )
        return responses.adapter(self._calls.unary(self._stub.UpdateAdapter, request, timeout))

    def rollback(
        self, name: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Adapter:
        """Makes the version that was live before the present one live again."""
        request = requests.rollback_request(name, request_id)
        return responses.adapter(self._calls.unary(self._stub.RollbackAdapter, request, timeout))

    def load(self, selector: str, *, timeout: float | None = None) -> AdapterVersion:
        """Brings a version onto the device. A request loads what it needs by itself."""
        request = adapter_pb.LoadAdapterRequest(adapter=selector)
        answer = self._calls.unary(self._stub.LoadAdapter, request, timeout)
        return responses.adapter_version(answer)

    def unload(self, selector: str, *, timeout: float | None = None) -> AdapterVersion:
        """Takes a version off the device and out of host memory once no request uses it."""
        request = adapter_pb.UnloadAdapterRequest(adapter=selector)
        answer = self._calls.unary(self._stub.UnloadAdapter, request, timeout)
        return responses.adapter_version(answer)
