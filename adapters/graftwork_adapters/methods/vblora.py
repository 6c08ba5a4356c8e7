"""VB-LoRA (Li et al., 2024): LoRA whose factors are cut into pieces, each a mixture of the `topk`
likeliest vectors of one bank.

Keys in a file: "base_model.vblora_vector_bank" (num_vectors, vector_length), and
"base_model.model." + module + `.vblora_logits_A` (rank, in / vector_length, num_vectors) and
`.vblora_logits_B` (out / vector_length, rank, num_vectors). With `save_only_topk_weights`, instead
of each of the logits, `..._topk_indices` (.., topk) and `..._topk_weights` (.., topk - 1), where
what is left to 1 is the last weight.
"""

import torch
from torch import Tensor

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, LowRank
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher

_BANK = "base_model.vblora_vector_bank"
_A = "vblora_logits_A"
_B = "vblora_logits_B"
_INDICES = "_topk_indices"
_WEIGHTS = "_topk_weights"
_ROUNDING = 0.01  # of weights saved in bfloat16, which should add up to at most 1


def lower(source: LoweringInput) -> LoweredAdapter:
    config = source.config
    rank, topk = config.positive_integer("r"), config.positive_integer("topk")
    num_vectors = config.positive_integer("num_vectors")
    vector_length = config.positive_integer("vector_length")
    if topk > num_vectors:
        raise InvalidArtifact(f"adapter_config.json: topk, {topk}, is over num_vectors")
    only_topk = config.boolean("save_only_topk_weights", default=False)
    bank = source.tensors.get(_BANK)
    if bank is None or tuple(bank.shape) != (num_vectors, vector_length):
        raise InvalidArtifact(
            f"{_BANK} must be there, of shape {(num_vectors, vector_length)} by adapter_config.json"
        )
    kinds = (_INDICES, _WEIGHTS) if only_topk else ("",)
    file = read_weight_file(
        source,
        read_targets(config, Matcher()),
        [part + kind for part in (_A, _B) for kind in kinds],
        bias=config.string("bias"),
        tensors={key: tensor for key, tensor in source.tensors.items() if key != _BANK},
    )
    deltas: dict[str, LowRank] = {}
    for name, parts in file.modules.items():
        tiles = _tiles(name, source.base.linear_modules[name], rank, vector_length)
        depths = {_INDICES: topk, _WEIGHTS: topk - 1, "": num_vectors}
        shapes = {p + kind: (*tiles[p], depths[kind]) for p in (_A, _B) for kind in kinds}
        check_parts(name, parts, shapes)
        source.check_rank(rank, name)
        a = _mixture(name, parts, _A, topk, bank.float())  # (rank, tiles, vector_length)
        b = _mixture(name, parts, _B, topk, bank.float())  # (tiles, rank, vector_length)
        deltas[name] = LowRank(
            a.reshape(rank, -1), b.transpose(1, 2).reshape(-1, rank).contiguous()
        )
    return file.with_deltas(deltas)


def _tiles(
    name: str, module: LinearModule, rank: int, vector_length: int
) -> dict[str, tuple[int, int]]:
    if module.in_features % vector_length or module.out_features % vector_length:
        raise InvalidArtifact(
            f"adapter_config.json: vector_length, {vector_length}, does not divide {name}"
        )
    return {
        _A: (rank, module.in_features // vector_length),
        _B: (module.out_features // vector_length, rank),
    }


def _mixture(name: str, parts: Parts, part: str, topk: int, bank: Tensor) -> Tensor:
    """The pieces of one factor: (first, second, vector_length) float32."""
    if part in parts:
        logits, indices = parts[part].float().topk(topk, dim=-1)
        weights = torch.softmax(logits, dim=-1)
    else:
        indices = parts[part + _INDICES].long()
        if bool(((indices < 0) | (indices >= len(bank))).any()):
            raise InvalidArtifact(f"{part}{_INDICES} of {name} points past the vector bank")
        weights = _completed(name, parts[part + _WEIGHTS].float(), part)
    return (weights.unsqueeze(-1) * bank[indices]).sum(-2)


def _completed(name: str, weights: Tensor, part: str) -> Tensor:
    """(.., topk - 1) probabilities, and what they leave to 1."""
    rest = 1 - weights.sum(-1, keepdim=True)
    if bool((weights < 0).any()) or bool((rest < -_ROUNDING).any()):
        raise InvalidArtifact(f"{part}{_WEIGHTS} of {name} are no probabilities")
    return torch.cat([weights, rest.clamp_min(0)], dim=-1)


METHOD = Method(
    peft_type="VBLORA",
    consumed=TARGET_FIELDS
    | {"bias", "num_vectors", "r", "save_only_topk_weights", "topk", "vector_length"},
    lower=lower,
    inert={
        "fan_in_fan_out": "how the base stores its weight, which PEFT sets right by itself",
        "init_logits_std": "how training started",
        "init_vector_bank_bound": "how training started",
        "vblora_dropout": "training only",
    },
    integer_parts=(_INDICES,),
    empty_parts=(_WEIGHTS,),
)
