"""Idempotent mutations: what a caller's request_id stands for, and answers as rows keep them."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from graftwork_adapters.records import AdapterRecord, TrafficShare, VersionRecord


@dataclass(frozen=True, slots=True)
class MutationRequest:
    """A request_id and a fingerprint of all that was asked with it."""

    request_id: str
    fingerprint: str

    @classmethod
    def of(cls, request_id: str, *asked: bytes) -> "MutationRequest | None":
        """None where the caller gave no request_id: then nothing is remembered."""
        if request_id == "":
            return None
        whole = hashlib.sha256()
        for part in asked:
            whole.update(len(part).to_bytes(8, "little"))
            whole.update(part)
        return cls(request_id, whole.hexdigest())


def version_to_answer(version: VersionRecord) -> dict[str, Any]:
    return asdict(version)


def version_from_answer(answer: dict[str, Any]) -> VersionRecord:
    return VersionRecord(**{**answer, "labels": tuple(answer.get("labels", ()))})


def adapter_to_answer(adapter: AdapterRecord) -> dict[str, Any]:
    return asdict(adapter)


def adapter_from_answer(answer: dict[str, Any]) -> AdapterRecord:
    shares = tuple(TrafficShare(**share) for share in answer["traffic_split"])
    return AdapterRecord(**{**answer, "traffic_split": shares})
