from collections.abc import Iterator
from pathlib import Path

import graftwork
import grpc
import pytest
from click.testing import CliRunner
from graftwork import AsyncClient, Client
from graftwork.cli import main

from tests.client.fake_server import FakeServer

CERTS = Path(__file__).parent / "certs"


@pytest.fixture
def mutual() -> Iterator[FakeServer]:
    """A server that asks for the caller's certificate."""
    pair = ((CERTS / "server.key").read_bytes(), (CERTS / "server.pem").read_bytes())
    authorities = (CERTS / "ca.pem").read_bytes()
    fake = FakeServer(grpc.ssl_server_credentials([pair], authorities, require_client_auth=True))
    yield fake
    fake.stop()


def test_mutual_tls(mutual: FakeServer) -> None:
    with Client(
        mutual.target,
        ca=CERTS / "ca.pem",
        client_cert=str(CERTS / "client.pem"),
        client_key=(CERTS / "client.key").read_bytes(),
    ) as client:
        assert client.model().name == "echo"


async def test_mutual_tls_async(mutual: FakeServer, peft_folder: Path) -> None:
    async with AsyncClient(
        mutual.target,
        ca=CERTS / "ca.pem",
        client_cert=CERTS / "client.pem",
        client_key=CERTS / "client.key",
    ) as client:
        assert (await client.model()).name == "echo"
        assert (await client.adapters.upload("poet", peft_folder)).version == 1


def test_without_a_certificate(mutual: FakeServer) -> None:
    with Client(mutual.target, ca=CERTS / "ca.pem") as client, pytest.raises(graftwork.Unavailable):
        client.model()


def test_an_authority_that_is_not_trusted(mutual: FakeServer) -> None:
    with Client(mutual.target, tls=True) as client, pytest.raises(graftwork.Unavailable):
        client.model()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "error: cannot reach {target}: Socket closed (does the server want TLS"),
        (["--tls"], "CERTIFICATE_VERIFY_FAILED"),
        (
            ["--tls"],
            "(does the server use TLS, with a certificate that --ca or the system trusts?)",
        ),
    ],
)
def test_a_failed_handshake_is_told(mutual: FakeServer, options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["--target", mutual.target, *options, "model"])
    assert message.format(target=mutual.target) in result.stderr
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_on_the_command_line(mutual: FakeServer) -> None:
    files = {"--ca": "ca.pem", "--cert": "client.pem", "--key": "client.key"}
    options = [part for flag, name in files.items() for part in (flag, str(CERTS / name))]
    result = CliRunner().invoke(main, ["--target", mutual.target, *options, "model"])
    assert "EchoForCausalLM" in result.stdout
