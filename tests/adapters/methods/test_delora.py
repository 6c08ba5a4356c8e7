import pytest
import torch
from graftwork_adapters.errors import InvalidArtifact
from hypothesis import given
from hypothesis import strategies as st
from peft import DeloraConfig
from safetensors.torch import load_file, save_file

from tests.adapters.helpers import lowered_from, make_peft
from tests.adapters.methods.parity import (
    BASES,
    check_equals_peft,
    dtypes,
    few_examples,
    patterns,
    target_fields,
)


@few_examples
@given(st.data())
@pytest.mark.parametrize("base_name", BASES)
def test_delora_equals_peft(base_name: str, data: st.DataObject) -> None:
    config = DeloraConfig(
        r=data.draw(st.integers(1, 6)),
        delora_lambda=data.draw(st.sampled_from([1, 15])),
        rank_pattern=data.draw(patterns(base_name, st.integers(1, 6))),
        bias=data.draw(st.sampled_from(["none", "delora_only"])),
        **data.draw(target_fields(base_name)),
    )
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


def test_a_file_without_the_norms_is_refused(tmp_path):
    config = DeloraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    make_peft(BASES["llama"], config, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: t for k, t in load_file(path).items() if "w_norm" not in k}, path)
    with pytest.raises(InvalidArtifact, match="delora_w_norm"):
        lowered_from(tmp_path, BASES["llama"])


def test_a_factor_of_tiny_norm_is_divided_by_the_floor(tmp_path):
    config = DeloraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    make_peft(BASES["llama"], config, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {k: t * 1e-6 if "delora_A" in k else t for k, t in load_file(path).items()}
    save_file(tensors, path)
    pair = lowered_from(tmp_path, BASES["llama"]).modules["model.layers.0.self_attn.q_proj"]
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.delora_"
    norm = torch.linalg.vector_norm(tensors[f"{prefix}B"], dim=0)
    expected = tensors[f"{prefix}B"] * tensors[f"{prefix}lambda"] / 2 / (1e-4 * norm)
    torch.testing.assert_close(pair.low_rank.b, expected)
