"""A model to train on, built over a base's folder without a copy of its weights."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import init_empty_weights
from graftwork_adapters.base_file.description import BaseFileDescription
from graftwork_adapters.base_file.modules import by_module, fill
from graftwork_adapters.base_file.reader import map_base
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from graftwork_trainer.base.cuda_linear import build_linear4bit
from graftwork_trainer.base.frozen_linear import FrozenLinear, Workspace
from graftwork_trainer.base.packed_rows import PACKED_ATTENTION, register_packed_attention


@dataclass(frozen=True, slots=True)
class TrainingBase:
    """What recipes train on."""

    model: PreTrainedModel  # frozen; take a tree of one's own with `fresh_model`
    tokenizer: PreTrainedTokenizerFast
    description: BaseFileDescription

    def fresh_model(self) -> PreTrainedModel:
        """A tree of modules of its own over the same tensors, for PEFT and TRL to change."""
        shared = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared})


def load_training_base(folder: Path, device: torch.device | None = None) -> TrainingBase:
    """Builds the model over the folder that the server wrote; on the CPU nothing is copied.

    device: by default CUDA where there is one, with a copy of the quantized weights there.

    Raises InvalidBaseFile where the folder is damaged.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = map_base(folder)
    register_packed_attention()
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder),
            dtype=torch.float32,
            attn_implementation=PACKED_ATTENTION,
        )
    workspace, tensors = Workspace(), by_module(base.tensors)
    for name, packed in base.description.packed.items():
        own = tensors[name]
        if packed.packing == "nf4_blocks":
            module: nn.Module = build_linear4bit(packed, own, device)
        else:
            module = FrozenLinear(
                packed,
                codes=own["codes"],
                scales=own["scales"],
                bias=own.get("bias"),
                workspace=workspace,
            )
        model.set_submodule(name, module)
    fill(model, base.tensors)
    model.requires_grad_(requires_grad=False)
    model.to(device)
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder))
    return TrainingBase(model.eval(), tokenizer, base.description)
