"""Server credentials from PEM files."""

import ssl
from pathlib import Path

import grpc

from graftwork_server.errors import StartupError
from graftwork_server.settings import GrpcSettings


class TlsError(StartupError):
    """A certificate or key cannot be used; the message names the file."""


def server_credentials(settings: GrpcSettings) -> grpc.ServerCredentials | None:
    """Credentials for `add_secure_port`; None where TLS is not configured.

    With a client CA, every client must show a certificate that it signed. Raises `TlsError`: gRPC
    itself takes any bytes and then fails each handshake.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    certificate = _read(settings.tls_cert, "grpc.tls_cert")
    key = _read(settings.tls_key, "grpc.tls_key")
    _check_pair(settings.tls_cert, settings.tls_key)
    client_ca = None
    if settings.tls_client_ca is not None:
        client_ca = _read(settings.tls_client_ca, "grpc.tls_client_ca")
        _check_authorities(settings.tls_client_ca)
    return grpc.ssl_server_credentials(
        [(key, certificate)],
        root_certificates=client_ca,
        require_client_auth=client_ca is not None,
    )


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{key}: cannot read {path}: {error.strerror}") from error


def _check_pair(certificate: Path, key: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def refuse_prompt() -> str:
        raise TlsError(f"grpc.tls_key: {key} is encrypted; give the key without a passphrase")

    try:
        context.load_cert_chain(certificate, key, password=refuse_prompt)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise TlsError(
            f"grpc.tls_cert {certificate} and grpc.tls_key {key} are no PEM certificate and its "
            f"private key: {reason}"
        ) from error


def _check_authorities(path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise TlsError(f"grpc.tls_client_ca: {path} holds no PEM certificate") from error
