"""What a data set is made of, over the public API."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import grpc
from graftwork.errors import from_rpc_error
from graftwork.v1.feedback_service_pb2 import ExportDatasetRequest
from graftwork.v1.feedback_service_pb2_grpc import FeedbackServiceStub

from graftwork_trainer.datasets.settings import DatasetSettings


def exported(target: str, settings: DatasetSettings) -> Iterator[dict[str, Any]]:
    """The examples that the selection takes now, as JSON objects. Raises `graftwork.errors`."""
    request = ExportDatasetRequest(selection=settings.selection, scrub=settings.scrub)
    with closing(grpc.insecure_channel(target)) as channel:
        stub = FeedbackServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            for message in stub.ExportDataset(request):
                yield from map(json.loads, message.jsonl.splitlines())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
