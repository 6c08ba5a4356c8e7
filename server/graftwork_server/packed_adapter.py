"""An adapter as the kernels want it: packed off the engine's thread, shared by host and slots."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from graftwork_adapters.canonical import LoweredAdapter, ModuleAdapter
from torch import Tensor

from graftwork_server.base_model import BaseModel
from graftwork_server.kernels.low_rank import PackedLowRank


@dataclass(frozen=True, slots=True)
class PackedModule:
    """What an adapter does to the output of one linear module: `y = scale * (y + low rank) + bias`,
    where y holds the base's own bias already."""

    low_rank: PackedLowRank | None
    scale: Tensor | None  # (out_features,) float32
    bias: Tensor | None  # (out_features,) float32

    @property
    def num_bytes(self) -> int:
        vectors = sum(v.nbytes for v in (self.scale, self.bias) if v is not None)
        return vectors + (self.low_rank.num_bytes if self.low_rank is not None else 0)


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """A lowered adapter in kernel layout."""

    modules: Mapping[str, PackedModule]
    virtual_tokens: Tensor | None  # (num_virtual_tokens, hidden_size)

    @property
    def num_bytes(self) -> int:
        own = 0 if self.virtual_tokens is None else self.virtual_tokens.nbytes
        return own + sum(module.num_bytes for module in self.modules.values())


def pack_adapter(
    adapter: LoweredAdapter, base: BaseModel, factor_dtype: torch.dtype | None
) -> PackedAdapter:
    """Packs every module; `factor_dtype` rounds the low-rank factors, None keeps the file's."""
    with torch.inference_mode():
        modules = {
            name: _pack_module(module, base, name, factor_dtype)
            for name, module in adapter.modules.items()
        }
        virtual = adapter.virtual_tokens
        if virtual is not None:
            virtual = virtual.to(base.device, base.dtype)
    return PackedAdapter(modules, virtual)


def _pack_module(
    module: ModuleAdapter, base: BaseModel, name: str, factor_dtype: torch.dtype | None
) -> PackedModule:
    low_rank = None
    if module.low_rank is not None:
        a, b = module.low_rank.a, module.low_rank.b
        dtype = factor_dtype or torch.promote_types(a.dtype, b.dtype)
        low_rank = PackedLowRank.pack(a.to(base.device, dtype), b.to(base.device, dtype))
    scale = module.output_scale.scale.float() if module.output_scale is not None else None
    bias = module.bias_delta.delta.float() if module.bias_delta is not None else None
    if scale is not None and base.linear_modules[name].has_bias:
        # The base has added its bias b before the scale: s (y - b) + b = s y + (1 - s) b.
        kept = (1 - scale) * base.bias(name).cpu()
        bias = kept if bias is None else bias + kept
    return PackedModule(low_rank, _to_device(scale, base), _to_device(bias, base))


def _to_device(vector: Tensor | None, base: BaseModel) -> Tensor | None:
    return None if vector is None else vector.to(base.device)
