"""The gRPC server itself: its options, its port, health and reflection."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from graftwork_server.errors import StartupError
from graftwork_server.interceptor import StatusInterceptor
from graftwork_server.metrics import Metrics
from graftwork_server.settings import GrpcSettings
from graftwork_server.tls import server_credentials

MAX_PENDING_CALLS = 1_000_000  # that gRPC has read and the event loop has not begun


def new_grpc_server(
    settings: GrpcSettings, metrics: Metrics, is_draining: Callable[[], bool]
) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=[StatusInterceptor(observe_rpc=metrics.observe_rpc, is_draining=is_draining)],
        options=[
            ("grpc.max_receive_message_length", int(settings.max_message_bytes)),
            ("grpc.max_send_message_length", int(settings.max_message_bytes)),
            ("grpc.so_reuseport", 0),
            # gRPC by itself cancels what it finds waiting beyond a thousand calls or so; the
            # dispatcher refuses what is too much, and says when to try again.
            ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
        ],
    )


def add_health(server: grpc.aio.Server, services: Sequence[str]) -> Any:
    """Adds health and reflection of all services; returns the health servicer."""
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection(
        (*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return servicer


def bind(server: grpc.aio.Server, settings: GrpcSettings) -> int:
    """Opens the port, with TLS where it is configured; returns its number."""
    address = f"{settings.host}:{settings.port}"
    credentials = server_credentials(settings)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise StartupError(
            f"cannot serve gRPC on {address}: {error}; choose another address with --host and "
            "--port"
        ) from error
