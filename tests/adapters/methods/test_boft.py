import pytest
import torch
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from graftwork_adapters.folder import WEIGHTS_FILE
from hypothesis import given
from hypothesis import strategies as st
from peft import BOFTConfig
from peft.tuners.boft.layer import BOFTLayer
from safetensors.torch import load_file, save_file

from tests.adapters.expand import input_matrix
from tests.adapters.helpers import edit_config, lowered_from, make_peft
from tests.adapters.methods.parity import (
    BASES,
    check_equals_peft,
    dtypes,
    few_examples,
    target_fields,
)


@few_examples
@given(st.data())
@pytest.mark.parametrize("base_name", BASES)
def test_boft_equals_peft(base_name: str, data: st.DataObject) -> None:
    by_size = data.draw(st.booleans())
    config = BOFTConfig(
        boft_block_size=data.draw(st.sampled_from([2, 4, 8])) if by_size else 0,
        boft_block_num=0 if by_size else data.draw(st.sampled_from([1, 2, 4])),
        # Without its CUDA extension, PEFT makes this 1 and saves the config as it was.
        boft_n_butterfly_factor=data.draw(st.sampled_from([1, 2])),
        bias=data.draw(st.sampled_from(["none", "boft_only"])),
        **data.draw(target_fields(base_name)),
    )
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


@pytest.mark.parametrize(("num_factors", "size"), [(2, 2), (3, 2), (2, 4), (3, 4), (2, 8)])
def test_butterfly_factors_equal_the_products_of_matrices(num_factors, size, tmp_path):
    """By PEFT's own permutations; its module cannot be built with more factors on this machine."""
    config = BOFTConfig(boft_block_size=size, target_modules=["q_proj"])
    make_peft(BASES["llama"], config, tmp_path)
    edit_config(tmp_path, boft_n_butterfly_factor=num_factors)
    count = 16 // size
    blocks = 0.3 * torch.randn(num_factors, count, size, size)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    for key in tensors:
        if key.endswith("boft_R"):
            tensors[key] = blocks.clone()
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    adapter = lowered_from(tmp_path, BASES["llama"])

    product = torch.eye(16)
    for i in range(num_factors):
        order = BOFTLayer.block_butterfly_perm(
            None, 16, int(count / 2**i), size // 2, num_factors - 1
        )
        permutation = torch.eye(16)[order]
        rotations = BOFTLayer.cayley_batch(None, blocks[i])
        product = permutation @ torch.block_diag(*rotations) @ permutation.T @ product
    for module in adapter.modules.values():
        torch.testing.assert_close(input_matrix(module.input_transform, 16), product)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"boft_block_size": 8}, WrongBase, "boft_R"),
        ({"boft_block_size": 5}, WrongBase, "multiple of 5"),
        ({"boft_block_num": 4}, InvalidArtifact, "one of boft_block_size"),
        ({"boft_n_butterfly_factor": 0}, InvalidArtifact, "boft_n_butterfly_factor"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(changes, error, match, tmp_path):
    make_peft(BASES["llama"], BOFTConfig(boft_block_size=4, target_modules=["q_proj"]), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(error, match=match):
        lowered_from(tmp_path, BASES["llama"])
