"""MiSS (Kang and Yin, 2024): one block, added to the weight again and again along its input.

`y += sum over shards of x, M`: the shards are r inputs wide, so that A is the identity tiled along
the input and B is M transposed. Keys in a file: "base_model.model." + module + `.miss_block`, which
is (r, out), for "mini" (r, mini_r), tiled along the output, and for "bat" (out / r, r, r).

"bat" multiplies with the weight too: the shard W_oi of the weight becomes W_oi + W_oi M_o + M_o,
which only a dense change holds.
"""

import torch
from torch import Tensor

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, LowRank
from graftwork_adapters.canonical_linear import DenseDelta
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    check_parts,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher

_BLOCK = "miss_block"


def lower(source: LoweringInput) -> LoweredAdapter:
    config = source.config
    variant = config.get("init_weights", True)
    if not isinstance(variant, bool) and variant not in ("bat", "mini"):
        raise UnsupportedField("init_weights", repr(variant)[:80], 'true, false, "bat" or "mini"')
    rank = config.positive_integer("r")
    mini_rank = config.positive_integer("mini_r") if variant == "mini" else None
    file = read_weight_file(
        source, read_targets(config, Matcher()), (_BLOCK,), bias=config.string("bias")
    )
    deltas: dict[str, LowRank | DenseDelta] = {}
    for name, parts in file.modules.items():
        module = source.base.linear_modules[name]
        if rank > module.in_features:
            raise InvalidArtifact(f"r is {rank}, more than the inputs of {name}")
        if variant == "bat":
            _check_divides(rank, module, name)
            check_parts(name, parts, {_BLOCK: (module.out_features // rank, rank, rank)})
            deltas[name] = _bat_delta(parts[_BLOCK].float(), source.base.weight(name))
        else:
            width = module.out_features if mini_rank is None else mini_rank
            if module.out_features % width:
                raise InvalidArtifact(f"mini_r, {width}, does not divide the outputs of {name}")
            check_parts(name, parts, {_BLOCK: (rank, width)})
            source.check_rank(rank, name)
            deltas[name] = _pair(parts[_BLOCK], module)
    return file.with_deltas(deltas)


def _check_divides(rank: int, module: LinearModule, name: str) -> None:
    if module.in_features % rank or module.out_features % rank:
        raise InvalidArtifact(f'r, {rank}, does not divide {name}, as init_weights = "bat" needs')


def _pair(block: Tensor, module: LinearModule) -> LowRank:
    """block: (rank, out_features), or a part of it that repeats."""
    rank, width = block.shape
    shards = -(-module.in_features // rank)
    # The last shard may be cut off: PEFT pads the input with zeros.
    a = torch.eye(rank).repeat(1, shards)[:, : module.in_features].contiguous()
    b = block.float().repeat(1, module.out_features // width).T.contiguous()
    return LowRank(a, b)


def _bat_delta(block: Tensor, weight: Tensor) -> DenseDelta:
    """block: (out / r, r, r), weight: (out, in) float32."""
    shards_out, rank, _ = block.shape
    shards = weight.reshape(shards_out, rank, -1, rank)
    product = torch.einsum("oaib,obc->oaic", shards, block) + block.unsqueeze(2)
    return DenseDelta(product.reshape(weight.shape).contiguous())


METHOD = Method(
    peft_type="MISS",
    consumed=TARGET_FIELDS | {"bias", "init_weights", "mini_r", "r"},
    lower=lower,
    inert={"miss_dropout": "training only"},
)
