"""Several adapters as one: the weighted sum of what each adds to the base.

It is exact for what adds up: low-rank pairs, added terms and bias deltas. Everything else, such as
a scale of the output, is refused.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_adapters.canonical import BiasDelta, LoweredAdapter, LowRank, ModuleAdapter
from graftwork_adapters.canonical_linear import (
    AddedTerm,
    Circulant,
    DenseDelta,
    Kronecker,
    SharedBases,
    SharedLowRank,
    SparseDelta,
    SpectralDelta,
)
from graftwork_adapters.errors import CannotCompose, ZeroEffect
from graftwork_adapters.lowering import module_has_effect

_LINEAR_PARTS = frozenset({"low_rank", "bias_delta", "added_term"})
# Where the name of a part's field does not say enough.
_SHOWN = {"replaced": "replaced modules"}


@dataclass(frozen=True, slots=True)
class Component:
    """One of the adapters of a composition."""

    selector: str  # "name@version"
    method: str  # PEFT's name
    digest: str
    weight: float


def composition_digest(components: Sequence[Component]) -> str:
    """ "sha256:..." over the components and their weights, whatever their order."""
    lines = sorted(f"{part.digest} {part.weight.hex()}\n" for part in components)
    whole = hashlib.sha256(b"graftwork composition v1\n")
    for line in lines:
        whole.update(line.encode())
    return f"sha256:{whole.hexdigest()}"


def compose(parts: Sequence[tuple[Component, LoweredAdapter]]) -> LoweredAdapter:
    """The weighted sum of lowered adapters. Raises CannotCompose, and ZeroEffect where nothing is
    left of them."""
    modules: dict[str, list[tuple[Component, ModuleAdapter]]] = {}
    for component, adapter in parts:
        _check_adds_up(component, adapter)
        for name, module in adapter.modules.items():
            modules.setdefault(name, []).append((component, module))
    whole = LoweredAdapter({name: _sum(name, found) for name, found in sorted(modules.items())})
    if not any(module_has_effect(module) for module in whole.modules.values()):
        raise ZeroEffect
    return whole


def _check_adds_up(component: Component, adapter: LoweredAdapter) -> None:
    present = {
        field.name
        for field in dataclasses.fields(adapter)
        if field.name != "modules" and _is_there(getattr(adapter, field.name))
    }
    for module in adapter.modules.values():
        names = (field.name for field in dataclasses.fields(module))
        present |= {name for name in names if _is_there(getattr(module, name))} - _LINEAR_PARTS
    if present:
        shown = sorted(_SHOWN.get(name, name.replace("_", " ")) for name in present)
        raise CannotCompose(
            component.selector,
            component.method,
            f"its {' and '.join(shown)} cannot be scaled or added up",
        )


def _is_there(part: object) -> bool:
    is_empty = isinstance(part, Mapping | Sequence) and not part
    return part is not None and not is_empty


def _sum(name: str, found: Sequence[tuple[Component, ModuleAdapter]]) -> ModuleAdapter:
    pairs = [(c.weight, m.low_rank) for c, m in found if m.low_rank is not None]
    biases = [c.weight * m.bias_delta.delta for c, m in found if m.bias_delta is not None]
    terms = [(c, m.added_term) for c, m in found if m.added_term is not None]
    return ModuleAdapter(
        low_rank=_concatenated(pairs) if pairs else None,
        bias_delta=BiasDelta(_total(biases)) if biases else None,
        added_term=_sum_of_terms(name, terms) if terms else None,
    )


def _concatenated(pairs: Sequence[tuple[float, LowRank]]) -> LowRank:
    """The pairs one beside the other, with the weights in B."""
    a = torch.cat([pair.a.float() for _, pair in pairs])  # (sum of ranks, in_features)
    b = torch.cat([pair.b.float() * weight for weight, pair in pairs], dim=1)
    return LowRank(a, b.contiguous())


def _sum_of_terms(name: str, terms: Sequence[tuple[Component, AddedTerm]]) -> AddedTerm:
    scaled = [_scaled(term, component.weight) for component, term in terms]
    if len(scaled) == 1:
        return scaled[0]
    deltas = [term.delta for term in scaled if isinstance(term, DenseDelta)]
    if len(deltas) == len(scaled):
        return DenseDelta(_total(deltas))
    kernels = [term.kernels for term in scaled if isinstance(term, Circulant)]
    if len(kernels) == len(scaled) and len({tensor.shape for tensor in kernels}) == 1:
        return Circulant(_total(kernels))
    component = terms[1][0]
    others = ", ".join(sorted({c.method for c, _ in terms if c is not component}))
    raise CannotCompose(
        component.selector, component.method, f"{name} is changed by {others} as well"
    )


def _scaled(term: AddedTerm, weight: float) -> AddedTerm:
    match term:
        case SharedLowRank():
            return dataclasses.replace(term, b_scale=term.b_scale * weight)
        case SharedBases():
            return dataclasses.replace(term, row_scale=term.row_scale * weight)
        case Kronecker():
            return dataclasses.replace(term, left=term.left * weight)
        case Circulant():
            return Circulant(term.kernels * weight)
        case DenseDelta():
            return DenseDelta(term.delta * weight)
        case SparseDelta() | SpectralDelta():
            return dataclasses.replace(term, values=term.values * weight)


def _total(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(dim=0)
