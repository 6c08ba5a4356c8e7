import pytest
import torch
from graftwork_adapters.errors import InvalidArtifact
from hypothesis import given
from hypothesis import strategies as st
from peft import VBLoRAConfig
from safetensors.torch import load_file, save_file

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
def test_vblora_equals_peft(base_name: str, data: st.DataObject) -> None:
    topk = data.draw(st.integers(1, 3))
    only_topk = data.draw(st.booleans())
    config = VBLoRAConfig(
        r=data.draw(st.integers(1, 6)),
        # 300 vectors need indices of 16 bits.
        num_vectors=data.draw(st.sampled_from([3, 8, 300])),
        vector_length=data.draw(st.sampled_from([1, 4, 8])),
        topk=topk,
        save_only_topk_weights=only_topk,
        bias=data.draw(st.sampled_from(["none", "vblora_only"])),
        **data.draw(target_fields(base_name)),
    )
    # Rounded weights may add up to more than 1, of which PEFT takes a logarithm.
    dtype = torch.float32 if only_topk else data.draw(dtypes)
    check_equals_peft(BASES[base_name], config, dtype=dtype)


def saved(folder, **fields):
    settings = {
        "r": 2,
        "num_vectors": 8,
        "vector_length": 4,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        **fields,
    }
    make_peft(BASES["llama"], VBLoRAConfig(**settings), folder)


def edit_tensors(folder, part, change):
    path = folder / "adapter_model.safetensors"
    save_file({k: change(t) if part in k else t for k, t in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vector_length": 8}, "vector_bank"),
        ({"topk": 9}, "topk"),
        ({"num_vectors": 7}, "vector_bank"),
        ({"save_only_topk_weights": True}, "none that this method knows"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(tmp_path, fields, message):
    saved(tmp_path)
    edit_config(tmp_path, **fields)
    with pytest.raises(InvalidArtifact, match=message):
        lowered_from(tmp_path, BASES["llama"])


def test_a_vector_length_that_does_not_divide_the_module_is_refused(tmp_path):
    saved(tmp_path)
    edit_config(tmp_path, vector_length=3)
    edit_tensors(tmp_path, "vector_bank", lambda bank: bank[:, :3].contiguous())
    with pytest.raises(InvalidArtifact, match="does not divide"):
        lowered_from(tmp_path, BASES["llama"])


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("A_topk_indices", lambda t: t + 100, "past the vector bank"),
        ("A_topk_indices", lambda t: t.float(), "must hold integers"),
        ("B_topk_weights", lambda t: t + 1, "no probabilities"),
        ("B_topk_weights", lambda t: t - 1, "no probabilities"),
        ("B_topk_weights", lambda t: (t * 0).long(), "must hold floating point"),
    ],
)
def test_damaged_indices_and_weights_are_refused(tmp_path, part, change, message):
    saved(tmp_path, save_only_topk_weights=True)
    edit_tensors(tmp_path, part, change)
    with pytest.raises(InvalidArtifact, match=message):
        lowered_from(tmp_path, BASES["llama"])
