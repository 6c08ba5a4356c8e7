"""Prompt tuning (Lester et al., 2021): learned embeddings before the prompt's own."""

import torch

from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method

_EMBEDDINGS = "prompt_embeddings"


def lower(source: LoweringInput) -> LoweredAdapter:
    if source.config.integers("num_transformer_submodules") not in {None, (1,)}:
        raise UnsupportedField(
            "num_transformer_submodules", "other than 1", "1, as of a decoder-only model"
        )
    num_tokens = source.config.positive_integer("num_virtual_tokens")
    token_dim = source.config.positive_integer("token_dim")
    if source.tensors.keys() != {_EMBEDDINGS}:
        names = ", ".join(sorted(name[:80] for name in source.tensors)[:5])
        raise InvalidArtifact(f"a prompt tuning file holds {_EMBEDDINGS} alone, not {names}")
    embeddings = source.tensors[_EMBEDDINGS]  # (num_virtual_tokens, hidden_size)
    if embeddings.shape != (num_tokens, token_dim):
        raise InvalidArtifact(
            f"{_EMBEDDINGS} has shape {tuple(embeddings.shape)}, but adapter_config.json says "
            f"num_virtual_tokens {num_tokens} and token_dim {token_dim}"
        )
    if token_dim != source.base.hidden_size:
        raise WrongBase(
            f"made for a base of hidden size {token_dim}, not {source.base.hidden_size}"
        )
    if num_tokens >= source.base.context_length:
        raise InvalidArtifact(
            f"{num_tokens} virtual tokens leave no room for a prompt in the base's context of "
            f"{source.base.context_length}"
        )
    return LoweredAdapter(virtual_tokens=embeddings.clone(memory_format=torch.contiguous_format))


METHOD = Method(
    peft_type="PROMPT_TUNING",
    consumed=frozenset({"num_virtual_tokens", "token_dim", "num_transformer_submodules"}),
    lower=lower,
    inert={
        "num_attention_heads": "describes the base; prefix tuning needs it, prompt tuning does not",
        "num_layers": "describes the base; prefix tuning needs it, prompt tuning does not",
        "prompt_tuning_init": "how training started",
        "prompt_tuning_init_text": "how training started",
        "tokenizer_name_or_path": "how training started",
        "tokenizer_kwargs": "how training started",
    },
    required={"modules_to_save": (None, [])},
)
