"""LoHa (Hyeon-Woo et al., 2022): `W += (B1 A1) * (B2 A2) * alpha / r`, multiplied by elements.

Keys in a file: "base_model.model." + module + one of `.hada_w1_a` (out, rank), `.hada_w1_b` (rank,
in), `.hada_w2_a`, `.hada_w2_b`.

An element is (sum_i a1_i b1_i) (sum_j a2_j b2_j) = sum_ij (a1_i a2_j) (b1_i b2_j): a pair of rank
r², whose factors are the Khatri-Rao products of the rows. Where r² is beyond the module's smaller
dimension, the change itself is the smaller form.
"""

from graftwork_adapters.canonical import KhatriRaoPair, LinearModule, LoweredAdapter, LowRank
from graftwork_adapters.canonical_linear import DenseDelta
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    check_rank_of,
    owned,
    read_targets,
    read_weight_file,
    whole_rank,
)
from graftwork_adapters.patterns import Matcher, PatternTable

_W1_A = "hada_w1_a"
_W1_B = "hada_w1_b"
_W2_A = "hada_w2_a"
_W2_B = "hada_w2_b"


def lower(source: LoweringInput) -> LoweredAdapter:
    config, matcher = source.config, Matcher()
    targets = read_targets(config, matcher)
    default_rank, default_alpha = config.positive_integer("r"), config.number("alpha")
    rank_pattern = PatternTable(config.numbers_by_pattern("rank_pattern"), matcher)
    alpha_pattern = PatternTable(config.numbers_by_pattern("alpha_pattern"), matcher)
    file = read_weight_file(source, targets, (_W1_A, _W1_B, _W2_A, _W2_B))
    deltas: dict[str, LowRank | DenseDelta] = {}
    for name, parts in file.modules.items():
        module = source.base.linear_modules[name]
        rank = whole_rank(rank_pattern.get(name, default_rank), name)
        _check(name, parts, rank, module)
        scaling = alpha_pattern.get(name, default_alpha) / rank
        if rank**2 > min(module.in_features, module.out_features):
            deltas[name] = _dense(parts, scaling)
        else:
            source.check_rank(rank**2, name)
            deltas[name] = _pair(parts, scaling)
    return file.with_deltas(deltas)


def _check(name: str, parts: Parts, rank: int, module: LinearModule) -> None:
    if _W1_B in parts and parts[_W1_B].ndim == 2:
        check_rank_of(name, parts[_W1_B].shape[0], rank)
    left, right = (module.out_features, rank), (rank, module.in_features)
    check_parts(name, parts, {_W1_A: left, _W1_B: right, _W2_A: left, _W2_B: right})


def _pair(parts: Parts, scaling: float) -> KhatriRaoPair:
    return KhatriRaoPair.of(
        owned(parts[_W1_B]),
        owned(parts[_W2_B]),
        owned(parts[_W1_A]) * scaling,
        owned(parts[_W2_A]),
    )


def _dense(parts: Parts, scaling: float) -> DenseDelta:
    first = parts[_W1_A].float() @ parts[_W1_B].float()  # (out_features, in_features)
    return DenseDelta(first * (parts[_W2_A].float() @ parts[_W2_B].float()) * scaling)


METHOD = Method(
    peft_type="LOHA",
    consumed=TARGET_FIELDS | {"alpha", "alpha_pattern", "r", "rank_pattern"},
    lower=lower,
    inert={
        "init_weights": "how training started",
        "module_dropout": "training only",
        "rank_dropout": "training only",
        "use_effective_conv2d": "convolutions only",
    },
)
