"""Methods that lower to low-rank pairs or dense deltas, all in one batch, equal PEFT one by one."""

from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, DeloraConfig, LoHaConfig, MissConfig, PeftConfig, VBLoRAConfig

from tests.support.engine import TinyEngine
from tests.support.peft_adapters import reference_logits, save_random_adapter
from tests.support.tiny_models import tiny_model, with_linears

TOLERANCE = 1e-3


def configs(targets: list[str]) -> dict[str, PeftConfig]:
    common = {"target_modules": targets, "task_type": "CAUSAL_LM"}
    return {
        "adalora": AdaLoraConfig(init_r=6, lora_alpha=12, total_step=10, **common),
        "delora": DeloraConfig(r=4, **common),
        "loha": LoHaConfig(r=3, alpha=8, **common),
        "loha_dense": LoHaConfig(r=6, alpha=8, **common),
        "miss": MissConfig(r=5, **common),
        "miss_bat": MissConfig(r=8, init_weights="bat", **common),
        "miss_mini": MissConfig(r=6, mini_r=4, init_weights="mini", **common),
        "vblora": VBLoRAConfig(
            r=4, num_vectors=20, vector_length=8, save_only_topk_weights=True, **common
        ),
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma"])
@pytest.mark.parametrize("chunk_size", [1000, 3])
def test_all_in_one_batch(family: str, chunk_size: int, tmp_path: Path) -> None:
    model = tiny_model(family)
    peft_model = with_linears(model)
    targets = ["c_attn", "c_fc"] if family == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    folders: list[Path | None] = [
        save_random_adapter(peft_model, config, tmp_path / name, seed=seed, strength=0.3)
        for seed, (name, config) in enumerate(configs(targets).items())
    ]
    folders.append(None)
    prompts = [[3 + row, 40 + 7 * row, 9, 11, 300 - row][: 2 + row % 4] for row in range(9)]
    logits = TinyEngine(model).run_logits(folders, prompts, chunk_size)
    base = reference_logits(model, None, prompts[0])
    for folder, token_ids, found in zip(folders, prompts, logits, strict=True):
        expected = reference_logits(peft_model, folder, token_ids)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
        if folder is not None and token_ids == prompts[0]:
            assert (expected - base).abs().max() > 10 * TOLERANCE
