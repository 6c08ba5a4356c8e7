"""BOFT (Liu et al., 2024): rotates a module's input by blocks, in one or more orders of the
features (a butterfly), and scales its output, the bias outside.

Keys in a file: "base_model.model." + module + `.boft_R` (factors, blocks, size, size), whose
skew-symmetric halves Cayley's formula turns into rotations, and `.boft_s` (out, 1).
"""

import torch
from torch import Tensor

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, ModuleAdapter, OutputScale
from graftwork_adapters.canonical_linear import BlockRotation, BlockRotations
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.rotations import cayley
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

_R = "boft_R"
_S = "boft_s"


def lower(source: LoweringInput) -> LoweredAdapter:
    config = source.config
    targets = read_targets(config, Matcher())
    file = read_weight_file(source, targets, (_R, _S), bias=config.string("bias"))
    modules: dict[str, ModuleAdapter] = {}
    for name, parts in file.modules.items():
        module = source.base.linear_modules[name]
        count, size = _blocks(config, module, name)
        num_factors = _num_factors(config, name, parts, count, size)
        shapes = {_R: (num_factors, count, size, size), _S: (module.out_features, 1)}
        check_parts(name, parts, shapes)
        modules[name] = ModuleAdapter(
            input_transform=_butterfly(parts[_R].double()),
            output_scale=OutputScale(owned(parts[_S]).flatten()),
        )
    return file.with_biases(modules)


def _blocks(config: PeftConfig, module: LinearModule, name: str) -> tuple[int, int]:
    """How many, and of which size."""
    size = config.natural_number("boft_block_size")
    count = config.natural_number("boft_block_num")
    if min(size, count) != 0 or max(size, count) < 1:
        raise InvalidArtifact(
            "adapter_config.json: one of boft_block_size and boft_block_num must be positive, "
            "the other 0"
        )
    divisor = size or count
    if module.in_features % divisor:
        raise WrongBase(f"{name} has {module.in_features} inputs, no multiple of {divisor}")
    other = module.in_features // divisor
    return (other, size) if size else (count, other)


def _num_factors(config: PeftConfig, name: str, parts: Parts, count: int, size: int) -> int:
    """The config's, or 1: what PEFT takes, unsaid, where its CUDA extension is missing."""
    configured = config.positive_integer("boft_n_butterfly_factor")
    found = parts[_R].shape[0] if _R in parts and parts[_R].ndim == 4 else configured
    if found not in {1, configured}:
        raise InvalidArtifact(
            f"{name} has {found} butterfly factors, but adapter_config.json says {configured}"
        )
    if found > 1 and (size % 2 or found > 64 or count % 2 ** (found - 1)):
        raise InvalidArtifact(
            f"{name} has {count} blocks of size {size}, which {found} butterfly factors do not fit"
        )
    return found


def _butterfly(blocks: Tensor) -> BlockRotations:
    """blocks: (factors, count, size, size). The last factor acts on the input first."""
    num_factors, count, size, _ = blocks.shape
    matrices = cayley(0.5 * (blocks - blocks.mT)).float()
    if num_factors == 1:
        return BlockRotations((BlockRotation(matrices[0]),))
    return BlockRotations(
        tuple(
            BlockRotation(
                matrices[factor].contiguous(), _order(count * size, count >> factor, size)
            )
            for factor in reversed(range(num_factors))
        )
    )


def _order(features: int, num_groups: int, size: int) -> Tensor:
    """The order in which a factor sees the features: (features,) int64.

    In each of the groups, chunks of half a block go to their places: the even ones first.
    """
    half = size // 2
    chunks = torch.arange(features // num_groups).view(-1, half)
    sorted_chunks = torch.cat([chunks[0::2], chunks[1::2]]).flatten()
    offsets = torch.arange(num_groups).unsqueeze(1) * (features // num_groups)
    return (offsets + sorted_chunks).flatten().argsort()


METHOD = Method(
    peft_type="BOFT",
    consumed=TARGET_FIELDS
    | {"bias", "boft_block_num", "boft_block_size", "boft_n_butterfly_factor"},
    lower=lower,
    inert={
        "boft_dropout": "training only",
        "fan_in_fan_out": "how the base stores its weight, which PEFT sets right by itself",
        "init_weights": "how training started",
    },
)
