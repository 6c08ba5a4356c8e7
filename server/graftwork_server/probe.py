"""`python -m graftwork_server.probe`: exit status 0 while a server on this machine is healthy.

For a container's health check. Without TLS it asks `grpc.health.v1`. With TLS it completes a
handshake and no more, since the server's certificate need not name this machine, nor need its
client authorities know this process; an orchestrator's own gRPC probe can do better.
"""

import socket
import ssl
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from graftwork_server.config import load_settings
from graftwork_server.errors import StartupError
from graftwork_server.settings import GrpcSettings

_TIMEOUT_S = 5.0
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104  # not bound to


def is_healthy(settings: GrpcSettings) -> bool:
    """Whether a server with these settings answers on this machine and serves."""
    host = _UNSPECIFIED.get(settings.host, settings.host)
    if settings.tls_cert is not None:
        return _shakes_hands(host, settings.port)
    address = f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}"
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _shakes_hands(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), _TIMEOUT_S) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except OSError:
        return False


def main() -> int:
    """Probes the server that the environment's settings describe."""
    try:
        settings = load_settings()
    except StartupError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0 if is_healthy(settings.grpc) else 1


if __name__ == "__main__":
    sys.exit(main())
