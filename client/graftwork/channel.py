"""How a client reaches its server: addresses, TLS, message sizes and retries."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from graftwork.errors import InvalidArgument

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 600.0

# Log-probabilities of a whole context with 20 alternatives take about 10 MB.
_MAX_MESSAGE_BYTES = 64 << 20

# Reads may be repeated. Mutations are not repeated here: their request_id lets the caller do so.
_IDEMPOTENT_READS = {
    "graftwork.v1.GenerationService": ("Score", "Tokenize", "GetModel"),
    "graftwork.v1.AdapterService": (
        "GetAdapter",
        "ListAdapters",
        "GetAdapterVersion",
        "ListAdapterVersions",
        "DownloadAdapterVersion",
    ),
    "graftwork.v1.TrainingService": (
        "GetTrainingJob",
        "ListTrainingJobs",
        "WatchTrainingJob",
        "GetTrainingReport",
        "GetTrainingPolicy",
        "ListTrainingPolicies",
    ),
}
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}

Pem = str | Path | bytes  # the path of a PEM file, or its bytes


@dataclass(frozen=True, slots=True)
class Connection:
    """Where and how to connect, and what every call carries."""

    target: str
    credentials: grpc.ChannelCredentials | None  # None: no TLS
    timeout_s: float | None
    metadata: tuple[tuple[str, str], ...]

    @classmethod
    def of(
        cls,
        target: str,
        *,
        tls: bool,
        ca: Pem | None,
        client_cert: Pem | None,
        client_key: Pem | None,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> "Connection":
        """Raises InvalidArgument for half a key pair, OSError for a file that cannot be read."""
        if (client_cert is None) != (client_key is None):
            raise InvalidArgument("client_cert and client_key go together", field="client_cert")
        credentials = None
        if tls or ca is not None or client_cert is not None:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=_read(ca),
                private_key=_read(client_key),
                certificate_chain=_read(client_cert),
            )
        pairs = tuple((key.lower(), value) for key, value in (metadata or {}).items())
        return cls(target, credentials, timeout, pairs)

    @property
    def options(self) -> list[tuple[str, str | int]]:
        """Options of the gRPC channel."""
        names = [
            {"service": service, "method": method}
            for service, methods in _IDEMPOTENT_READS.items()
            for method in methods
        ]
        config = {"methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}]}
        return [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.enable_retries", 1),
            ("grpc.service_config", json.dumps(config)),
        ]


def _read(pem: Pem | None) -> bytes | None:
    if pem is None or isinstance(pem, bytes):
        return pem
    return Path(pem).read_bytes()
