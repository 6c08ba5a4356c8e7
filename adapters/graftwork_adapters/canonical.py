"""The canonical form of an adapter: what every checkpoint is lowered to, and all the engine knows.

A primitive changes one linear module of the base, `y = x W^T + b`, or the sequence before it.
Primitives hold tensors in the dtype of the file, or in float32 where folding a scale would round,
on the CPU, contiguous.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from graftwork_adapters.canonical_linear import AddedTerm, InputTransform, OutputTransform
from graftwork_adapters.canonical_parts import (
    Bottleneck,
    ClassifierHead,
    DecoderLayer,
    GatedPrompt,
    KeyValuePrefix,
    Parameters,
    TokenRows,
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """`y += (x A^T) B^T`, with every scale folded into B."""

    a: Tensor  # (rank, in_features)
    b: Tensor  # (out_features, rank)

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class KhatriRaoPair(LowRank):
    """A pair whose factors are products of smaller ones, which say as much in less memory: row
    i * r + j of A is first_a[i] * second_a[j], and column i * r + j of B first_b[:, i] *
    second_b[:, j]."""

    first_a: Tensor  # (r, in_features)
    second_a: Tensor  # the same
    first_b: Tensor  # (out_features, r)
    second_b: Tensor  # the same

    @classmethod
    def of(
        cls, first_a: Tensor, second_a: Tensor, first_b: Tensor, second_b: Tensor
    ) -> "KhatriRaoPair":
        a = (first_a.unsqueeze(1) * second_a.unsqueeze(0)).flatten(0, 1)
        b = (first_b.unsqueeze(2) * second_b.unsqueeze(1)).flatten(1)
        return cls(a, b, first_a, second_a, first_b, second_b)


@dataclass(frozen=True, slots=True)
class OutputScale:
    """`y = scale * (x W^T + low rank) + b`: the bias stays outside, as in DoRA."""

    scale: Tensor  # (out_features,)


@dataclass(frozen=True, slots=True)
class BiasDelta:
    """`b += delta`; outside any output scale."""

    delta: Tensor  # (out_features,)


@dataclass(frozen=True, slots=True)
class ModuleAdapter:
    """What an adapter does to one linear module, in this order: the input transform; the base, the
    low-rank pair and the added term; the output scale; the bias and its delta; the output
    transform."""

    low_rank: LowRank | None = None
    output_scale: OutputScale | None = None
    bias_delta: BiasDelta | None = None
    input_transform: InputTransform | None = None
    added_term: AddedTerm | None = None
    output_transform: OutputTransform | None = None

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        for part in (self.input_transform, self.added_term, self.output_transform):
            if part is not None:
                found += part.tensors()
        if self.low_rank is not None:
            found += [self.low_rank.a, self.low_rank.b]
        if self.output_scale is not None:
            found.append(self.output_scale.scale)
        if self.bias_delta is not None:
            found.append(self.bias_delta.delta)
        return found


@dataclass(frozen=True, slots=True)
class LoweredAdapter:
    """A whole adapter in canonical form."""

    modules: Mapping[str, ModuleAdapter] = field(default_factory=dict)  # by the base's module name
    virtual_tokens: Tensor | None = None  # (num_virtual_tokens, hidden_size): embeddings put first
    prefix: KeyValuePrefix | None = None  # instead of virtual_tokens
    gated_prompts: Mapping[int, GatedPrompt] = field(default_factory=dict)  # by layer
    bottlenecks: Mapping[str, Bottleneck] = field(default_factory=dict)  # by module
    # The adapter's own parameters of leaf modules: norms, linear modules and embeddings.
    replaced: Mapping[str, Parameters] = field(default_factory=dict)  # by module
    embedding_rows: TokenRows | None = None
    head_rows: TokenRows | None = None
    classifier: ClassifierHead | None = None

    @property
    def num_virtual_tokens(self) -> int:
        if self.prefix is not None:
            return self.prefix.num_virtual_tokens
        return 0 if self.virtual_tokens is None else self.virtual_tokens.shape[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a classifier; one of a reward model; none where the adapter generates text."""
        return () if self.classifier is None else self.classifier.labels

    @property
    def rank(self) -> int:
        """The largest rank, 0 where no module has a low-rank pair."""
        ranks = [m.low_rank.rank for m in self.modules.values() if m.low_rank is not None]
        return max(ranks, default=0)

    def tensors(self) -> list[Tensor]:
        """Each tensor once, however many modules share it."""
        found = [tensor for module in self.modules.values() for tensor in module.tensors()]
        if self.virtual_tokens is not None:
            found.append(self.virtual_tokens)
        for parameters in self.replaced.values():
            found += parameters.values()
        parts = [self.prefix, self.embedding_rows, self.head_rows, self.classifier]
        for part in [*self.gated_prompts.values(), *self.bottlenecks.values(), *parts]:
            if part is not None:
                found += part.tensors()
        return list({id(tensor): tensor for tensor in found}.values())

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors())


@dataclass(frozen=True, slots=True)
class LinearModule:
    """A linear module of the base that adapters may change."""

    in_features: int
    out_features: int
    has_bias: bool
    is_transposed: bool = False  # stores its weight as (in_features, out_features), as GPT-2 does


class BaseDescription(Protocol):
    """What lowering must know of the base; the server's loaded model provides it."""

    @property
    def digest(self) -> str:
        """ "sha256:..." over the quantized weights."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    @property
    def linear_modules(self) -> Mapping[str, LinearModule]:
        """By the name that `named_modules` of the causal LM gives, such as
        "model.layers.0.self_attn.q_proj"; includes GPT-2's Conv1D and the output head."""

    @property
    def model_type(self) -> str:
        """The family's name in transformers, such as "llama"."""

    @property
    def layers(self) -> Sequence[DecoderLayer]: ...

    @property
    def other_modules(self) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
        """Modules that are not linear but have parameters of their own, norms and embeddings: the
        shape of each parameter, by module and name."""

    @property
    def embedding_name(self) -> str:
        """The module that embeds tokens; one of `other_modules`."""

    @property
    def head_name(self) -> str:
        """The output head; one of `linear_modules`."""

    @property
    def has_tied_head(self) -> bool:
        """Whether embedding and output head are one tensor."""

    def parameter(self, module: str, name: str) -> Tensor:
        """A parameter of one of `other_modules`, float32."""

    def weight(self, name: str) -> Tensor:
        """The dequantized weight of a linear module: (out_features, in_features), float32."""

    def bias(self, name: str) -> Tensor:
        """The bias of a linear module with `has_bias`: (out_features,), float32."""
