"""One configuration of every adapter method, and random adapters of it for the default model.

Rank methods have rank 16 on all linear modules, as in bench_mixed; where a method counts in another
unit, PEFT's default, or the value nearest to it that divides the modules' sizes.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from graftwork_adapters.bottleneck import BottleneckConfig, add_bottlenecks, save_bottlenecks
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    BOFTConfig,
    C3AConfig,
    CPTConfig,
    DeloraConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    MultitaskPromptTuningConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from torch import nn

from benchmarks.workload import ALL_LINEAR
from tests.support.peft_adapters import alias, peft_remarks_ignored, save_drawn_anew

RANK = 16
NUM_VIRTUAL_TOKENS = 32

_CAUSAL = {"task_type": "CAUSAL_LM"}
_LINEAR = {"target_modules": ALL_LINEAR, **_CAUSAL}
_PROMPT = {"num_virtual_tokens": NUM_VIRTUAL_TOKENS, **_CAUSAL}

Config = PeftConfig | BottleneckConfig

METHODS: dict[str, Callable[[], Config]] = {
    "lora": lambda: LoraConfig(r=RANK, lora_alpha=2 * RANK, **_LINEAR),
    "dora": lambda: LoraConfig(r=RANK, lora_alpha=2 * RANK, use_dora=True, **_LINEAR),
    "adalora": lambda: AdaLoraConfig(init_r=RANK, total_step=10, **_LINEAR),
    "delora": lambda: DeloraConfig(r=RANK, **_LINEAR),
    "vblora": lambda: VBLoRAConfig(r=4, num_vectors=256, vector_length=64, **_LINEAR),
    "miss": lambda: MissConfig(r=RANK, **_LINEAR),
    "hra": lambda: HRAConfig(r=RANK, **_LINEAR),
    "loha": lambda: LoHaConfig(r=8, **_LINEAR),
    "vera": lambda: VeraConfig(r=256, **_LINEAR),
    "ia3": lambda: IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        **_CAUSAL,
    ),
    "road": lambda: RoadConfig(variant="road_1", group_size=64, **_LINEAR),
    "ln_tuning": lambda: LNTuningConfig(**_CAUSAL),
    "oft": lambda: OFTConfig(oft_block_size=32, **_LINEAR),
    "boft": lambda: BOFTConfig(boft_block_size=4, **_LINEAR),
    "lokr": lambda: LoKrConfig(r=8, **_LINEAR),
    "c3a": lambda: C3AConfig(block_size=64, **_LINEAR),
    "shira": lambda: ShiraConfig(r=RANK, **_LINEAR),
    "fourierft": lambda: FourierFTConfig(n_frequency=1000, **_LINEAR),
    # With the projections a file would hold a copy of them for each module.
    "randlora": lambda: RandLoraConfig(r=32, save_projection=False, **_LINEAR),
    "trainable_tokens": lambda: TrainableTokensConfig(token_indices=list(range(16)), **_CAUSAL),
    "prompt_tuning": lambda: PromptTuningConfig(**_PROMPT),
    "multitask_prompt_tuning": lambda: MultitaskPromptTuningConfig(num_tasks=2, **_PROMPT),
    "p_tuning": lambda: PromptEncoderConfig(encoder_hidden_size=128, **_PROMPT),
    "cpt": lambda: CPTConfig(
        cpt_token_ids=list(range(1000, 1000 + NUM_VIRTUAL_TOKENS)),
        cpt_mask=[1] * NUM_VIRTUAL_TOKENS,
        cpt_tokens_type_mask=[1, 2, 3, 4] * (NUM_VIRTUAL_TOKENS // 4),
        **_CAUSAL,
    ),
    "prefix_tuning": lambda: PrefixTuningConfig(**_PROMPT),
    "adaption_prompt": lambda: AdaptionPromptConfig(adapter_len=10, adapter_layers=30, **_CAUSAL),
    "houlsby": lambda: BottleneckConfig("houlsby", "swish", reduction_factor=16),
    "pfeiffer": lambda: BottleneckConfig("pfeiffer", "relu", reduction_factor=16),
}

# As expensive as an extra dense matrix beside every weight.
DENSE = {"randlora"}
# Sixteen that do different things, to linear modules and around them.
ALL_DIFFERENT = (
    "lora", "dora", "loha", "hra", "vera", "ia3", "road", "oft", "boft", "lokr", "c3a", "shira",
    "ln_tuning", "houlsby", "prompt_tuning", "prefix_tuning",
)  # fmt: skip


def task_of(method: str) -> int | None:
    """The task to register, of a file that holds several."""
    return 0 if method == "multitask_prompt_tuning" else None


def save_adapters(model: nn.Module, method: str, folder: Path, count: int) -> Iterator[Path]:
    """Adapters of a method with random weights, as folders; `model` stays as it is."""
    config = METHODS[method]()
    seeds = range(count)
    if isinstance(config, BottleneckConfig):
        yield from _save_bottlenecks(model, config, folder, seeds)
        return
    with peft_remarks_ignored():
        peft_model = get_peft_model(alias(model), config)
    for seed in seeds:
        yield save_drawn_anew(peft_model, folder / str(seed), seed=seed)


def _save_bottlenecks(
    model: nn.Module, config: BottleneckConfig, folder: Path, seeds: Iterable[int]
) -> Iterator[Path]:
    tree = alias(model)
    blocks = add_bottlenecks(tree, config).values()
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for block in blocks:
            for parameter in block.parameters():
                nn.init.normal_(parameter, std=0.02, generator=generator)
        save_bottlenecks(tree, config, folder / str(seed))
        yield folder / str(seed)
