"""TLS and mutual TLS on a real server, with certificates made by openssl for the test."""

import subprocess

import grpc
import pytest
from graftwork_server.settings import GrpcSettings
from graftwork_server.tls import TlsError, server_credentials
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from tests.server.certificates import Authority, needs_openssl


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server_pair(authority):
    return authority.issue("server")


async def status(settings, channel_credentials):
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), server)
    port = server.add_secure_port("localhost:0", server_credentials(settings))
    await server.start()
    try:
        async with grpc.aio.secure_channel(f"localhost:{port}", channel_credentials) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status
    finally:
        await server.stop(None)


def test_without_files_there_is_no_tls():
    assert server_credentials(GrpcSettings()) is None


@needs_openssl
async def test_a_client_that_trusts_the_authority_is_served(authority, server_pair):
    cert, key = server_pair
    trusting = grpc.ssl_channel_credentials(authority.cert.read_bytes())
    settings = GrpcSettings(tls_cert=cert, tls_key=key)
    assert await status(settings, trusting) == health_pb2.HealthCheckResponse.SERVING


@needs_openssl
async def test_mutual_tls_refuses_a_client_without_a_certificate(authority, server_pair):
    cert, key = server_pair
    settings = GrpcSettings(tls_cert=cert, tls_key=key, tls_client_ca=authority.cert)
    root = authority.cert.read_bytes()
    client_cert, client_key = authority.issue("client")
    known = grpc.ssl_channel_credentials(root, client_key.read_bytes(), client_cert.read_bytes())
    assert await status(settings, known) == health_pb2.HealthCheckResponse.SERVING

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await status(settings, grpc.ssl_channel_credentials(root))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_missing_file_is_named(tmp_path):
    settings = GrpcSettings(tls_cert=tmp_path / "no.pem", tls_key=tmp_path / "no.key")
    with pytest.raises(TlsError, match=r"grpc.tls_cert: cannot read .*no\.pem"):
        server_credentials(settings)


@needs_openssl
def test_files_that_do_not_belong_together_are_named(authority, server_pair, tmp_path):
    cert, key = server_pair
    _, other_key = authority.issue("other")
    with pytest.raises(TlsError, match=r"server\.pem.*other\.key"):
        server_credentials(GrpcSettings(tls_cert=cert, tls_key=other_key))

    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("not a certificate")
    with pytest.raises(TlsError, match=r"rubbish\.pem"):
        server_credentials(GrpcSettings(tls_cert=rubbish, tls_key=key))
    with pytest.raises(TlsError, match=r"tls_client_ca.*rubbish\.pem"):
        server_credentials(GrpcSettings(tls_cert=cert, tls_key=key, tls_client_ca=rubbish))


@needs_openssl
def test_an_encrypted_key_is_refused_instead_of_prompting(server_pair, tmp_path):
    cert, key = server_pair
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "ec", "-in", key, "-aes128", "-passout", "pass:secret", "-out", encrypted],
        check=True,
        capture_output=True,
    )
    with pytest.raises(TlsError, match="encrypted"):
        server_credentials(GrpcSettings(tls_cert=cert, tls_key=encrypted))
