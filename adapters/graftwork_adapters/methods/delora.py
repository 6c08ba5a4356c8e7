"""DeLoRA (Bini et al., 2025): `W += B diag(lambda / (r |A_i| |B_i|)) A diag(w)`.

Keys in a file: "base_model.model." + module + one of `.delora_A` (rank, in), `.delora_B` (out,
rank), `.delora_lambda` (1) and `.delora_w_norm` (in), the norms of the base's columns when training
started.
"""

import torch

from graftwork_adapters.canonical import LoweredAdapter, LowRank
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    check_rank_of,
    read_targets,
    read_weight_file,
    whole_rank,
)
from graftwork_adapters.patterns import Matcher, PatternTable

_A = "delora_A"
_B = "delora_B"
_LAMBDA = "delora_lambda"
_W_NORM = "delora_w_norm"
_SMALLEST_NORM = 1e-4  # PEFT takes no norm for smaller


def lower(source: LoweringInput) -> LoweredAdapter:
    config, matcher = source.config, Matcher()
    targets = read_targets(config, matcher)
    default_rank = config.positive_integer("r")
    rank_pattern = PatternTable(config.numbers_by_pattern("rank_pattern"), matcher)
    parts_of_file = (_A, _B, _LAMBDA, _W_NORM)
    file = read_weight_file(source, targets, parts_of_file, bias=config.string("bias"))
    deltas: dict[str, LowRank] = {}
    for name, parts in file.modules.items():
        module = source.base.linear_modules[name]
        rank = whole_rank(rank_pattern.get(name, default_rank), name)
        if _A in parts and parts[_A].ndim == 2:
            check_rank_of(name, parts[_A].shape[0], rank)
        shapes = {
            _A: (rank, module.in_features),
            _B: (module.out_features, rank),
            _LAMBDA: (1,),
            _W_NORM: (module.in_features,),
        }
        check_parts(name, parts, shapes)
        source.check_rank(rank, name)
        deltas[name] = _fold(parts)
    return file.with_deltas(deltas)


def _fold(parts: Parts) -> LowRank:
    """The pair with the columns' norms in A and all other scales in B."""
    a, b = parts[_A].float(), parts[_B].float()  # (rank, in_features), (out_features, rank)
    norms = torch.linalg.vector_norm(a, dim=1).clamp(min=_SMALLEST_NORM) * torch.linalg.vector_norm(
        b, dim=0
    ).clamp(min=_SMALLEST_NORM)  # (rank,)
    scale = parts[_LAMBDA].float() / a.shape[0] / norms
    return LowRank((a * parts[_W_NORM].float()).contiguous(), (b * scale).contiguous())


METHOD = Method(
    peft_type="DELORA",
    consumed=TARGET_FIELDS | {"bias", "r", "rank_pattern"},
    lower=lower,
    inert={
        "delora_lambda": "where training started; the file holds the trained value",
        "lambda_pattern": "where training started; the file holds the trained value",
        "init_weights": "how training started",
        "module_dropout": "training only",
    },
)
