"""LN tuning and trainable tokens: lowered, they are the parameters that PEFT merges."""

import tempfile
from pathlib import Path

import torch
from graftwork_adapters.canonical import LoweredAdapter
from hypothesis import given
from hypothesis import strategies as st
from peft import LNTuningConfig, PeftConfig, TrainableTokensConfig
from torch import nn

from tests.adapters.helpers import (
    DescribedModel,
    load_peft,
    lowered_from,
    make_peft,
    peft_remarks_ignored,
    tiny_gpt2,
    tiny_llama,
)
from tests.adapters.methods.parity import dtypes, few_examples

BASES = {"llama": tiny_llama(), "tied_llama": tiny_llama(tied=True), "gpt2": tiny_gpt2()}
NORMS = {
    "llama": ["input_layernorm", "post_attention_layernorm", "model.norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
}


def lowered_and_merged(
    base: nn.Module, config: PeftConfig, dtype: torch.dtype
) -> tuple[LoweredAdapter, nn.Module]:
    with tempfile.TemporaryDirectory() as folder:
        make_peft(base, config, Path(folder), dtype=dtype)
        with peft_remarks_ignored():
            merged = load_peft(base, Path(folder)).merge_and_unload()
        return lowered_from(Path(folder), base), merged


@few_examples
@given(st.sampled_from(["llama", "gpt2"]), dtypes, st.data())
def test_norms(base_name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    base = BASES[base_name]
    names = st.lists(st.sampled_from(NORMS[base_name]), min_size=1, unique=True)
    config = LNTuningConfig(target_modules=data.draw(names), task_type="CAUSAL_LM")
    adapter, merged = lowered_and_merged(base, config, dtype)
    for name, parameters in DescribedModel(base).other_modules.items():
        for key in parameters:
            own = adapter.replaced.get(name)
            found = base.get_submodule(name).get_parameter(key) if own is None else own[key].float()
            assert torch.equal(found, merged.get_submodule(name).get_parameter(key)), name


@few_examples
@given(
    st.sampled_from(list(BASES)),
    dtypes,
    st.lists(st.integers(0, 31), min_size=1, max_size=8, unique=True),
)
def test_tokens(base_name: str, dtype: torch.dtype, tokens: list[int]) -> None:
    base = BASES[base_name]
    config = TrainableTokensConfig(token_indices=tokens, task_type="CAUSAL_LM")
    adapter, merged = lowered_and_merged(base, config, dtype)
    described = DescribedModel(base)
    embedding = described.parameter(described.embedding_name, "weight").clone()
    embedding[adapter.embedding_rows.token_ids] = adapter.embedding_rows.rows.float()
    assert torch.equal(embedding, merged.get_input_embeddings().weight)
    head = described.weight(described.head_name).clone()
    if adapter.head_rows is not None:
        head[adapter.head_rows.token_ids] = adapter.head_rows.rows.float()
    assert torch.equal(head, merged.get_output_embeddings().weight)
