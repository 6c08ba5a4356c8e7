"""Lowering against PEFT: every module of the base computes what PEFT's module computes."""

import tempfile
from pathlib import Path

import pytest
import torch
from graftwork_adapters.errors import InvalidArtifact
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PromptTuningConfig

from tests.adapters.helpers import (
    check_merged,
    check_parity,
    load_peft,
    lora_config,
    lowered_from,
    make_peft,
    tiny_gpt2,
    tiny_llama,
)

LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASES = {
    "llama": tiny_llama(),
    "llama_with_bias": tiny_llama(attention_bias=True),
    "tied_llama": tiny_llama(tied=True),
    "gpt2": tiny_gpt2(),
}


@st.composite
def lora_fields(draw: st.DrawFn, targets: list[str]) -> dict[str, object]:
    chosen = draw(st.lists(st.sampled_from(targets), min_size=1, max_size=4, unique=True))
    patterns = st.dictionaries(
        st.sampled_from([*targets, r"layers\.1\..*", r"(h|layers)\.0\.[a-z_]+\.c_attn", "0.*proj"]),
        st.integers(1, 6),
        max_size=3,
    )
    use_dora = draw(st.booleans())
    return {
        "r": draw(st.integers(1, 8)),
        "lora_alpha": draw(st.sampled_from([1, 3, 8, 16, 0.7])),
        "target_modules": chosen,
        "rank_pattern": draw(patterns),
        "alpha_pattern": draw(patterns),
        "use_rslora": draw(st.booleans()),
        "use_dora": use_dora,
        "lora_bias": False if use_dora else draw(st.booleans()),
        "bias": draw(st.sampled_from(["none", "lora_only"])),
        "layers_to_transform": draw(st.sampled_from([None, 0, [0, 1], [1]])),
        "exclude_modules": draw(st.sampled_from([None, ["model.layers.0.self_attn.q_proj"]])),
    }


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
@pytest.mark.parametrize("base_name", BASES)
def test_lora_equals_peft(base_name: str, data: st.DataObject) -> None:
    base = BASES[base_name]
    targets = ["c_attn", "c_proj", "c_fc"] if base_name == "gpt2" else LLAMA_TARGETS
    fields = data.draw(lora_fields(targets))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    with tempfile.TemporaryDirectory() as folder:
        try:
            make_peft(base, lora_config(**fields), Path(folder), dtype=dtype)
        except ValueError as error:
            if "excluded" not in str(error):
                raise
            return  # no module is left
        try:
            model = load_peft(base, Path(folder))
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            with pytest.raises(InvalidArtifact, match="rank"):
                lowered_from(Path(folder), base)
            return
        adapter = lowered_from(Path(folder), base)
        check_parity(model, base, adapter)
        if not fields["lora_bias"]:  # PEFT merges those with a biased module only
            check_merged(model, base, adapter)


@pytest.mark.parametrize("base_name", BASES)
def test_every_linear_layer(base_name: str, tmp_path: Path) -> None:
    base = BASES[base_name]
    fan = base_name == "gpt2"
    config = lora_config(target_modules="all-linear", fan_in_fan_out=fan)
    make_peft(base, config, tmp_path)
    adapter = lowered_from(tmp_path, base)
    assert "lm_head" not in adapter.modules
    check_parity(load_peft(base, tmp_path), base, adapter)


def test_target_modules_as_a_regular_expression(tmp_path: Path) -> None:
    base = BASES["llama"]
    make_peft(base, lora_config(target_modules=r".*\.1\..*(q|up)_proj"), tmp_path)
    adapter = lowered_from(tmp_path, base)
    assert len(adapter.modules) == 2
    check_parity(load_peft(base, tmp_path), base, adapter)


def test_all_biases_of_linear_modules(tmp_path: Path) -> None:
    base = BASES["llama_with_bias"]
    make_peft(base, lora_config(target_modules=["q_proj"], bias="all"), tmp_path)
    adapter = lowered_from(tmp_path, base)
    assert adapter.modules["model.layers.0.self_attn.v_proj"].low_rank is None
    check_parity(load_peft(base, tmp_path), base, adapter)


@pytest.mark.parametrize("base_name", ["llama", "tied_llama"])
def test_the_output_head(base_name: str, tmp_path: Path) -> None:
    base = BASES[base_name]
    make_peft(base, lora_config(target_modules=["q_proj", "lm_head"]), tmp_path)
    adapter = lowered_from(tmp_path, base)
    assert adapter.modules.keys() >= {"lm_head"}
    assert not any("embed" in name for name in adapter.modules)
    check_parity(load_peft(base, tmp_path), base, adapter)


def test_a_power_of_two_scale_keeps_the_dtype_of_the_file(tmp_path: Path) -> None:
    base = BASES["llama"]
    make_peft(base, lora_config(r=4, lora_alpha=8), tmp_path, dtype=torch.bfloat16)
    adapter = lowered_from(tmp_path, base)
    assert {tensor.dtype for tensor in adapter.tensors()} == {torch.bfloat16}


def test_a_scale_that_would_round_widens_the_factors(tmp_path: Path) -> None:
    base = BASES["llama"]
    make_peft(base, lora_config(r=3, lora_alpha=8), tmp_path, dtype=torch.bfloat16)
    adapter = lowered_from(tmp_path, base)
    assert {tensor.dtype for tensor in adapter.tensors()} == {torch.float32}


def test_lowered_tensors_own_their_memory(tmp_path: Path) -> None:
    base = BASES["llama"]
    make_peft(base, lora_config(), tmp_path)
    for tensor in lowered_from(tmp_path, base).tensors():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.is_contiguous()


def test_prompt_tuning_yields_the_saved_embeddings(tmp_path: Path) -> None:
    base = BASES["llama"]
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = make_peft(base, config, tmp_path)
    adapter = lowered_from(tmp_path, base)
    assert adapter.num_virtual_tokens == 5
    assert adapter.virtual_tokens is not None
    assert torch.equal(adapter.virtual_tokens, model.prompt_encoder["default"].embedding.weight)
