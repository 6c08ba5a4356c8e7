"""From a PEFT file to the canonical form, top to bottom."""

import torch
from torch import Tensor

from graftwork_adapters import saved_parts
from graftwork_adapters.artifact import Artifact
from graftwork_adapters.canonical import BaseDescription, LoweredAdapter, LowRank, ModuleAdapter
from graftwork_adapters.canonical_parts import Bottleneck, Parameters, TokenRows
from graftwork_adapters.errors import (
    InvalidArtifact,
    UnsupportedMethod,
    UnverifiedBase,
    WrongBase,
    ZeroEffect,
)
from graftwork_adapters.finite import is_finite
from graftwork_adapters.folder import PROMPT_ONLY, WEIGHTS_FILE
from graftwork_adapters.methods import find_methods
from graftwork_adapters.methods.base import LoweringInput
from graftwork_adapters.methods.refused import REFUSED
from graftwork_adapters.pacing import paced
from graftwork_adapters.stamp import read_stamp

# DoRA's scale of an untrained layer differs from 1 by rounding only.
_UNIT_SCALE_TOLERANCE = 1e-5


def lower(artifact: Artifact, base: BaseDescription, *, max_rank: int) -> LoweredAdapter:
    """The adapter in canonical form, on the CPU, owning its memory.

    Raises UnsupportedMethod, UnsupportedField, InvalidArtifact, WrongBase, RankOverCap, ZeroEffect.
    """
    check_base(artifact, base)
    if not artifact.has_weights:
        _check_prompt_only(artifact)
        return LoweredAdapter()
    methods = find_methods()
    method = methods.get(artifact.config.peft_type)
    if method is None:
        peft_type = artifact.config.peft_type
        raise UnsupportedMethod(peft_type[:80], methods, REFUSED.get(peft_type))
    artifact.config.check_fields(
        consumed=method.consumed | saved_parts.CONSUMED,
        inert=method.inert,
        required=method.required,
    )
    method.check_tensors(artifact.tensors)
    saved = saved_parts.split_saved_parts(
        artifact.config, artifact.tensors, base, method.saved_prefix
    )
    lowered = method.lower(LoweringInput(artifact.config, saved.rest, base, max_rank))
    lowered = saved.put_into(lowered, base)
    _check_finite(lowered)
    if not has_effect(lowered, base):
        raise ZeroEffect
    return lowered


def check_base(
    artifact: Artifact, base: BaseDescription, *, require_verified: bool = False
) -> bool:
    """Whether the files name the base they were trained on; raises WrongBase if it is another, and
    UnverifiedBase if they name none though `require_verified`."""
    stamp = read_stamp(artifact.config, artifact.metadata)
    if stamp is None:
        if require_verified and artifact.has_weights:  # a prompt fits any base
            raise UnverifiedBase
        return False
    if stamp != base.digest:
        raise WrongBase(f"trained on base {stamp[:80]}, but this server serves {base.digest}")
    return True


def _check_prompt_only(artifact: Artifact) -> None:
    peft_type = artifact.config.get("peft_type", None)
    if peft_type not in (None, PROMPT_ONLY):
        raise InvalidArtifact(f"{WEIGHTS_FILE} is missing, which {str(peft_type)[:80]} needs")
    artifact.config.check_fields(consumed=(), inert={}, required={})


def has_effect(adapter: LoweredAdapter, base: BaseDescription) -> bool:
    """Whether any input could get another output than the base's."""
    return (
        adapter.num_virtual_tokens > 0
        or adapter.classifier is not None
        or any(module_has_effect(module) for module in adapter.modules.values())
        or any(prompt.gate and prompt.values.any() for prompt in adapter.gated_prompts.values())
        or any(_bottleneck_has_effect(part) for part in adapter.bottlenecks.values())
        or any(_differs(name, own, base) for name, own in adapter.replaced.items())
        or _rows_differ(adapter.embedding_rows, base, base.embedding_name)
        or _rows_differ(adapter.head_rows, base, base.head_name)
    )


def _bottleneck_has_effect(bottleneck: Bottleneck) -> bool:
    return bottleneck.after is not None or bool(bottleneck.up.any() or bottleneck.up_bias.any())


def _differs(name: str, own: Parameters, base: BaseDescription) -> bool:
    return any(
        not torch.equal(tensor.float(), _base_parameter(name, key, base))
        for key, tensor in own.items()
    )


def _rows_differ(rows: TokenRows | None, base: BaseDescription, module: str) -> bool:
    if rows is None:
        return False
    known = _base_parameter(module, "weight", base)[rows.token_ids]
    return not torch.equal(rows.rows.float(), known)


def _base_parameter(module: str, name: str, base: BaseDescription) -> Tensor:
    if module not in base.linear_modules:
        return base.parameter(module, name)
    return base.weight(module) if name == "weight" else base.bias(module)


def module_has_effect(module: ModuleAdapter) -> bool:
    """Whether some input of the linear module could get another output."""
    if module.low_rank is not None and _pair_has_effect(module.low_rank):
        return True
    if module.bias_delta is not None and bool((module.bias_delta.delta != 0).any()):
        return True
    parts = (module.input_transform, module.added_term, module.output_transform)
    if any(part is not None and part.has_effect() for part in parts):
        return True
    if module.output_scale is None:
        return False
    return bool(((module.output_scale.scale - 1).abs() > _UNIT_SCALE_TOLERANCE).any())


def _pair_has_effect(pair: LowRank) -> bool:
    """Some rank has both a row of A and a column of B that are not all zero."""
    rank_in_a = (pair.a != 0).any(dim=1)  # (rank,) bool
    rank_in_b = (pair.b != 0).any(dim=0)  # (rank,) bool
    return bool((rank_in_a & rank_in_b).any())


def _check_finite(adapter: LoweredAdapter) -> None:
    """Finite files may still overflow where scales are folded."""
    if not all(is_finite(tensor) for tensor in paced(adapter.tensors())):
        raise InvalidArtifact("the adapter's scales overflow its weights")
