"""A base with its modules fused computes what transformers computes."""

import copy

import pytest
import torch
from graftwork_server import attention
from graftwork_server.attention import AttentionStep, allocate_kv_caches
from graftwork_server.fusion import FusedAttention, FusedGatedMlp, FusedRmsNorm, fuse_modules
from graftwork_server.kernels.build import load_kernels
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
NUM_TOKENS = 24


def models() -> list[tuple[PreTrainedModel, set[type]]]:
    """Models, with the fused classes that must be found in them."""
    torch.manual_seed(0)
    everything = {FusedAttention, FusedGatedMlp, FusedRmsNorm}
    return [
        (LlamaForCausalLM(LlamaConfig(**SIZES)), everything),
        (MistralForCausalLM(MistralConfig(**SIZES, sliding_window=7)), everything),
        (
            Qwen2ForCausalLM(
                Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1)
            ),
            everything,
        ),
        (Qwen3ForCausalLM(Qwen3Config(**SIZES)), {FusedGatedMlp, FusedRmsNorm}),
        (Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=5)), {FusedRmsNorm}),
    ]


@pytest.mark.parametrize(("model", "expected"), models(), ids=lambda m: type(m).__name__)
@torch.inference_mode()
def test_fused_model_equals_transformers(model: PreTrainedModel, expected: set[type]) -> None:
    load_kernels()
    attention.register()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval()
    token_ids = torch.arange(NUM_TOKENS)[None] * 7 % 64
    reference = model(input_ids=token_ids, use_cache=False).logits[0]
    fused = copy.deepcopy(model)
    fused.set_attn_implementation(attention.PAGED_ATTENTION)
    fuse_modules(fused)
    found = {type(module) for module in fused.modules()}
    assert found & {FusedAttention, FusedGatedMlp, FusedRmsNorm} == expected
    caches = allocate_kv_caches(
        [(2, 8)] * 2,
        num_blocks=8,
        block_size=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    step = AttentionStep(
        caches=caches,
        slot_mapping=torch.arange(NUM_TOKENS),
        block_tables=torch.arange(8, dtype=torch.int32)[None],
        query_start=torch.tensor([0, NUM_TOKENS], dtype=torch.int32),
        context_lens=torch.tensor([NUM_TOKENS], dtype=torch.int32),
    )
    logits = fused(
        input_ids=token_ids,
        position_ids=torch.arange(NUM_TOKENS)[None],
        use_cache=False,
        attention_step=step,
    ).logits[0]
    torch.testing.assert_close(logits, reference, atol=1e-4, rtol=1e-4)
