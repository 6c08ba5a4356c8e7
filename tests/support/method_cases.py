"""Adapters of every method that is served, on any of the tested models.

A method without a case here fails tests/adapters/test_every_method.py.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from graftwork_adapters.bottleneck import BottleneckConfig, add_bottlenecks, save_bottlenecks
from graftwork_adapters.peft_config import TASK_ID_FIELD
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

from tests.support.peft_adapters import alias, peft_remarks_ignored, save_random_adapter
from tests.support.tiny_models import with_linears

TOKENS = [5, 7, 9, 20, 30, 40]  # that methods train the embeddings of
_TASK = 1  # of the file with several
_LLAMA_ADAPTER = ("llama", "mistral", "gpt2")  # families that PEFT defines LLaMA-Adapter for

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MethodCase:
    """One setting of a method; `config` makes it from the fields that choose linear modules."""

    name: str
    peft_type: str
    config: Callable[[Fields], PeftConfig | BottleneckConfig]
    families: tuple[str, ...] | None = None  # None: all
    task: int | None = None
    strength: float = 0.2  # standard deviation of what is trained

    def suits(self, model: nn.Module) -> bool:
        return self.families is None or model.config.model_type in self.families

    def reference_base(self, model: nn.Module) -> nn.Module:
        """The model, or, where PEFT refuses the pair, one that computes the same with
        `nn.Linear`s."""
        if model.config.model_type != "gpt2":
            return model
        config = self.config(target_fields(model))
        if isinstance(config, BottleneckConfig) or peft_accepts(model, config):
            return model
        return with_linears(model)

    def save(self, reference: nn.Module, folder: Path, *, seed: int) -> Path:
        """A folder with random weights, as if trained on a `reference_base`."""
        config = self.config(target_fields(reference))
        if isinstance(config, BottleneckConfig):
            return save_random_bottlenecks(reference, config, folder, seed=seed, std=self.strength)
        save_random_adapter(reference, config, folder, seed=seed, strength=self.strength)
        if self.task is not None:
            path = folder / "adapter_config.json"
            fields = {**json.loads(path.read_text()), TASK_ID_FIELD: self.task}
            path.write_text(json.dumps(fields))
        return folder


def target_fields(model: nn.Module) -> Fields:
    """Linear modules that every weight method may change; in a deep model, of three layers."""
    names = ["q_proj", "v_proj", "down_proj"]
    if model.config.model_type == "gpt2":
        names = ["c_attn", "c_fc", "mlp.c_proj"]
    if (last := model.config.num_hidden_layers - 1) > 4:
        names = [
            f"{layer}.{block}.{name}"
            for layer in (0, last // 2, last)
            for block, name in zip(("self_attn", "self_attn", "mlp"), names, strict=True)
        ]
    return {"target_modules": names, "task_type": "CAUSAL_LM"}


def peft_accepts(model: nn.Module, config: PeftConfig) -> bool:
    try:
        with peft_remarks_ignored():
            get_peft_model(alias(model), copy.deepcopy(config))
    except (TypeError, ValueError):
        return False
    return True


def save_random_bottlenecks(
    model: nn.Module, config: BottleneckConfig, folder: Path, *, seed: int, std: float
) -> Path:
    tree, generator = alias(model), torch.Generator().manual_seed(seed)
    for block in add_bottlenecks(tree, config).values():
        for parameter in block.parameters():
            parameter.data.normal_(std=std, generator=generator)
    save_bottlenecks(tree, config, folder)
    return folder


def _weights(name: str, kind: Any, **settings: Any) -> MethodCase:
    """A method that changes linear modules."""
    return MethodCase(name, kind().peft_type.value, lambda fields: kind(**{**settings, **fields}))


def _sequence(name: str, kind: Any, **settings: Any) -> MethodCase:
    """A method that takes no linear modules."""
    settings["task_type"] = "CAUSAL_LM"
    return MethodCase(name, kind(**settings).peft_type.value, lambda _: kind(**settings))


def _ia3(fields: Fields) -> IA3Config:
    feedforward = [
        name for name in fields["target_modules"] if name.endswith(("down_proj", "mlp.c_proj"))
    ]
    return IA3Config(feedforward_modules=feedforward, **fields)


def _saved_modules(fields: Fields) -> LoraConfig:
    """A square weight among them, which has the same shape when it is transposed."""
    is_gpt2 = "c_attn" in fields["target_modules"]
    saved = ["ln_f", "attn.c_proj"] if is_gpt2 else ["model.norm", "o_proj"]
    return LoraConfig(r=4, modules_to_save=saved, **fields)


_CPT = {
    "cpt_token_ids": [7, 8, 9, 3],
    "cpt_mask": [1, 1, 1, 1],
    "cpt_tokens_type_mask": [1, 2, 3, 4],
    "opt_projection_epsilon": 20.0,
    "opt_projection_format_epsilon": 20.0,
}

CASES: Sequence[MethodCase] = (
    _weights("lora", LoraConfig, r=4, lora_alpha=8),
    _weights("dora", LoraConfig, r=4, lora_alpha=8, use_dora=True),
    _weights("lora_and_head", LoraConfig, r=4, modules_to_save=["lm_head"]),
    MethodCase("lora_and_modules", "LORA", _saved_modules),
    _weights("lora_and_tokens", LoraConfig, r=4, trainable_token_indices=TOKENS[::-1]),
    MethodCase(
        "adalora", "ADALORA", lambda fields: AdaLoraConfig(init_r=6, total_step=10, **fields)
    ),
    _weights("loha", LoHaConfig, r=3, alpha=8),
    _weights("loha_dense", LoHaConfig, r=6, alpha=8),
    _weights("lokr", LoKrConfig, r=4),
    _weights("lokr_factors", LoKrConfig, r=1, decompose_both=True),
    _weights("vera", VeraConfig, r=12),
    _weights("vera_too", VeraConfig, r=12),
    MethodCase("ia3", "IA3", _ia3),
    _weights("hra", HRAConfig, r=4),
    _weights("oft", OFTConfig, oft_block_size=8),
    _weights("oft_shared", OFTConfig, oft_block_size=8, block_share=True),
    _weights("boft", BOFTConfig, boft_block_size=4),
    _weights("fourierft", FourierFTConfig, n_frequency=60),
    _weights("shira", ShiraConfig, r=2),
    _weights("randlora", RandLoraConfig, r=8, randlora_alpha=2),
    _weights("miss", MissConfig, r=5),
    _weights("miss_bat", MissConfig, r=8, init_weights="bat"),
    _weights("miss_mini", MissConfig, r=6, mini_r=4, init_weights="mini"),
    _weights("c3a", C3AConfig, block_size=8),
    _weights(
        "vblora",
        VBLoRAConfig,
        r=4,
        num_vectors=20,
        vector_length=8,
        save_only_topk_weights=True,
    ),
    _weights("delora", DeloraConfig, r=4),
    _weights("road", RoadConfig, variant="road_4", group_size=8),
    _sequence("ln_tuning", LNTuningConfig),
    _sequence("trainable_tokens", TrainableTokensConfig, token_indices=TOKENS),
    _sequence("prompt_tuning", PromptTuningConfig, num_virtual_tokens=5),
    MethodCase(
        "multitask",
        "MULTITASK_PROMPT_TUNING",
        lambda _: MultitaskPromptTuningConfig(
            num_virtual_tokens=4, num_tasks=3, num_ranks=2, task_type="CAUSAL_LM"
        ),
        task=_TASK,
    ),
    _sequence("p_tuning", PromptEncoderConfig, num_virtual_tokens=4, encoder_hidden_size=16),
    _sequence("prefix_tuning", PrefixTuningConfig, num_virtual_tokens=5),
    _sequence("cpt", CPTConfig, **_CPT),
    MethodCase(
        "llama_adapter",
        "ADAPTION_PROMPT",
        lambda _: AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"),
        families=_LLAMA_ADAPTER,
        strength=0.8,
    ),
    MethodCase(
        "houlsby",
        "BOTTLENECK",
        lambda _: BottleneckConfig("houlsby", "swish", bottleneck_size=6),
    ),
    MethodCase(
        "pfeiffer",
        "BOTTLENECK",
        lambda _: BottleneckConfig("pfeiffer", "relu", bottleneck_size=6),
    ),
)
