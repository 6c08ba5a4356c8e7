"""kill -9 of the server while versions are being registered over gRPC, again and again."""

import random
import threading
import time
from pathlib import Path

import pytest
from graftwork import Client, GraftworkError

from tests.support.peft_adapters import lora_config, save_random_adapter
from tests.support.saved_models import load_reference, save_tiny_model
from tests.support.server_process import ServerProcess, server_process

NUM_FOLDERS = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A tiny model, and adapters of it."""
    folder = tmp_path_factory.mktemp("kill")
    model = save_tiny_model("llama", folder / "model")
    reference = load_reference(model)
    adapters = [
        save_random_adapter(reference, lora_config(4), folder / "adapters" / str(seed), seed=seed)
        for seed in range(NUM_FOLDERS)
    ]
    return model, adapters


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_while_registering(
    rounds: int, tiny: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    model, adapters = tiny
    chance = random.Random(0)
    acknowledged: dict[int, str] = {}  # digests by version of the adapter "a"
    options = ("--adapter-root", str(adapters[0].parent))
    for _ in range(rounds):
        with server_process(tmp_path / "data", model, *options) as server:
            check_consistent(server, acknowledged)
            acknowledged |= register_until_killed(server, adapters, chance.uniform(0.02, 0.4))
    with server_process(tmp_path / "data", model, *options) as server:
        check_consistent(server, acknowledged)
        assert server.terminate() == 0
    assert len(acknowledged) >= rounds, "too few registrations to say anything"


def register_until_killed(
    server: ServerProcess, adapters: list[Path], after_s: float
) -> dict[int, str]:
    """The versions that the server acknowledged before it died."""
    acknowledged: dict[int, str] = {}
    with Client(server.target, timeout=20) as client:
        killer = threading.Timer(after_s, server.process.kill)
        first = client.adapters.create("a", adapters[0])
        acknowledged[first.version] = first.digest
        killer.start()
        index = first.version
        while True:
            index += 1
            try:
                version = client.adapters.create("a", adapters[index % len(adapters)])
            except GraftworkError:
                break
            acknowledged[version.version] = version.digest
        killer.join()
    server.kill()
    return acknowledged


def check_consistent(server: ServerProcess, acknowledged: dict[int, str]) -> None:
    with Client(server.target, timeout=20) as client:
        found = {v.version: v.digest for v in client.adapters.versions()}
        assert found.items() >= acknowledged.items(), "an acknowledged version is gone"
        assert sorted(found) == list(range(1, len(found) + 1))
        if not found:
            return
        assert client.adapters.get("a").live_version in found
        # The last one may have been registered without an answer: it must be whole all the same.
        for version in {min(found), max(found)}:
            answer = client.generate("the quick", adapter=f"a@{version}", max_tokens=2)
            assert answer.served_by.digest == found[version]
        started = time.monotonic()
        client.adapters.load(f"a@{max(found)}")
        assert time.monotonic() - started < 20
