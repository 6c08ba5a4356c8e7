"""From the store into kernel layout."""

import contextlib
from pathlib import Path

import pytest
import torch
from graftwork_adapters.errors import DamagedVersion
from graftwork_adapters.folder import FILES
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.store import ImmutableStore
from graftwork_server.adapter_loader import AdapterLoader
from graftwork_server.compositions import Compositions

from tests.support.peft_adapters import lora_config, save_random_adapter
from tests.support.tiny_models import tiny_model
from tests.support.tiny_server import tiny_base

MODEL = tiny_model("llama")
LIMITS = AdapterLimits()


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(ImmutableStore(tmp_path / "store", LIMITS)) as store:
        yield store


@pytest.fixture
def digest(store, tmp_path):
    folder = save_random_adapter(MODEL, lora_config(4), tmp_path / "lora", seed=0, strength=1.0)
    with store.stage() as staging:
        staging.copy({name: folder / name for name in FILES if (folder / name).exists()})
        digest = staging.finish()
        staging.commit()
    return digest


def loader(store: ImmutableStore, is_engine_busy=lambda: False) -> AdapterLoader:
    base = tiny_base(MODEL)
    return AdapterLoader(store, LIMITS, base, Compositions(), None, is_engine_busy)


def test_a_version_is_loaded(store, digest):
    adapter = loader(store).load(digest)
    assert any(module.low_rank is not None for module in adapter.modules.values())


@pytest.mark.parametrize("filename", ["adapter_model.safetensors", "adapter_config.json"])
def test_files_that_changed_since_registration_are_refused(store, digest, filename):
    path: Path = store.path(digest) / filename
    data = bytearray(path.read_bytes())
    # Still a file that reads well: another weight, or another space in the config.
    if filename.endswith(".json"):
        data += b" "
    else:
        weight = torch.frombuffer(data, dtype=torch.float32, offset=len(data) - 4)
        weight += 1
        del weight
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(DamagedVersion, match=digest):
        loader(store).load(digest)


def test_a_load_asks_whether_the_engine_needs_the_core(store, digest):
    asked = []

    def is_engine_busy() -> bool:
        asked.append(None)
        return False

    loader(store, is_engine_busy).load(digest)
    assert asked
