"""LoKr (Yeh et al., 2024): `W += kron(W1, W2) * alpha / r`, where a factor may be a low-rank
product.

Keys in a file: "base_model.model." + module + `.lokr_w1` (a, c), or `.lokr_w1_a` (a, rank) and
`.lokr_w1_b` (rank, c); and `.lokr_w2` (b, d), or `.lokr_w2_a` (b, rank) and `.lokr_w2_b` (rank, d),
where out = a * b and in = c * d.

A product of Kronecker products is the Kronecker product of products, so where a factor is low-rank
there is also a low-rank pair, which is used where it takes fewer multiplications.
"""

import torch
from torch import Tensor

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, LowRank, ModuleAdapter
from graftwork_adapters.canonical_linear import Kronecker
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    owned,
    read_targets,
    read_weight_file,
    whole_rank,
)
from graftwork_adapters.patterns import Matcher, PatternTable
from graftwork_adapters.peft_config import PeftConfig

_W1, _W1_A, _W1_B = "lokr_w1", "lokr_w1_a", "lokr_w1_b"
_W2, _W2_A, _W2_B = "lokr_w2", "lokr_w2_a", "lokr_w2_b"


def lower(source: LoweringInput) -> LoweredAdapter:
    config, matcher = source.config, Matcher()
    default_rank, default_alpha = config.positive_integer("r"), config.number("alpha")
    rank_pattern = PatternTable(config.numbers_by_pattern("rank_pattern"), matcher)
    alpha_pattern = PatternTable(config.numbers_by_pattern("alpha_pattern"), matcher)
    targets = read_targets(config, matcher)
    file = read_weight_file(source, targets, (_W1, _W1_A, _W1_B, _W2, _W2_A, _W2_B))
    modules: dict[str, ModuleAdapter] = {}
    for name, parts in file.modules.items():
        rank = whole_rank(rank_pattern.get(name, default_rank), name)
        check_parts(name, parts, _shapes(config, rank, source.base.linear_modules[name]))
        scaling = alpha_pattern.get(name, default_alpha) / rank
        modules[name] = _lower_module(parts, scaling, source.max_rank)
    return LoweredAdapter(modules)


def _shapes(config: PeftConfig, rank: int, module: LinearModule) -> dict[str, tuple[int, int]]:
    """The parts that PEFT makes of a config, and their shapes."""
    factor = config.get("decompose_factor", -1)
    if factor != -1:
        factor = config.positive_integer("decompose_factor")
    c, d = _two_factors(module.in_features, factor)
    a, b = _two_factors(module.out_features, factor)
    shapes: dict[str, tuple[int, int]] = {}
    if config.boolean("decompose_both", default=False) and rank < max(a, c) / 2:
        shapes |= {_W1_A: (a, rank), _W1_B: (rank, c)}
    else:
        shapes[_W1] = (a, c)
    if rank < max(b, d) / 2:
        shapes |= {_W2_A: (b, rank), _W2_B: (rank, d)}
    else:
        shapes[_W2] = (b, d)
    return shapes


def _two_factors(dimension: int, factor: int) -> tuple[int, int]:
    """`peft.tuners.lokr.layer.factorization`: a divisor as close to the root, or to `factor`, as
    is found from below, and its partner."""
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    limit = dimension if factor == -1 else factor
    low, high = 1, dimension
    for divisor in range(2, dimension + 1):
        if low >= high or divisor > limit:
            break
        if dimension % divisor == 0:
            low, high = divisor, dimension // divisor
    return min(low, high), max(low, high)


def _lower_module(parts: Parts, scaling: float, max_rank: int) -> ModuleAdapter:
    left, right = _product(parts, _W1), _product(parts, _W2)
    kronecker = Kronecker(left * scaling, right)
    (a, c), (b, d) = left.shape, right.shape
    if _W2 not in parts:
        right_a, right_b = parts[_W2_A].float(), parts[_W2_B].float()
        left_a, left_b = _factors_of_left(parts, left)
        rank = left_b.shape[0] * right_b.shape[0]
        # Multiplications a row: of the pair, and of the Kronecker product in its better order.
        cheapest = min(c * b * d + a * b * c, a * c * d + a * b * d)
        if rank <= max_rank and rank * (a * b + c * d) <= cheapest:
            pair = LowRank(torch.kron(left_b, right_b), torch.kron(left_a * scaling, right_a))
            return ModuleAdapter(low_rank=pair)
    return ModuleAdapter(added_term=kronecker)


def _product(parts: Parts, name: str) -> Tensor:
    if name in parts:
        return owned(parts[name])
    return parts[f"{name}_a"].float() @ parts[f"{name}_b"].float()


def _factors_of_left(parts: Parts, left: Tensor) -> tuple[Tensor, Tensor]:
    if _W1 not in parts:
        return parts[_W1_A].float(), parts[_W1_B].float()
    if left.shape[0] < left.shape[1]:
        return torch.eye(left.shape[0]), left
    return left, torch.eye(left.shape[1])


METHOD = Method(
    peft_type="LOKR",
    consumed=TARGET_FIELDS
    | {"alpha", "alpha_pattern", "decompose_both", "decompose_factor", "r", "rank_pattern"},
    lower=lower,
    inert={
        "init_weights": "how training started",
        "module_dropout": "training only",
        "rank_dropout": "training only",
        "rank_dropout_scale": "training only",
        "use_effective_conv2d": "convolutions only",
    },
)
