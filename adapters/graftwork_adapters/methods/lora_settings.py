"""The fields of a LoRA config that its lowering reads, typed and checked."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from graftwork_adapters.errors import InvalidArtifact, UnsupportedField
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
            "exclude_modules",
            "init_lora_weights",
            "layers_pattern",
            "layers_to_transform",
            "lora_alpha",
            "lora_bias",
            "r",
            "rank_pattern",
            "target_modules",
            "use_dora",
            "use_rslora",
        }
    )

    @classmethod
    def parse(cls, config: PeftConfig) -> "LoraSettings":
        """Raises InvalidArtifact or UnsupportedField that names the field."""
        _check_init(config)
        targets = config.strings_or_pattern("target_modules")
        if not targets:
            raise InvalidArtifact("adapter_config.json: target_modules must name modules")
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
            targets=Targets(
                targets=targets,
                excluded=config.strings_or_pattern("exclude_modules"),
                layers=config.integers("layers_to_transform"),
                layers_pattern=config.strings_or_pattern("layers_pattern"),
                matcher=matcher,
            ),
        )
        if settings.use_dora and settings.lora_bias:
            raise UnsupportedField("lora_bias", "true", "false where use_dora is true, as in PEFT")
        return settings

    def rank(self, module: str) -> int:
        rank = self.rank_pattern.get(module, self.default_rank)
        if rank < 1 or rank != int(rank):
            raise InvalidArtifact(
                f"adapter_config.json: rank_pattern gives {module} the rank {rank:g}"
            )
        return int(rank)

    def scaling(self, module: str) -> float:
        alpha, rank = self.alpha_pattern.get(module, self.default_alpha), self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def modules_with_saved_bias(
        self, targeted: frozenset[str], all_modules: Iterable[str]
    ) -> frozenset[str]:
        """Modules whose own bias the file holds, if they have one."""
        match self.bias:
            case "none":
                return frozenset()
            case "lora_only":
                return targeted
            case "all":
                return frozenset(all_modules)


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
