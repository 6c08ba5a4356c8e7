"""OFT (Qiu et al., 2023): rotates a module's input by blocks, without touching its weight.

Keys in a file: "base_model.model." + module + `.oft_R.weight` (blocks, size * (size - 1) / 2): the
upper triangles of skew-symmetric matrices, from which Cayley's formula makes rotations; one block
where all share it.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, ModuleAdapter
from graftwork_adapters.canonical_linear import BlockRotation, BlockRotations
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.rotations import cayley
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher
from graftwork_adapters.peft_config import PeftConfig

_R = "oft_R.weight"
_MAX_NEUMANN_TERMS = 64


@dataclass(frozen=True, slots=True)
class _Settings:
    num_blocks: int  # 0: from the block size
    block_size: int  # 0: from the number of blocks
    share: bool
    neumann_terms: int | None  # None: Cayley's formula itself
    largest_norm: float | None  # of all blocks together; None: free

    @classmethod
    def parse(cls, config: PeftConfig) -> "_Settings":
        num_blocks = config.natural_number("r")
        block_size = config.natural_number("oft_block_size")
        if min(num_blocks, block_size) != 0 or max(num_blocks, block_size) < 1:
            raise InvalidArtifact(
                "adapter_config.json: one of r and oft_block_size must be positive, the other 0"
            )
        neumann_terms = None
        if config.boolean("use_cayley_neumann", default=True):
            _check_version(config)
            neumann_terms = config.positive_integer("num_cayley_neumann_terms")
            if neumann_terms > _MAX_NEUMANN_TERMS:
                raise UnsupportedField(
                    "num_cayley_neumann_terms", str(neumann_terms), f"up to {_MAX_NEUMANN_TERMS}"
                )
        constrained = config.boolean("coft", default=False)
        return cls(
            num_blocks,
            block_size,
            share=config.boolean("block_share", default=False),
            neumann_terms=neumann_terms,
            largest_norm=config.number("eps") if constrained else None,
        )

    def blocks_of(self, module: LinearModule) -> tuple[int, int]:
        """How many, and of which size: a divisor near to what the config says, as in PEFT."""
        if self.block_size:
            size = _nearest_divisor(module.in_features, self.block_size)
            return module.in_features // size, size
        count = _nearest_divisor(module.in_features, self.num_blocks)
        return count, module.in_features // count


def lower(source: LoweringInput) -> LoweredAdapter:
    settings = _Settings.parse(source.config)
    targets = read_targets(source.config, Matcher())
    file = read_weight_file(source, targets, (_R,), bias=source.config.string("bias"))
    linear_modules = source.base.linear_modules
    return file.with_biases(
        {
            name: ModuleAdapter(
                input_transform=_rotations(name, parts, linear_modules[name], settings)
            )
            for name, parts in file.modules.items()
        }
    )


def _rotations(
    name: str, parts: Parts, module: LinearModule, settings: _Settings
) -> BlockRotations:
    count, size = settings.blocks_of(module)
    num_saved = 1 if settings.share else count
    check_parts(name, parts, {_R: (num_saved, size * (size - 1) // 2)})
    skew = torch.zeros(num_saved, size, size, dtype=torch.float64)
    row, column = torch.triu_indices(size, size, 1)
    skew[:, row, column] = parts[_R].double()
    skew = skew - skew.mT
    if settings.largest_norm is not None:
        limit = settings.largest_norm / num_saved**0.5  # of each block
        norm = torch.linalg.matrix_norm(skew, keepdim=True)
        skew = torch.where(norm <= limit, skew, skew * (limit / norm))
    terms = settings.neumann_terms
    matrices = cayley(skew) if terms is None else _cayley_series(skew, terms)
    return BlockRotations((BlockRotation(matrices.float()),))


def _cayley_series(skew: Tensor, num_terms: int) -> Tensor:
    """The formula's power series as PEFT cuts it: twice each power, but the last power once."""
    result = torch.eye(skew.shape[-1], dtype=skew.dtype).repeat(len(skew), 1, 1)
    if num_terms == 1:
        return result
    result += 2 * skew
    if num_terms == 2:
        return result
    power = skew @ skew
    result += 2 * power
    for _ in range(3, num_terms - 1):
        power = power @ skew
        result += 2 * power
    return result + power @ skew


def _nearest_divisor(features: int, wanted: int) -> int:
    if wanted >= features:
        return features
    higher = next(d for d in range(wanted, features + 1) if features % d == 0)
    lower = next(d for d in range(wanted, 0, -1) if features % d == 0)
    return lower if wanted - lower <= higher - wanted else higher


def _check_version(config: PeftConfig) -> None:
    """PEFT 0.18 changed what the series means."""
    version = config.get("peft_version", None)
    match = re.match(r"(\d{1,9})\.(\d{1,9})", version) if isinstance(version, str) else None
    if match is None or (int(match[1]), int(match[2])) < (0, 18):
        raise UnsupportedField(
            "use_cayley_neumann",
            "true, in a file of a PEFT before 0.18",
            "files of PEFT 0.18 or newer, or false",
        )


METHOD = Method(
    peft_type="OFT",
    consumed=TARGET_FIELDS
    | {
        "bias",
        "block_share",
        "coft",
        "eps",
        "num_cayley_neumann_terms",
        "oft_block_size",
        "peft_version",
        "r",
        "use_cayley_neumann",
    },
    lower=lower,
    inert={
        "fan_in_fan_out": "how the base stores its weight, which PEFT sets right by itself",
        "init_weights": "how training started",
        "module_dropout": "training only",
    },
)
