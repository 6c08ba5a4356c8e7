"""The container's health check against real servers."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from graftwork_server.probe import is_healthy
from graftwork_server.settings import GrpcSettings
from graftwork_server.tls import server_credentials
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.server.certificates import Authority, needs_openssl


@pytest.fixture
def servicer():
    return health.HealthServicer()


@pytest.fixture
def serve(servicer):
    """Starts a server with the given credentials and returns its port."""
    servers = []

    def start(credentials=None):
        server = grpc.server(ThreadPoolExecutor(2))
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        servers.append(server)
        return port

    yield start
    for server in servers:
        server.stop(None).wait()


def test_a_server_is_healthy_until_it_stops_serving(serve, servicer):
    settings = GrpcSettings(host="0.0.0.0", port=serve())
    assert is_healthy(settings)
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not is_healthy(settings)


def test_nothing_that_listens_is_unhealthy():
    assert not is_healthy(GrpcSettings(port=1))


@needs_openssl
def test_with_tls_a_handshake_is_enough(serve, tmp_path):
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    mutual = GrpcSettings(tls_cert=cert, tls_key=key, tls_client_ca=authority.cert)
    port = serve(server_credentials(mutual))
    assert is_healthy(mutual.model_copy(update={"port": port}))
    assert not is_healthy(mutual.model_copy(update={"port": 1}))


def test_the_command_reads_the_environment(serve):
    def status(**environment):
        return subprocess.run(
            [sys.executable, "-m", "graftwork_server.probe"],
            env={"PYTHONPATH": os.pathsep.join(sys.path), **environment},
            capture_output=True,
            check=False,
        ).returncode

    assert status(GRAFTWORK_GRPC__PORT=str(serve())) == 0
    assert status(GRAFTWORK_GRPC__PORT="1") == 1
    assert status(GRAFTWORK_GRPC__PORT="many") == 2
