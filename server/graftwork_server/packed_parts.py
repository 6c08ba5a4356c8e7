"""What an adapter does beside the linear modules, ready to be applied to the rows of a step."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from graftwork_adapters.bottleneck import NON_LINEARITIES
from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.canonical_parts import (
    Bottleneck,
    ClassifierHead,
    Normalization,
    Parameters,
    TokenRows,
)
from torch import Tensor, nn
from torch.nn import functional

from graftwork_server.base_model import BaseModel, is_linear
from graftwork_server.fusion import FusedRmsNorm
from graftwork_server.kernels.build import kernels_loaded
from graftwork_server.kernels.gated_prompts import KernelGatedPrompt
from graftwork_server.kernels.low_rank import PackedLowRank
from graftwork_server.kernels.module_edits import KernelBottleneck, KernelNorm
from graftwork_server.packed_attention import PackedGatedPrompt, PackedPrefix

# From a module's input and output rows to its new output rows; the given ones may be overwritten.
RowEdit = Callable[[Tensor, Tensor], Tensor]
Edit = KernelNorm | KernelBottleneck | RowEdit


class ReplacedModule:
    """The adapter's own copy of a module takes the base's place."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - a RowEdit
        result: Tensor = self._module(x)
        return result


class ReplacedHeadRows:
    """Logits of some tokens, from the adapter's own rows of the output head."""

    def __init__(self, rows: TokenRows, base: BaseModel) -> None:
        self._token_ids = rows.token_ids.to(base.device)
        self._rows = rows.rows.to(base.device, base.dtype)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return y.index_copy_(-1, self._token_ids, functional.linear(x, self._rows))


class PackedBottleneck:
    """Adds a bottleneck's term to a module's output."""

    def __init__(self, bottleneck: Bottleneck, base: BaseModel) -> None:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(base.device, base.dtype)

        self._down, self._down_bias = move(bottleneck.down), move(bottleneck.down_bias)
        self._up, self._up_bias = move(bottleneck.up), move(bottleneck.up_bias)
        self._activation = NON_LINEARITIES[bottleneck.non_linearity]
        self._before = _norm(bottleneck.before, move)
        self._after = _norm(bottleneck.after, move)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - a RowEdit
        h = y if self._before is None else self._before(y)
        h = self._activation(functional.linear(h, self._down, self._down_bias))
        h = functional.linear(h, self._up, self._up_bias)
        if self._after is not None:
            h = self._after(h)
        return y + h


class PackedEmbedding:
    """Embeddings of tokens by the adapter's own rows, where it has them."""

    def __init__(self, module: nn.Module, token_ids: Tensor | None) -> None:
        self._module = module
        self._token_ids = token_ids  # (num_rows,) int64 ascending; None: every token

    def embed(self, token_ids: Tensor, embeddings: Tensor) -> None:
        """Overwrites (num_tokens, hidden_size) in place where the adapter's rows say so."""
        if self._token_ids is None:
            embeddings.copy_(self._module(token_ids))
            return
        rows = torch.searchsorted(self._token_ids, token_ids)
        rows.clamp_max_(self._token_ids.shape[0] - 1)
        found = torch.nonzero(self._token_ids[rows] == token_ids).squeeze(-1)
        if found.numel():
            embeddings[found] = self._module(rows[found])


@dataclass(frozen=True, slots=True)
class PackedClassifier:
    """A head over final hidden states."""

    weight: Tensor  # (num_labels, hidden_size)
    bias: Tensor | None

    @classmethod
    def pack(cls, head: ClassifierHead, base: BaseModel) -> "PackedClassifier":
        bias = None if head.bias is None else head.bias.to(base.device, base.dtype)
        return cls(head.weight.to(base.device, base.dtype), bias)

    def scores(self, hidden: Tensor) -> tuple[float, ...]:
        """Logits by label, from (hidden_size,)."""
        logits = functional.linear(hidden, self.weight, self.bias).float()
        return tuple(logits.tolist())


@dataclass(frozen=True, slots=True)
class PackedParts:
    edits: Mapping[str, Edit] = field(default_factory=dict)  # by module
    embedding: PackedEmbedding | None = None
    prefix: PackedPrefix | None = None
    # By layer; the first for torch, the second for the kernel.
    gated_prompts: Mapping[int, PackedGatedPrompt] = field(default_factory=dict)
    kernel_gated_prompts: Mapping[int, KernelGatedPrompt] = field(default_factory=dict)
    classifier: PackedClassifier | None = None
    num_bytes: int = 0


def pack_parts(
    adapter: LoweredAdapter, base: BaseModel, factor_dtype: torch.dtype | None
) -> PackedParts:
    """Everything of an adapter but its linear modules and virtual tokens, on the base's device;
    `factor_dtype` rounds the matrices of bottlenecks, None keeps the file's."""
    has_kernels = base.device.type == "cpu" and kernels_loaded()
    edits: dict[str, Edit] = {}
    embedding = None
    for name, parameters in adapter.replaced.items():
        module = _replacement(base.own_module(name), parameters, base)
        if name == base.embedding_name:
            embedding = PackedEmbedding(module, None)
        else:
            edits[name] = _kernel_norm(module) if has_kernels else ReplacedModule(module)
    if adapter.embedding_rows is not None:
        rows = adapter.embedding_rows
        token_ids, order = rows.token_ids.sort()
        module = base.own_module(base.embedding_name)
        module = _replacement(module, {"weight": rows.rows[order]}, base)
        embedding = PackedEmbedding(module, token_ids.to(base.device))
    if adapter.head_rows is not None:
        edits[base.head_name] = ReplacedHeadRows(adapter.head_rows, base)
    for name, bottleneck in adapter.bottlenecks.items():
        is_plain = bottleneck.before is None and bottleneck.after is None
        if has_kernels and is_plain:
            edits[name] = _kernel_bottleneck(bottleneck, factor_dtype or torch.float32)
        else:
            edits[name] = PackedBottleneck(bottleneck, base)
    prompts: dict[int, PackedGatedPrompt] = {}
    kernel_prompts: dict[int, KernelGatedPrompt] = {}
    for index, prompt in adapter.gated_prompts.items():
        if has_kernels and not prompt.after_output:
            kernel_prompts[index] = KernelGatedPrompt.pack(prompt)
            continue
        layer = base.layers[index]
        prompts[index] = PackedGatedPrompt(prompt, layer.num_heads, base.device, base.dtype)
        if prompt.after_output:
            edits[layer.attention] = prompts[index].add_pending
    prefix = None
    if adapter.prefix is not None:
        prefix = PackedPrefix.pack(adapter.prefix, base.device, base.dtype)
    head = adapter.classifier
    own = LoweredAdapter(
        prefix=adapter.prefix,
        bottlenecks=adapter.bottlenecks,
        replaced=adapter.replaced,
        embedding_rows=adapter.embedding_rows,
        head_rows=adapter.head_rows,
        classifier=head,
    )
    return PackedParts(
        edits=edits,
        embedding=embedding,
        prefix=prefix,
        gated_prompts=prompts,
        kernel_gated_prompts=kernel_prompts,
        classifier=None if head is None else PackedClassifier.pack(head, base),
        num_bytes=own.num_parameters * base.dtype.itemsize
        + sum(prompt.num_bytes for prompt in prompts.values())
        + sum(prompt.num_bytes for prompt in kernel_prompts.values()),
    )


def _kernel_norm(module: nn.Module) -> Edit:
    """For the kernel where it is a norm that the kernel computes."""
    if isinstance(module, FusedRmsNorm):
        return KernelNorm(module.weight.detach().float().contiguous(), module.offset, module.eps)
    return ReplacedModule(module)


def _kernel_bottleneck(bottleneck: Bottleneck, dtype: torch.dtype) -> KernelBottleneck:
    return KernelBottleneck(
        PackedLowRank.pack(bottleneck.down.to(dtype), bottleneck.up.to(dtype)),
        bottleneck.down_bias.float().contiguous(),
        bottleneck.up_bias.float().contiguous(),
        bottleneck.non_linearity,
    )


def _norm(
    norm: Normalization | None, move: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor] | None:
    if norm is None:
        return None
    weight, bias = move(norm.weight), move(norm.bias)
    return lambda x: functional.layer_norm(x, weight.shape, weight, bias, Normalization.EPSILON)


def _replacement(module: nn.Module, parameters: Parameters, base: BaseModel) -> nn.Module:
    """A module of the same kind with the adapter's parameters."""
    own = {
        name: nn.Parameter(tensor.to(base.device, base.dtype), requires_grad=False)
        for name, tensor in parameters.items()
    }
    if is_linear(module):  # the base's may be quantized, or store its weight transposed
        out_features, in_features = own["weight"].shape
        linear = nn.Linear(in_features, out_features, bias="bias" in own, device="meta")
        for name, parameter in own.items():
            setattr(linear, name, parameter)
        return linear
    clone = copy.copy(module)
    clone._parameters = dict(own)  # noqa: SLF001 - the base's parameters stay the base's
    clone._forward_hooks = OrderedDict()  # noqa: SLF001 - hooks edit the base's module
    return clone
