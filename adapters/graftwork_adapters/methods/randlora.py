"""RandLoRA (Albert et al., 2025): adds a sum of scaled random products, of full rank, to a weight.

Keys in a file: "base_model.model." + module + `.randlora_lambda` (rank, bases) and
`.randlora_gamma` (bases, smaller of in and out); with save_projection also "base_model.randlora_A"
(rank, 1, smaller) and "base_model.randlora_B" (larger, bases, rank), for the largest modules.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, ModuleAdapter
from graftwork_adapters.canonical_linear import SharedBases
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.projections import check_projection_rank, take_projections
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    owned,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher
from graftwork_adapters.peft_config import PeftConfig
from graftwork_adapters.shared_tensors import SharedTensors, share

_LAMBDA = "randlora_lambda"
_GAMMA = "randlora_gamma"
_A = "randlora_A"
_B = "randlora_B"


def lower(source: LoweringInput) -> LoweredAdapter:
    config = source.config
    rank, alpha = config.positive_integer("r"), config.number("randlora_alpha")
    check_projection_rank(rank, source.max_rank)
    saved, tensors = take_projections(source, _A, _B)
    file = read_weight_file(
        source,
        read_targets(config, Matcher()),
        (_LAMBDA, _GAMMA),
        bias=config.string("bias"),
        tensors=tensors,
    )
    linear_modules = source.base.linear_modules
    for name, parts in file.modules.items():
        least = _least(linear_modules[name])
        num_bases = -(-least // rank)
        check_parts(name, parts, {_LAMBDA: (rank, num_bases), _GAMMA: (num_bases, least)})
    shared = _projections(config, rank, saved, [linear_modules[name] for name in file.modules])
    return file.with_biases(
        {
            name: _lower_module(parts, shared, alpha / rank, linear_modules[name])
            for name, parts in file.modules.items()
        }
    )


def _lower_module(
    parts: Parts, shared: SharedTensors, scaling: float, module: LinearModule
) -> ModuleAdapter:
    row_scale, column_scale = owned(parts[_LAMBDA]) * scaling, owned(parts[_GAMMA])
    shape = module.out_features, module.in_features
    return ModuleAdapter(added_term=SharedBases(shared, row_scale, column_scale, *shape))


def _least(module: LinearModule) -> int:
    return min(module.in_features, module.out_features)


def _projections(
    config: PeftConfig,
    rank: int,
    saved: tuple[Tensor, Tensor] | None,
    modules: Iterable[LinearModule],
) -> SharedTensors:
    """Those of the file, or as PEFT draws them for the largest of the modules; the first without
    its middle dimension."""
    out_features = max(module.out_features for module in modules)
    in_features = max(module.in_features for module in modules)
    least, most = min(in_features, out_features), max(in_features, out_features)
    a_shape, b_shape = (rank, 1, least), (most, -(-least // rank), rank)
    if saved is not None:
        shapes = {_A: a_shape, _B: b_shape}
        check_parts("the base", dict(zip(shapes, saved, strict=True)), shapes)
        a, b = saved
    else:
        generator = torch.Generator().manual_seed(config.seed("projection_prng_key"))
        if config.boolean("very_sparse", default=False):
            sparsity = math.sqrt(least)
            a, b = (_sparse(shape, sparsity, generator) for shape in (a_shape, b_shape))
        elif config.boolean("sparse", default=False):
            a, b = (_sparse(shape, 3.0, generator) for shape in (a_shape, b_shape))
        else:
            a, b = _uniform(a_shape, b_shape, generator)
    return share(a.squeeze(1), b)


def _sparse(shape: tuple[int, int, int], sparsity: float, generator: torch.Generator) -> Tensor:
    """-1, 0 and 1, over their standard deviation."""
    drawn = torch.rand(shape, generator=generator)
    signs = torch.zeros(shape)
    signs[drawn < 1 / (2 * sparsity)] = -1
    signs[drawn > 1 - 1 / (2 * sparsity)] = 1
    return signs / signs.std()


def _uniform(
    a_shape: tuple[int, int, int], b_shape: tuple[int, int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Drawn in bfloat16, base after base, each tensor then over its standard deviation."""

    def draw(shape: tuple[int, int, int]) -> Tensor:
        # torch.nn.init.kaiming_uniform_ with a = sqrt(5): the fan in is all but the first dimension
        bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + 5)) / math.sqrt(shape[1] * shape[2]))
        return torch.empty(shape, dtype=torch.bfloat16).uniform_(-bound, bound, generator=generator)

    a = draw(a_shape)
    most, num_bases, rank = b_shape
    b = torch.cat([draw((most, 1, rank)) for _ in range(num_bases)], dim=1)
    return a / a.std(), b / b.std()


METHOD = Method(
    peft_type="RANDLORA",
    consumed=TARGET_FIELDS
    | {
        "bias",
        "projection_prng_key",
        "r",
        "randlora_alpha",
        "save_projection",
        "sparse",
        "very_sparse",
    },
    lower=lower,
    inert={
        "fan_in_fan_out": "how the base stores its weight, which PEFT sets right by itself",
        "init_weights": "how training started",
        "randlora_dropout": "training only",
    },
)
