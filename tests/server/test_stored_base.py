import json
import logging
import os

import pytest
import torch
from graftwork_server import attention, stored_base
from graftwork_server.kernels.build import load_kernels
from graftwork_server.shared_weights import ORIGIN_FILE
from graftwork_server.stored_base import load_shared_base, origin_of
from graftwork_trainer.base.model import load_training_base

from tests.support.saved_models import FAMILIES, save_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _registered():
    load_kernels()
    attention.register()


@pytest.fixture
def source(tmp_path):
    return save_tiny_model("llama", tmp_path / "model")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "base"


@pytest.fixture
def loads(monkeypatch):
    """How often a model was loaded and quantized, not mapped."""
    calls = []
    load = stored_base.load_base_model

    def counting(*args, **options):
        calls.append(args)
        return load(*args, **options)

    monkeypatch.setattr(stored_base, "load_base_model", counting)
    return calls


def start(source, root, quantization="int8"):
    return load_shared_base(source, root, name="tiny", quantization=quantization, device=CPU)


def folder_of(base, root):
    return root / base.digest.removeprefix("sha256:")


def overwrite(path, data):
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_start_maps_the_file_and_has_the_same_base(
    family, quantization, tmp_path, root, loads
):
    source = save_tiny_model(family, tmp_path / "model")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    first = start(source, root, quantization)
    second = start(source, root, quantization)
    assert len(loads) == 1
    assert second.digest == first.digest == second.compute_digest()
    assert second.end_token_ids == first.end_token_ids == {0, 5}
    assert second.num_parameters == first.num_parameters
    assert second.linear_modules == first.linear_modules
    assert second.other_modules == first.other_modules
    assert list(second.tensors) == list(first.tensors)
    assert not any(tensor.requires_grad for tensor in second.model.parameters())
    # Those too that no file holds, such as the frequencies of rotary embeddings.
    for (name, one), (_, other) in zip(
        first.model.named_buffers(), second.model.named_buffers(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_trainer_maps_the_file_that_both_starts_used(source, root):
    first = start(source, root)
    folder = folder_of(first, root)
    inode = (folder / "weights.safetensors").stat().st_ino
    second = start(source, root)
    assert (folder / "weights.safetensors").stat().st_ino == inode
    training = load_training_base(folder, CPU)
    assert training.description.digest == second.digest
    for name, packed in training.description.packed.items():
        trained = training.model.get_submodule(name)
        assert torch.equal(trained.codes, second.own_module(name).codes), packed


def test_another_model_in_the_same_place_is_loaded(source, root, loads):
    first = start(source, root)
    weights = source / "model.safetensors"
    before = weights.stat()
    save_tiny_model("llama", source, seed=1)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    second = start(source, root)
    assert len(loads) == 2
    assert second.digest != first.digest
    assert second.digest == second.compute_digest()


def test_another_quantization_has_a_file_of_its_own(source, root, loads):
    digests = [start(source, root, q).digest for q in ("int8", "none", "int8", "none")]
    assert len(loads) == 2
    assert digests[:2] == digests[2:]
    assert digests[0] != digests[1]


def test_other_code_makes_the_base_anew(source, root, loads, tmp_path, monkeypatch):
    first = start(source, root)
    changed = tmp_path / "changed.py"
    changed.write_text("")
    monkeypatch.setattr(stored_base, "_CODE", (*stored_base._CODE, changed))
    assert start(source, root).digest == first.digest
    assert len(loads) == 2


def flip_a_bit(folder):
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    overwrite(folder / "weights.safetensors", data)


def truncate(folder):
    overwrite(folder / "weights.safetensors", (folder / "weights.safetensors").read_bytes()[:-64])


def describe_other_sizes(folder):
    description = json.loads((folder / "base.json").read_text())
    next(iter(description["packed"].values()))["in_features"] += 64
    overwrite(folder / "base.json", json.dumps(description).encode())


def forget_a_module(folder):
    description = json.loads((folder / "base.json").read_text())
    description["packed"].popitem()
    overwrite(folder / "base.json", json.dumps(description).encode())


def claim_another_digest(folder):
    description = json.loads((folder / "base.json").read_text())
    description["digest"] = f"sha256:{'0' * 64}"
    overwrite(folder / "base.json", json.dumps(description).encode())


@pytest.mark.parametrize(
    "damage", [flip_a_bit, truncate, describe_other_sizes, forget_a_module, claim_another_digest]
)
def test_a_damaged_file_is_not_used_but_written_anew(damage, source, root, loads, caplog):
    first = start(source, root)
    folder = folder_of(first, root)
    damage(folder)
    with caplog.at_level(logging.WARNING):
        second = start(source, root)
    assert "the base is made anew" in caplog.text
    assert len(loads) == 2
    assert second.digest == first.digest == second.compute_digest()
    assert start(source, root).digest == first.digest
    assert len(loads) == 2


def test_a_file_under_another_name_is_not_used(source, root, loads):
    first = start(source, root)
    folder_of(first, root).rename(root / "other")
    second = start(source, root)
    assert len(loads) == 2
    assert folder_of(second, root).is_dir()


def test_a_file_without_an_origin_is_checked_and_then_has_one(source, root, loads):
    folder = folder_of(start(source, root), root)
    (folder / ORIGIN_FILE).unlink()
    inode = (folder / "weights.safetensors").stat().st_ino
    start(source, root)
    start(source, root)
    assert len(loads) == 2
    assert (folder / "weights.safetensors").stat().st_ino == inode


def test_hub_ids_and_gpus_have_no_origin(source):
    assert origin_of("someone/some-model", "int8", CPU) is None
    assert origin_of(source, "int8", torch.device("cuda")) is None
    assert origin_of(source, "int8", CPU) is not None
