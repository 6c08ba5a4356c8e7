"""What the mixing benchmarks share: 16 chats of about 57 tokens, 64 new tokens each."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

NUM_REQUESTS = 16
NEW_TOKENS = 64
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

_TOPICS = [
    "how tides follow the moon", "why bread rises", "what a hash table is for",
    "how to prune an apple tree", "why the sky turns red at dusk", "how vaccines train immunity",
    "what makes a violin sound warm", "how a bill becomes law", "why cats purr",
    "how to plan a week of meals", "what inflation does to savings", "how glaciers carve valleys",
    "why we forget names", "how a compiler optimizes loops", "what jazz borrowed from blues",
    "how to brew coffee by hand",
]  # fmt: skip


def prompts(tokenizer: PreTrainedTokenizerBase, count: int = NUM_REQUESTS) -> list[list[int]]:
    """Token ids of `count` different chats, rendered with the model's template."""
    rendered = []
    for index in range(count):
        topic = _TOPICS[index % len(_TOPICS)]
        messages = [
            {"role": "system", "content": "You are a helpful assistant who answers clearly."},
            {
                "role": "user",
                "content": f"In a few short paragraphs, explain {topic}, with one example that a "
                f"ten year old would enjoy. This is question number {index + 1}.",
            },
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        rendered.append(list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return rendered


def distinct(token_ids: list[list[int]], *, salt: int) -> list[list[int]]:
    """Prompts that share no prefix with each other or with those of another salt."""
    return [[1000 + salt * 100 + row, *ids[1:]] for row, ids in enumerate(token_ids)]


def save_lora_adapters(
    model: nn.Module, folder: Path, count: int = NUM_REQUESTS, *, rank: int = 16
) -> list[Path]:
    """Random but effective LoRAs on all linear layers, as PEFT folders. `model` is rebuilt by PEFT:
    give a copy."""
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=ALL_LINEAR, task_type="CAUSAL_LM"
    )
    peft_model = get_peft_model(model, config)
    folders = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(noise * 0.01)
            elif "lora_A" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(noise * parameter.shape[1] ** -0.5)
        peft_model.save_pretrained(folder / f"lora-{index}")
        folders.append(folder / f"lora-{index}")
    return folders
