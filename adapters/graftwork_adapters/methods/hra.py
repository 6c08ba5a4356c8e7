"""HRA (Yuan et al., 2024): a chain of Householder reflections of a module's input.

Keys in a file: "base_model.model." + module + `.hra_u` (in, rank), a reflection a column.

With an orthonormal basis Q of the columns, the chain is I + Q C Q^T for a small C. So the weight
changes by the pair (Q^T, W Q C). C tends to zero as the adapter does, which is why rounding the
pair costs little; multiplying out the reflections one by one would subtract large numbers.
"""

import torch
from torch import Tensor

from graftwork_adapters.canonical import LoweredAdapter, LowRank
from graftwork_adapters.canonical_linear import DenseDelta
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    check_parts,
    check_rank_of,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher

_U = "hra_u"
_NO_CHANGE = 1e-9  # what float64 leaves of two equal reflections, one after the other


def lower(source: LoweringInput) -> LoweredAdapter:
    config, base = source.config, source.base
    rank, orthogonal = config.positive_integer("r"), config.boolean("apply_GS", default=False)
    targets = read_targets(config, Matcher())
    file = read_weight_file(source, targets, (_U,), bias=config.string("bias"))
    deltas: dict[str, LowRank | DenseDelta] = {}
    for name, parts in file.modules.items():
        vectors = parts[_U]
        if vectors.ndim == 2:
            check_rank_of(name, vectors.shape[1], rank)
        check_parts(name, parts, {_U: (base.linear_modules[name].in_features, rank)})
        source.check_rank(min(vectors.shape), name)
        basis, core = _change(vectors.double(), orthogonal, name)
        b = base.weight(name).double() @ (basis @ core)
        deltas[name] = LowRank(basis.T.float().contiguous(), b.float())
    return file.with_deltas(deltas)


def _change(vectors: Tensor, orthogonal: bool, name: str) -> tuple[Tensor, Tensor]:
    """Q (in_features, k) and C (k, k), k the smaller of rank and in_features, in float64."""
    basis, _ = torch.linalg.qr(vectors)
    units: list[Tensor] = []  # in coordinates of the basis, each (k,)
    for vector in (basis.T @ vectors).unbind(dim=1):
        direction = _orthogonal_to(units, vector) if orthogonal else vector
        norm = direction.norm()
        if norm == 0:
            raise InvalidArtifact(f"HRA of {name} reflects along a zero vector")
        units.append(direction / norm)
    identity = torch.eye(basis.shape[1], dtype=torch.float64)
    chain = identity
    for unit in units:
        chain = chain - 2 * torch.outer(chain @ unit, unit)
    core = chain - identity
    return basis, torch.zeros_like(core) if core.abs().max() < _NO_CHANGE else core


def _orthogonal_to(units: list[Tensor], vector: Tensor) -> Tensor:
    for unit in units:
        vector = vector - (unit @ vector) * unit
    return vector


METHOD = Method(
    peft_type="HRA",
    consumed=TARGET_FIELDS | {"apply_GS", "bias", "r"},
    lower=lower,
    inert={"init_weights": "how training started"},
)
