import json

import pytest
import torch
from graftwork_adapters.base_file.description import (
    BaseFileDescription,
    InvalidBaseFile,
    PackedLinear,
)
from graftwork_adapters.base_file.reader import map_base
from graftwork_adapters.base_file.writer import LINE, write_base
from safetensors.torch import load_file

DESCRIPTION = BaseFileDescription(
    digest="sha256:ab",
    quantization="int8",
    end_token_ids=(2, 7),
    packed={"layer": PackedLinear(64, 40, "int8")},
    aliases={"head.weight": "embed.weight"},
)
TENSORS = {
    "odd": torch.arange(7, dtype=torch.int8),
    "embed.weight": torch.randn(30, 16),
    "layer.codes": torch.randint(-5, 5, (2, 64, 32), dtype=torch.int8),
    "flag": torch.tensor(True),
    "norm.weight": torch.randn(9).bfloat16(),
}


def write(folder):
    write_base(folder, DESCRIPTION, TENSORS, lambda draft: (draft / "config.json").write_text("{}"))
    return folder


def test_what_was_written_is_mapped(tmp_path):
    base = map_base(write(tmp_path / "base" / "ab"))
    assert base.description == DESCRIPTION
    assert set(base.tensors) == {*TENSORS, "head.weight"}
    for name, tensor in TENSORS.items():
        assert torch.equal(base.tensors[name], tensor)
        assert base.tensors[name].dtype == tensor.dtype
    assert base.tensors["head.weight"].data_ptr() == base.tensors["embed.weight"].data_ptr()
    assert (base.folder / "config.json").read_text() == "{}"


def test_whole_lines_are_aligned_and_the_rest_by_element(tmp_path):
    base = map_base(write(tmp_path / "ab"))
    for tensor in base.tensors.values():
        wanted = LINE if tensor.nbytes % LINE == 0 else tensor.dtype.itemsize
        assert tensor.data_ptr() % wanted == 0


def test_the_file_is_safetensors(tmp_path):
    folder = write(tmp_path / "ab")
    for name, tensor in load_file(folder / "weights.safetensors").items():
        assert torch.equal(tensor, TENSORS[name])


def test_writing_to_a_mapped_tensor_changes_no_file(tmp_path):
    folder = write(tmp_path / "ab")
    map_base(folder).tensors["embed.weight"].zero_()
    assert torch.equal(map_base(folder).tensors["embed.weight"], TENSORS["embed.weight"])


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(draft):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_base(tmp_path / "ab", DESCRIPTION, TENSORS, fail)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays(tmp_path):
    folder = write(tmp_path / "ab")
    inode = (folder / "weights.safetensors").stat().st_ino
    write(folder)
    assert (folder / "weights.safetensors").stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["ab"]


@pytest.mark.parametrize("num_bytes", [0, 4, 100, 2000])
def test_a_truncated_file_is_refused(tmp_path, num_bytes):
    folder = write(tmp_path / "ab")
    path = folder / "weights.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(InvalidBaseFile, match=r"weights\.safetensors"):
        map_base(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 9}, "another version"),
        ({"packed": {"x": {"in_features": 1, "out_features": 1, "packing": "int3"}}}, "int3"),
        ({"surprise": 1}, "surprise"),
        ({"aliases": {"a": "absent"}}, "absent"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, changes, message):
    folder = write(tmp_path / "ab")
    path = folder / "base.json"
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InvalidBaseFile, match=message):
        map_base(folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InvalidBaseFile, match=r"base\.json"):
        map_base(tmp_path / "none")
