"""The fields of a LoRA config that its lowering reads, typed and checked."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from graftwork_adapters.errors import UnsupportedField
from graftwork_adapters.methods.weight_file import TARGET_FIELDS, read_targets, whole_rank
from graftwork_adapters.patterns import Matcher, PatternTable, Targets
from graftwork_adapters.peft_config import PeftConfig

Bias = Literal["none", "all", "lora_only"]

# Initialisations that leave the base's weights alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA train
# on a changed base; PEFT can convert their files, and then the config says true.
_INITS_ON_THE_BASE: tuple[object, ...] = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    default_rank: int
    default_alpha: float
    rank_pattern: PatternTable
    alpha_pattern: PatternTable
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
    bias: Bias
    targets: Targets

    CONSUMED: ClassVar[frozenset[str]] = frozenset(
        {
            "alpha_pattern",
            "bias",
            "init_lora_weights",
            "lora_alpha",
            "lora_bias",
            "r",
            "rank_pattern",
            "use_dora",
            "use_rslora",
            *TARGET_FIELDS,
        }
    )

    @classmethod
    def parse(cls, config: PeftConfig) -> "LoraSettings":
        """Raises InvalidArtifact or UnsupportedField that names the field."""
        _check_init(config)
        matcher = Matcher()
        settings = cls(
            default_rank=config.positive_integer("r"),
            default_alpha=config.number("lora_alpha"),
            rank_pattern=PatternTable(config.numbers_by_pattern("rank_pattern"), matcher),
            alpha_pattern=PatternTable(config.numbers_by_pattern("alpha_pattern"), matcher),
            use_rslora=config.boolean("use_rslora", default=False),
            use_dora=config.boolean("use_dora", default=False),
            lora_bias=config.boolean("lora_bias", default=False),
            bias=_parse_bias(config),
            targets=read_targets(config, matcher),
        )
        if settings.use_dora and settings.lora_bias:
            raise UnsupportedField("lora_bias", "true", "false where use_dora is true, as in PEFT")
        return settings

    def rank(self, module: str) -> int:
        return whole_rank(self.rank_pattern.get(module, self.default_rank), module)

    def scaling(self, module: str) -> float:
        alpha, rank = self.alpha_pattern.get(module, self.default_alpha), self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _parse_bias(config: PeftConfig) -> Bias:
    bias = config.string("bias")
    if bias not in {"none", "all", "lora_only"}:
        raise UnsupportedField("bias", f'"{bias[:80]}"', '"none", "all" or "lora_only"')
    return cast("Bias", bias)


def _check_init(config: PeftConfig) -> None:
    init = config.get("init_lora_weights", True)
    if not any(type(init) is type(known) and init == known for known in _INITS_ON_THE_BASE):
        raise UnsupportedField(
            "init_lora_weights",
            repr(init)[:80],
            "true, false, gaussian, eva, orthogonal and mica. Others train on a changed base: "
            "convert with save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
