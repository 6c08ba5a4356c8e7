"""Tiny random models of the families that the server runs, with a byte-level tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

FAMILIES = ("llama", "qwen2", "gemma2", "gemma3", "gpt2")
CONTEXT = 512

_END = "<|end|>"
_START = "<|start|>"
_VOCAB_SIZE = 352  # of the tokenizer
_NUM_LOGITS = 360  # a few ids have no token, as in many published models
_CORPUS = (
    "The quick brown fox jumps over the lazy dog while the rain falls on the old stone bridge. "
    "A model answers one question after another, and each answer takes a few short words. "
    '{"name": "value", "list": [1, 2, 3], "yes": true, "no": false}'
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def save_tiny_model(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes a two-layer model of a family, with weights large enough to have opinions."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load_reference(folder: Path) -> PreTrainedModel:
    """The same model as transformers runs it, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows every byte, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [_CORPUS],
        trainers.BpeTrainer(
            vocab_size=_VOCAB_SIZE,
            special_tokens=[_END, _START],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, chat_template=_CHAT_TEMPLATE
    )


def _config(family: str) -> PreTrainedConfig:
    common = {
        "vocab_size": _NUM_LOGITS,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
    }
    if family == "gpt2":
        return GPT2Config(n_embd=64, n_head=4, n_layer=2, n_positions=CONTEXT, **common)
    common |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    windows = {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    match family:
        case "llama":
            return LlamaConfig(**common)
        case "qwen2":
            return Qwen2Config(**common)
        case "gemma2":
            return Gemma2Config(**common, **windows)
        case "gemma3":
            return Gemma3TextConfig(**common, **windows)
    raise ValueError(f"no such family: {family}")
