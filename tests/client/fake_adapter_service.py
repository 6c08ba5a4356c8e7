"""The fake server's adapters: names and versions without any weights."""

from google.protobuf import empty_pb2
from graftwork.status import InvalidFieldError
from graftwork.v1 import adapter_service_pb2 as adapter_pb
from graftwork.v1 import adapter_service_pb2_grpc


class AdapterService(adapter_service_pb2_grpc.AdapterServiceServicer):
    def __init__(self, server) -> None:
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
        # A call cancelled in the middle may look like one that ended here.
        if "adapter_model.safetensors" not in files and files.keys() != {"graftwork_prompt.json"}:
            self.server.fail(context, InvalidFieldError("chunk", "no adapter_model.safetensors"))
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
            self.server.resolve(request.name, context)
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
