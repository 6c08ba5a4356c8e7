"""Rows of one batch equal PEFT's forward for each alone, whatever the chunks of prefill."""

from pathlib import Path

import pytest
import torch

from tests.support.engine import TinyEngine
from tests.support.peft_adapters import (
    lora_config,
    prompt_tuning_config,
    reference_logits,
    save_random_adapter,
)
from tests.support.tiny_models import tiny_model

TOLERANCE = 1e-3
TARGETS = {"gpt2": ["c_attn", "c_fc"]}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30, 31, 32, 33, 34], [7, 7, 7, 9, 10, 11]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma"])
@pytest.mark.parametrize("chunk_size", [1000, 3])
def test_a_mixed_batch(family: str, chunk_size: int, tmp_path: Path) -> None:
    model = tiny_model(family)
    targets = TARGETS.get(family, ["q_proj", "down_proj"])
    lora = save_random_adapter(
        model, lora_config(4, target_modules=targets), tmp_path / "lora", seed=1, strength=0.2
    )
    prompt = save_random_adapter(model, prompt_tuning_config(5), tmp_path / "prompt", seed=2)
    engine = TinyEngine(model)
    folders = [lora, None, prompt, lora]
    for folder, token_ids, logits in zip(
        folders, PROMPTS, engine.run_logits(folders, PROMPTS, chunk_size), strict=True
    ):
        expected = reference_logits(model, folder, token_ids)
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
