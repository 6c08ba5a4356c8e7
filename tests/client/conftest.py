from collections.abc import Iterator
from pathlib import Path

import pytest
from graftwork import Client

from tests.client.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target, timeout=10) as opened:
        yield opened


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    """What a training run leaves: an adapter of two and a half chunks, and files beside it."""
    folder = tmp_path / "poet"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(b'{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 10_240)
    (folder / "graftwork_prompt.json").write_bytes(b'{"system": "Rhyme."}')
    (folder / "README.md").write_bytes(b"")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoint-1").mkdir()
    return folder
