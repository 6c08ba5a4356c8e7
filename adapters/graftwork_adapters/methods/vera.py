"""VeRA (Kopiczko et al., 2024): `W += diag(b) B diag(d) A`, where A and B are random, and common to
all modules of all adapters of a seed.

Keys in a file: "base_model.model." + module + `.vera_lambda_d` (rank) and `.vera_lambda_b` (out);
with save_projection also "base_model.vera_A" (rank, largest in) and "base_model.vera_B" (largest
out, rank). A module uses the first columns of A and the first rows of B.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, ModuleAdapter
from graftwork_adapters.canonical_linear import SharedLowRank
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.projections import check_projection_rank, take_projections
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    check_parts,
    owned,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher
from graftwork_adapters.shared_tensors import SharedTensors, share

_D = "vera_lambda_d"
_B = "vera_lambda_b"


def lower(source: LoweringInput) -> LoweredAdapter:
    config = source.config
    rank, targets = config.positive_integer("r"), read_targets(config, Matcher())
    check_projection_rank(rank, source.max_rank)
    saved, tensors = take_projections(source, "vera_A", "vera_B")
    file = read_weight_file(source, targets, (_D, _B), bias=config.string("bias"), tensors=tensors)
    linear_modules = source.base.linear_modules
    for name, parts in file.modules.items():
        check_parts(name, parts, {_D: (rank,), _B: (linear_modules[name].out_features,)})
    shared = _projections(source, rank, saved, [linear_modules[name] for name in file.modules])
    return file.with_biases(
        {
            name: ModuleAdapter(
                added_term=SharedLowRank(shared, owned(parts[_D]), owned(parts[_B]))
            )
            for name, parts in file.modules.items()
        }
    )


def _projections(
    source: LoweringInput,
    rank: int,
    saved: tuple[Tensor, Tensor] | None,
    modules: Iterable[LinearModule],
) -> SharedTensors:
    """Those of the file, or as PEFT draws them for the largest of the modules."""
    in_features = max(module.in_features for module in modules)
    out_features = max(module.out_features for module in modules)
    if saved is not None:
        shapes = {"vera_A": (rank, in_features), "vera_B": (out_features, rank)}
        check_parts("the base", dict(zip(shapes, saved, strict=True)), shapes)
        return share(*saved)
    generator = torch.Generator().manual_seed(source.config.seed("projection_prng_key"))
    return share(
        _uniform((rank, in_features), generator), _uniform((out_features, rank), generator)
    )


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Kaiming's bound for the second dimension."""
    bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


METHOD = Method(
    peft_type="VERA",
    consumed=TARGET_FIELDS | {"bias", "projection_prng_key", "r", "save_projection"},
    lower=lower,
    inert={
        "d_initial": "how training started",
        "fan_in_fan_out": "how the base stores its weight, which PEFT sets right by itself",
        "init_weights": "how training started",
        "vera_dropout": "training only",
    },
)
