"""AdaLoRA (Zhang et al., 2023): `W += B diag(E) A * scaling / (r + 1e-5)`.

Keys in a file: "base_model.model." + module + one of `.lora_A` (rank, in), `.lora_B` (out, rank),
`.lora_E` (rank, 1). The rank is `init_r`, or what `rank_pattern` keeps of it, down to none; the r
that is divided by stays `init_r` (PEFT's `ranknum`, which no file holds).
"""

from collections.abc import Mapping

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, LowRank
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.lora import METHOD as LORA
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    check_rank_of,
    owned,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher
from graftwork_adapters.peft_config import PeftConfig

_A = "lora_A"
_B = "lora_B"
_E = "lora_E"
_EPSILON = 1e-5  # PEFT adds it to the rank


def lower(source: LoweringInput) -> LoweredAdapter:
    config = source.config
    targets = read_targets(config, Matcher())
    init_rank, alpha = config.positive_integer("init_r"), config.number("lora_alpha")
    kept = _kept_ranks(config, init_rank)
    file = read_weight_file(source, targets, (_A, _B, _E), bias=config.string("bias"))
    if unknown := sorted(kept.keys() - file.modules.keys()):
        raise InvalidArtifact(
            f"adapter_config.json: rank_pattern speaks of {unknown[0][:200]}, which the file "
            "does not adapt"
        )
    deltas: dict[str, LowRank] = {}
    for name, parts in file.modules.items():
        rank = kept.get(name, init_rank)
        _check(name, parts, rank, source.base.linear_modules[name])
        source.check_rank(rank, name)
        if rank:
            scaling = alpha if alpha > 0 else rank
            deltas[name] = _fold(parts, scaling / (init_rank + _EPSILON))
    return file.with_deltas(deltas)


def _kept_ranks(config: PeftConfig, init_rank: int) -> Mapping[str, int]:
    """The rank that is left of each module in rank_pattern, which says of each of `init_r`
    directions whether it is kept."""
    pattern = config.get("rank_pattern", None)
    if pattern is None:
        return {}
    if not isinstance(pattern, dict):
        raise InvalidArtifact("adapter_config.json: rank_pattern must be an object or null")
    ranks: dict[str, int] = {}
    for key, kept in pattern.items():
        is_mask = isinstance(kept, list) and all(isinstance(flag, bool) for flag in kept)
        if not is_mask or len(kept) != init_rank:
            raise InvalidArtifact(
                f"adapter_config.json: rank_pattern of {key[:200]} must be a list of init_r, "
                f"{init_rank}, booleans"
            )
        module = key.removesuffix(f".{_E}")
        if module in ranks:
            raise InvalidArtifact(f"adapter_config.json: rank_pattern names {module[:200]} twice")
        ranks[module] = sum(kept)
    return ranks


def _check(name: str, parts: Parts, rank: int, module: LinearModule) -> None:
    if _A in parts and parts[_A].ndim == 2:
        check_rank_of(name, parts[_A].shape[0], rank)
    check_parts(
        name,
        parts,
        {_A: (rank, module.in_features), _B: (module.out_features, rank), _E: (rank, 1)},
    )


def _fold(parts: Parts, scaling: float) -> LowRank:
    """The pair with the diagonal and all scales in B."""
    diagonal = parts[_E].float().squeeze(1) * scaling  # (rank,)
    b = parts[_B].float() * diagonal  # (out_features, rank)
    return LowRank(owned(parts[_A]), b.contiguous())


_SCHEDULE = "how training shared the ranks out; rank_pattern says what came of it"
_NOT_READ = "AdaLoRA does not read it"

METHOD = Method(
    peft_type="ADALORA",
    consumed=TARGET_FIELDS | {"bias", "init_r", "lora_alpha", "rank_pattern"},
    lower=lower,
    inert={
        **LORA.inert,
        "beta1": _SCHEDULE,
        "beta2": _SCHEDULE,
        "deltaT": _SCHEDULE,
        "orth_reg_weight": _SCHEDULE,
        "target_r": _SCHEDULE,
        "tfinal": _SCHEDULE,
        "tinit": _SCHEDULE,
        "total_step": _SCHEDULE,
        "alpha_pattern": _NOT_READ,
        "init_lora_weights": "how training started, which leaves the base alone in AdaLoRA",
        "lora_bias": _NOT_READ,
        "r": _NOT_READ,
        "use_rslora": _NOT_READ,
    },
    required={**LORA.required, "use_dora": (False,)},
    empty_parts=(_A, _B, _E),
)
