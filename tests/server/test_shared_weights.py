import copy
import logging

import pytest
import torch
from graftwork_adapters.base_file.reader import map_base
from graftwork_server import attention
from graftwork_server.base_model import prepare_base_model
from graftwork_server.kernels.build import load_kernels
from graftwork_server.shared_weights import BaseNotShareable, remove_other_bases, share_weights

from tests.server.sampling.tiny_tokenizers import byte_level
from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request):
    load_kernels()
    attention.register()
    return tiny_model(request.param)


def base_of(model, quantization):
    return prepare_base_model(
        copy.deepcopy(model),
        byte_level(),
        name="tiny",
        quantization=quantization,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_base_computes_with_the_file(model, quantization, tmp_path):
    base = base_of(model, quantization)
    before = {name: tensor.clone() for name, tensor in base.tensors.items()}
    folder = share_weights(base, tmp_path)
    assert folder == tmp_path / base.digest.removeprefix("sha256:")
    assert base.compute_digest() == base.digest
    for name, tensor in base.tensors.items():
        assert torch.equal(tensor, before[name])
    mapped = map_base(folder)
    assert mapped.description.digest == base.digest
    assert set(mapped.tensors) == set(base.tensors)
    assert bool(mapped.description.packed) == (quantization != "none")


def test_a_second_server_finds_the_file(model, tmp_path):
    folder = share_weights(base_of(model, "int8"), tmp_path)
    inode = (folder / "weights.safetensors").stat().st_ino
    assert share_weights(base_of(model, "int8"), tmp_path) == folder
    assert (folder / "weights.safetensors").stat().st_ino == inode


def test_a_damaged_file_is_written_anew(model, tmp_path, caplog):
    folder = share_weights(base_of(model, "int8"), tmp_path)
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    base = base_of(model, "int8")
    with caplog.at_level(logging.WARNING):
        share_weights(base, tmp_path)
    assert "damaged" in caplog.text
    assert base.compute_digest() == base.digest
    assert base.digest_of(map_base(folder).tensors) == base.digest


def test_files_of_other_bases_are_removed(model, tmp_path):
    earlier = share_weights(base_of(model, "none"), tmp_path)
    half = tmp_path / ".writing"
    half.mkdir()
    base = base_of(model, "int8")
    folder = share_weights(base, tmp_path)
    remove_other_bases(base, tmp_path)
    assert list(tmp_path.iterdir()) == [folder]
    assert not earlier.exists()
    assert base.compute_digest() == base.digest


def test_a_root_that_cannot_be_written_is_an_error(model, tmp_path):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(BaseNotShareable, match="data_dir: cannot write the base"):
        share_weights(base_of(model, "none"), root)
