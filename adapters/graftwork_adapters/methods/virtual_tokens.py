"""What the methods that put virtual tokens before a prompt have in common."""

from collections.abc import Iterable

from torch import Tensor

from graftwork_adapters.canonical import BaseDescription
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from graftwork_adapters.methods.base import LoweringInput
from graftwork_adapters.saved_parts import owned

EMBEDDINGS = "prompt_embeddings"
SAVED_PREFIX = "base_model."  # PEFT wraps the base once less than for other methods

CONSUMED = frozenset({"num_virtual_tokens", "token_dim", "num_transformer_submodules"})
DESCRIBES_THE_BASE = {
    "num_attention_heads": "describes the base; only prefix tuning needs it",
    "num_layers": "describes the base; only prefix tuning needs it",
}
ENCODER_NOT_NEEDED = "the file holds what the encoder put out, not the encoder"


def check_tensors(source: LoweringInput, names: Iterable[str]) -> None:
    """The file holds these tensors and no others."""
    expected = set(names)
    if source.tensors.keys() != expected:
        found = ", ".join(sorted(name[:80] for name in source.tensors)[:5]) or "none"
        raise InvalidArtifact(
            f"a {source.config.peft_type} file holds {', '.join(sorted(expected))} alone, "
            f"not {found}"
        )


def num_virtual_tokens(source: LoweringInput) -> int:
    """Their configured number, which leaves room for a prompt."""
    if source.config.integers("num_transformer_submodules") not in {None, (1,)}:
        raise UnsupportedField(
            "num_transformer_submodules", "other than 1", "1, as of a decoder-only model"
        )
    count = source.config.positive_integer("num_virtual_tokens")
    if count >= source.base.context_length:
        raise InvalidArtifact(
            f"{count} virtual tokens leave no room for a prompt in the base's context of "
            f"{source.base.context_length}"
        )
    return count


def check_token_dim(source: LoweringInput) -> int:
    """The configured width, which is the base's hidden size."""
    token_dim = source.config.positive_integer("token_dim")
    _check_hidden_size(token_dim, source.base)
    return token_dim


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tensor.shape != shape:
        raise InvalidArtifact(
            f"{name} has shape {tuple(tensor.shape)}, but adapter_config.json says {meaning}: "
            f"{shape}"
        )


def embeddings_alone(source: LoweringInput) -> Tensor:
    """The virtual tokens of a file that holds nothing else: (num_virtual_tokens, hidden_size)."""
    count = num_virtual_tokens(source)
    token_dim = source.config.positive_integer("token_dim")
    check_tensors(source, [EMBEDDINGS])
    embeddings = source.tensors[EMBEDDINGS]
    meaning = "num_virtual_tokens and token_dim"
    check_shape(EMBEDDINGS, embeddings, (count, token_dim), meaning)
    _check_hidden_size(token_dim, source.base)
    return owned(embeddings)


def _check_hidden_size(token_dim: int, base: BaseDescription) -> None:
    if token_dim != base.hidden_size:
        raise WrongBase(f"made for a base of hidden size {token_dim}, not {base.hidden_size}")
