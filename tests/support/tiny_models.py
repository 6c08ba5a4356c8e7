"""Tiny random models of the tested families, with biases and norms that are not trivial."""

import copy

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

VOCAB_SIZE = 400
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}


def tiny_model(family: str, **changes: object) -> nn.Module:
    """family: "llama", "gpt2", "qwen2", "gemma" or "gemma2"; `changes` go to its config."""
    torch.manual_seed(0)
    if family == "gpt2":
        config = GPT2Config(
            **{
                "vocab_size": VOCAB_SIZE,
                "n_positions": 128,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "bos_token_id": 0,
                "eos_token_id": 2,
                "pad_token_id": 1,
                **changes,
            }
        )
        return randomize(GPT2LMHeadModel(config))
    kinds = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "gemma": (GemmaConfig, GemmaForCausalLM),
        "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    }
    config_class, model_class = kinds[family]
    fields = {**SIZES, **changes}
    if family == "qwen2":
        fields.pop("head_dim")
    return randomize(model_class(config_class(**fields)))


def randomize(model: nn.Module) -> nn.Module:
    """Biases and norms too: transformers starts them where a wrong sign would go unseen."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model.eval()


def with_linears(base: nn.Module) -> nn.Module:
    """A copy whose GPT-2 layers are equivalent `nn.Linear`s, for methods that PEFT refuses on
    Conv1D."""
    model = copy.deepcopy(base)
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(*module.weight.shape)
            linear.load_state_dict({"weight": module.weight.T, "bias": module.bias})
            model.set_submodule(name, linear)
    return model
