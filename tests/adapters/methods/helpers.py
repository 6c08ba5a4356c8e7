"""One check for every method: rows of a mixed batch equal PEFT's forward for each alone."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tests.support.engine import TinyEngine
from tests.support.peft_adapters import lora_config, reference_logits, save_random_adapter

FAMILIES = ["llama", "gpt2", "qwen2", "gemma"]
TOLERANCE = 1e-3
PROMPTS = [
    [5, 6, 7, 8, 9, 10, 11, 12],
    [20, 21, 22],
    [30, 31, 32, 33, 34],
    [7, 7, 7, 9, 10, 11],
    [40],
]


def targets(model: nn.Module) -> list[str]:
    """Linear modules that every weight method may target."""
    return ["c_attn", "c_fc"] if model.config.model_type == "gpt2" else ["q_proj", "down_proj"]


def check_mixed_batch(
    model: nn.Module,
    folders: Sequence[Path],
    tmp_path: Path,
    *,
    chunk_sizes: Sequence[int] = (1000, 3),
    engine: TinyEngine | None = None,
) -> None:
    """The adapters, plain rows and a LoRA share every batch; each row's logits are PEFT's."""
    lora = save_random_adapter(
        model, lora_config(4, target_modules=targets(model)), tmp_path / "lora", seed=7
    )
    engine = engine or TinyEngine(model)
    rows: list[Path | None] = [*folders, None, lora, folders[0]]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(rows))]
    expected = [reference_logits(model, row, p) for row, p in zip(rows, prompts, strict=True)]
    base = [reference_logits(model, None, p) for p in prompts]
    for index, _ in enumerate(folders):
        effect = (expected[index] - base[index]).abs().max()
        assert effect > 10 * TOLERANCE, f"{folders[index].name} changes too little: {effect}"
    for chunk_size in chunk_sizes:
        for row, logits, wanted in zip(
            rows, engine.run_logits(rows, prompts, chunk_size), expected, strict=True
        ):
            torch.testing.assert_close(
                logits, wanted, atol=TOLERANCE, rtol=0, msg=lambda m, row=row: f"{row}: {m}"
            )
    assert engine.base.compute_digest() == engine.base.digest
