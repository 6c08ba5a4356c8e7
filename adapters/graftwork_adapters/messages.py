"""Between the wire's messages and the registry's records."""

import uuid
from collections.abc import Iterable

from google.protobuf import timestamp_pb2
from google.protobuf.message import Message
from graftwork.status import InvalidFieldError
from graftwork.v1 import adapter_service_pb2 as pb

from graftwork_adapters.mutation import MutationRequest
from graftwork_adapters.records import AdapterChange, AdapterRecord, TrafficShare, VersionRecord
from graftwork_adapters.residency import Residency
from graftwork_adapters.selector import Selector, parse_selector

_RESIDENCY = {
    Residency.DISK: pb.RESIDENCY_DISK,
    Residency.HOST: pb.RESIDENCY_HOST,
    Residency.DEVICE: pb.RESIDENCY_DEVICE,
}
_UPDATABLE = ("live_version", "traffic_split", "pinned")


def adapter_message(record: AdapterRecord) -> pb.Adapter:
    return pb.Adapter(
        name=record.name,
        live_version=record.live_version,
        traffic_split=[
            pb.TrafficShare(version=share.version, percent=share.percent)
            for share in record.traffic_split
        ],
        pinned=record.pinned,
        create_time=_timestamp(record.create_time_ns),
        update_time=_timestamp(record.update_time_ns),
    )


def version_message(record: VersionRecord, residency: Residency) -> pb.AdapterVersion:
    return pb.AdapterVersion(
        adapter=record.adapter,
        version=record.version,
        digest=record.digest,
        method=record.method,
        rank=record.rank,
        num_virtual_tokens=record.num_virtual_tokens,
        num_parameters=record.num_parameters,
        size_bytes=record.size_bytes,
        base_digest=record.base_digest,
        base_verified=record.base_verified,
        residency=_RESIDENCY[residency],
        create_time=_timestamp(record.create_time_ns),
        source=record.source,
        labels=record.labels,
        ephemeral=record.is_ephemeral,
    )


def named_selector(text: str, *, field: str = "adapter") -> Selector:
    """A selector that may not be the base's; raises InvalidFieldError."""
    selector = parse_selector(text, field=field)
    if selector.is_base:
        raise InvalidFieldError(field, "must name an adapter")
    return selector


def adapter_change(request: pb.UpdateAdapterRequest) -> AdapterChange:
    """What an UpdateAdapterRequest asks for; raises InvalidFieldError."""
    paths = list(request.update_mask.paths)
    if not paths:
        raise InvalidFieldError("update_mask", f"must name any of {_listed(_UPDATABLE)}")
    for path in paths:
        if path not in _UPDATABLE:
            raise InvalidFieldError(
                "update_mask", f"{path[:80]!r} cannot be updated; {_listed(_UPDATABLE)} can"
            )
    adapter = request.adapter
    if adapter.live_version < 0:
        raise InvalidFieldError("adapter.live_version", "must be a version, or 0 for none")
    shares = tuple(TrafficShare(share.version, share.percent) for share in adapter.traffic_split)
    return AdapterChange(
        live_version=adapter.live_version if "live_version" in paths else None,
        traffic_split=shares if "traffic_split" in paths else None,
        pinned=adapter.pinned if "pinned" in paths else None,
    )


def check_request_id(request_id: str) -> str:
    """A UUID, or "" where the caller gives none; raises InvalidFieldError."""
    if request_id:
        try:
            uuid.UUID(request_id)
        except ValueError:
            raise InvalidFieldError("request_id", "must be a UUID") from None
    return request_id


def mutation_request(request_id: str, request: Message) -> MutationRequest | None:
    """What makes a repetition of `request` known; raises InvalidFieldError."""
    check_request_id(request_id)
    kind = request.DESCRIPTOR.name.encode()
    return MutationRequest.of(request_id, kind, request.SerializeToString(deterministic=True))


def _timestamp(time_ns: int) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromNanoseconds(time_ns)
    return stamp


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
