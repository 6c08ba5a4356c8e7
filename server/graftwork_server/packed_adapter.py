"""An adapter as the kernels want it: packed off the engine's thread, shared by host and slots."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from graftwork_adapters.canonical import KhatriRaoPair, LoweredAdapter, ModuleAdapter
from graftwork_adapters.canonical_linear import (
    AddedTerm,
    BiasedScale,
    InputTransform,
    PairRotation,
)
from graftwork_adapters.pacing import paced
from torch import Tensor

from graftwork_server.base_model import BaseModel
from graftwork_server.kernels.build import kernels_loaded
from graftwork_server.kernels.input_transforms import KernelInput
from graftwork_server.kernels.low_rank import PackedKhatriRao, PackedLowRank
from graftwork_server.kernels.pair_rotation import KernelPairRotation
from graftwork_server.kernels.terms import KernelTerm, pack_kernel_term
from graftwork_server.packed_parts import PackedParts, pack_parts
from graftwork_server.packed_terms import PackedTerm, pack_term
from graftwork_server.packed_transforms import PackedInput, PackedPairRotation, pack_input


@dataclass(frozen=True, slots=True)
class PackedModule:
    """What an adapter does to one linear module: `y = base(input(x))`, base's own bias included;
    then `y = rotation(scale * (y + low rank + term) + bias)`."""

    low_rank: PackedLowRank | PackedKhatriRao | None
    scale: Tensor | None  # (out_features,) float32
    bias: Tensor | None  # (out_features,) float32
    # For the kernels, or, where they are not loaded, for torch.
    input: KernelInput | PackedInput | None = None
    term: KernelTerm | PackedTerm | None = None
    rotation: KernelPairRotation | PackedPairRotation | None = None

    @property
    def is_for_kernels(self) -> bool:
        return (
            isinstance(self.input, KernelInput | None)
            and isinstance(self.term, KernelTerm | None)
            and isinstance(self.rotation, KernelPairRotation | None)
        )

    def tensors(self) -> list[Tensor]:
        found = [vector for vector in (self.scale, self.bias) if vector is not None]
        for part in (self.input, self.term, self.rotation):
            if part is not None:
                found += part.tensors()
        return found


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """A lowered adapter in kernel layout."""

    modules: Mapping[str, PackedModule]
    virtual_tokens: Tensor | None  # (num_virtual_tokens, hidden_size)
    parts: PackedParts = field(default_factory=PackedParts)

    @property
    def num_bytes(self) -> int:
        """Each tensor of the linear modules counts once, also one that many of them share."""
        total = self.parts.num_bytes
        total += 0 if self.virtual_tokens is None else self.virtual_tokens.nbytes
        unique: dict[int, Tensor] = {}
        for module in self.modules.values():
            if module.low_rank is not None:
                total += module.low_rank.num_bytes
            unique.update((tensor.data_ptr(), tensor) for tensor in module.tensors())
        return total + sum(tensor.nbytes for tensor in unique.values())


def pack_adapter(
    adapter: LoweredAdapter, base: BaseModel, factor_dtype: torch.dtype | None
) -> PackedAdapter:
    """Packs every module; `factor_dtype` rounds the low-rank factors, None keeps the file's."""
    with torch.inference_mode():
        modules = {
            name: _pack_module(module, base, name, factor_dtype)
            for name, module in paced(adapter.modules.items())
        }
        virtual = adapter.virtual_tokens
        if virtual is not None:
            virtual = virtual.to(base.device, base.dtype)
        parts = pack_parts(adapter, base, factor_dtype)
    return PackedAdapter(modules, virtual, parts)


def _pack_module(
    module: ModuleAdapter, base: BaseModel, name: str, factor_dtype: torch.dtype | None
) -> PackedModule:
    has_kernels = base.device.type == "cpu" and kernels_loaded()
    low_rank = module.low_rank
    pair: PackedLowRank | PackedKhatriRao | None = None
    if has_kernels and isinstance(low_rank, KhatriRaoPair):
        pair = PackedKhatriRao.pack(low_rank, factor_dtype or torch.float32)
    elif low_rank is not None:
        dtype = factor_dtype or torch.promote_types(low_rank.a.dtype, low_rank.b.dtype)
        factors = low_rank.a.to(base.device, dtype), low_rank.b.to(base.device, dtype)
        pair = PackedLowRank.pack(*factors)
    scale = module.output_scale.scale.float() if module.output_scale is not None else None
    bias = module.bias_delta.delta.float() if module.bias_delta is not None else None
    if scale is not None and base.linear_modules[name].has_bias:
        # The base has added its bias b before the scale: s (y - b) + b = s y + (1 - s) b.
        kept = (1 - scale) * base.bias(name)
        bias = kept if bias is None else bias + kept
    rotation: KernelPairRotation | PackedPairRotation | None = None
    match module.output_transform:
        case BiasedScale(outer):
            scale = outer if scale is None else scale * outer
            bias = None if bias is None else bias * outer
        case PairRotation() if has_kernels:
            rotation = KernelPairRotation.pack(module.output_transform)
        case PairRotation():
            rotation = PackedPairRotation.pack(module.output_transform, base.device)
    return PackedModule(
        pair,
        _to_device(scale, base),
        _to_device(bias, base),
        input=_pack_input(module.input_transform, base, factor_dtype),
        term=_pack_term(module.added_term, base, name, factor_dtype),
        rotation=rotation,
    )


def _pack_input(
    transform: InputTransform | None, base: BaseModel, factor_dtype: torch.dtype | None
) -> KernelInput | PackedInput | None:
    if transform is None:
        return None
    if base.device.type == "cpu" and kernels_loaded():
        return KernelInput.pack(transform, factor_dtype or torch.float32)
    return pack_input(transform, base.device)


def _pack_term(
    term: AddedTerm | None, base: BaseModel, name: str, factor_dtype: torch.dtype | None
) -> KernelTerm | PackedTerm | None:
    if term is None:
        return None
    if base.device.type == "cpu" and kernels_loaded():
        in_features = base.linear_modules[name].in_features
        return pack_kernel_term(term, in_features, factor_dtype or torch.float32)
    return pack_term(term, base.device)


def _to_device(vector: Tensor | None, base: BaseModel) -> Tensor | None:
    return None if vector is None else vector.to(base.device)
