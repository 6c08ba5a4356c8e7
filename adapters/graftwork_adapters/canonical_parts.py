"""Primitives that change something other than the output of one linear module.

As in canonical.py: tensors in the dtype of the file, or in float32 where folding would round, on
the CPU, contiguous.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class KeyValuePrefix:
    """Keys and values of virtual tokens, put before those of the real ones in every layer; they
    are as cached, so no rotation by position is applied to them."""

    keys: Tensor  # (num_layers, num_virtual_tokens, num_kv_heads, head_dim)
    values: Tensor  # the same

    @property
    def num_virtual_tokens(self) -> int:
        return self.keys.shape[1]

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values]


@dataclass(frozen=True, slots=True)
class GatedPrompt:
    """In one layer's attention: `gate * softmax(q keys^T / sqrt(head_dim)) values` of each head,
    where q is rotated by position as for the layer's own keys.

    It is added to the output of the heads, before the output projection, or, where `after_output`,
    to the output of the whole attention module, its heads laid side by side.
    """

    keys: Tensor  # (num_kv_heads, prompt_length, head_dim) float32
    values: Tensor  # the same
    gate: float
    after_output: bool = False

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values]


@dataclass(frozen=True, slots=True)
class Normalization:
    """LayerNorm over the hidden size."""

    weight: Tensor  # (hidden_size,)
    bias: Tensor  # (hidden_size,)

    EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """`h += after(f(before(h) down^T + down_bias) up^T + up_bias)` on a module's output h, with
    every scale folded into `up`."""

    down: Tensor  # (bottleneck_size, hidden_size)
    down_bias: Tensor  # (bottleneck_size,)
    up: Tensor  # (hidden_size, bottleneck_size)
    up_bias: Tensor  # (hidden_size,)
    non_linearity: str  # a name in bottleneck.NON_LINEARITIES
    before: Normalization | None = None
    after: Normalization | None = None

    def tensors(self) -> list[Tensor]:
        found = [self.down, self.down_bias, self.up, self.up_bias]
        for norm in (self.before, self.after):
            if norm is not None:
                found += [norm.weight, norm.bias]
        return found


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of an embedding or of the output head, by token, that replace the base's."""

    token_ids: Tensor  # (num_rows,) int64, each once
    rows: Tensor  # (num_rows, hidden_size)

    def tensors(self) -> list[Tensor]:
        return [self.rows]


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """Scores of the last token's final hidden state; one label alone is a reward."""

    weight: Tensor  # (num_labels, hidden_size)
    bias: Tensor | None  # (num_labels,)
    labels: tuple[str, ...]

    def tensors(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


Parameters = Mapping[str, Tensor]  # of one module, by their names in it


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """A layer of the base, by the names of its modules."""

    name: str  # such as "model.layers.0"
    attention: str  # "model.layers.0.self_attn"
    mlp: str  # "model.layers.0.mlp"
    num_heads: int
    num_kv_heads: int
    head_dim: int
