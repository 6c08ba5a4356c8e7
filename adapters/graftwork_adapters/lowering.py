"""From a PEFT file to the canonical form, top to bottom."""

from graftwork_adapters.artifact import Artifact
from graftwork_adapters.canonical import BaseDescription, LoweredAdapter, LowRank, ModuleAdapter
from graftwork_adapters.errors import (
    InvalidArtifact,
    UnsupportedMethod,
    UnverifiedBase,
    WrongBase,
    ZeroEffect,
)
from graftwork_adapters.folder import PROMPT_ONLY, WEIGHTS_FILE
from graftwork_adapters.methods import find_methods
from graftwork_adapters.methods.base import LoweringInput
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
        raise UnsupportedMethod(artifact.config.peft_type[:80], methods)
    artifact.config.check_fields(
        consumed=method.consumed, inert=method.inert, required=method.required
    )
    method.check_tensors(artifact.tensors)
    lowered = method.lower(LoweringInput(artifact.config, artifact.tensors, base, max_rank))
    _check_finite(lowered)
    if not has_effect(lowered):
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


def has_effect(adapter: LoweredAdapter) -> bool:
    """Whether any input could get another output than the base's."""
    if adapter.virtual_tokens is not None:
        return True
    return any(_module_has_effect(module) for module in adapter.modules.values())


def _module_has_effect(module: ModuleAdapter) -> bool:
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
    if not all(bool(tensor.isfinite().all()) for tensor in adapter.tensors()):
        raise InvalidArtifact("the adapter's scales overflow its weights")
