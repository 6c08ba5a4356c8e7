"""TRL by itself on the weights that the server dequantizes: the yardstick of our recipes over it.

Plain transformers modules in float32, TRL's own tokenization, and nothing of the trainer's but the
numbers of its weights.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from graftwork_trainer.base.model import TrainingBase
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

Pair = dict[str, str]  # prompt, chosen, rejected

BETA = 0.1


def losses_of_trl(
    recipe: str,
    base: TrainingBase,
    pairs: list[Pair],
    *,
    lora: dict[str, Any],
    arguments: dict[str, Any],
    max_length: int,
) -> list[float]:
    """The loss of each step of TRL's trainer for "dpo", "kto", "orpo" or "reward"."""
    trainer = _TRAINERS[recipe](base, pairs, LoraConfig(**lora), arguments, max_length)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def dequantized_model(base: TrainingBase) -> PreTrainedModel:
    """The base's weights as plain float32 parameters."""
    config = copy.deepcopy(base.model.config)
    config._attn_implementation = "sdpa"  # noqa: SLF001 - how transformers is told
    # The server quantizes the output head and not the embeddings that it is tied to.
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ours = dict(base.model.named_modules())
    with torch.no_grad():
        for name, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                parameter.copy_(getattr(ours[name], key))
    return model


def unpaired(pairs: list[Pair]) -> list[dict[str, Any]]:
    """Chosen answers as good ones and rejected ones as bad, in turn."""
    rows = []
    for pair in pairs:
        for side, label in (("chosen", True), ("rejected", False)):
            rows.append({"prompt": pair["prompt"], "completion": pair[side], "label": label})
    return rows


def _dpo(
    base: TrainingBase, pairs: list[Pair], lora: LoraConfig, arguments: Any, max_length: int
) -> Trainer:
    return DPOTrainer(
        model=dequantized_model(base),
        peft_config=lora,
        args=DPOConfig(**arguments, beta=BETA, max_length=max_length),
        train_dataset=Dataset.from_list(pairs),
        processing_class=copy.deepcopy(base.tokenizer),
    )


def _kto(
    base: TrainingBase, pairs: list[Pair], lora: LoraConfig, arguments: Any, max_length: int
) -> Trainer:
    return KTOTrainer(
        model=dequantized_model(base),
        peft_config=lora,
        args=KTOConfig(
            **arguments, beta=BETA, max_length=max_length, train_sampling_strategy="sequential"
        ),
        train_dataset=Dataset.from_list(unpaired(pairs)),
        processing_class=copy.deepcopy(base.tokenizer),
    )


def _orpo(
    base: TrainingBase, pairs: list[Pair], lora: LoraConfig, arguments: Any, max_length: int
) -> Trainer:
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.bos_token = None  # TRL would put it before every text, which the server does not
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return ORPOTrainer(
        model=dequantized_model(base),
        peft_config=lora,
        args=ORPOConfig(**arguments, beta=BETA, max_length=max_length),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )


def _reward(
    base: TrainingBase, pairs: list[Pair], lora: LoraConfig, arguments: Any, max_length: int
) -> Trainer:
    """TRL ends each text with the end token, and a served reward model sees none: the rows are
    tokenized here. The head begins as ours does."""
    tokenizer = copy.deepcopy(base.tokenizer)
    set_seed(arguments["seed"])
    causal = dequantized_model(base)
    config = copy.deepcopy(base.model.config)
    config.num_labels = 1
    config._attn_implementation = "sdpa"  # noqa: SLF001 - how transformers is told
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    setattr(model, model.base_model_prefix, causal.base_model)
    model.requires_grad_(requires_grad=False)
    set_seed(arguments["seed"])
    head = nn.Linear(config.hidden_size, 1, bias=False)
    nn.init.normal_(head.weight, std=(config.hidden_size + 1) ** -0.5)
    model.score = head
    lora.task_type = "SEQ_CLS"
    rows = [
        {
            f"{side}_ids": tokenizer(pair["prompt"] + pair[side])["input_ids"]
            for side in ("chosen", "rejected")
        }
        for pair in pairs
    ]
    return RewardTrainer(
        model=get_peft_model(model, lora),
        args=RewardConfig(**arguments, max_length=max_length),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


_TRAINERS = {"dpo": _dpo, "kto": _kto, "orpo": _orpo, "reward": _reward}


def plain_arguments(folder: Path, total_steps: int, **changes: Any) -> dict[str, Any]:
    """TRL's arguments as our recipes set them by default."""
    return {
        "output_dir": str(folder),
        "max_steps": total_steps,
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "activation_checkpointing": False,
        **changes,
    }
