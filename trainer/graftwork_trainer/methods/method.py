"""What a method of adaptation is to the trainer."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class BaseShape:
    """What a method's settings depend on."""

    hidden_size: int
    num_layers: int
    linear_modules: tuple[str, ...]  # full names of those below the output head
    norm_modules: tuple[str, ...]
    common_divisor: int  # of all sizes of the linear modules
    smallest: int  # of those sizes
    is_conv1d: bool  # linear modules are GPT-2's, not quantized

    @classmethod
    def of(cls, model: PreTrainedModel) -> "BaseShape":
        config, head = model.config, model.get_output_embeddings()
        linear: list[str] = []
        norms: list[str] = []
        sizes: list[int] = []
        is_conv1d = False
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                if module is not head:
                    linear.append(name)
                    sizes += _sizes(module)
                    is_conv1d |= isinstance(module, Conv1D)
            elif any(p.dim() == 1 for p in module.parameters(recurse=False)):
                norms.append(name)
        return cls(
            int(config.hidden_size),
            int(config.num_hidden_layers),
            tuple(linear),
            tuple(norms),
            math.gcd(*sizes),
            min(sizes),
            is_conv1d,
        )

    def block(self, limit: int) -> int:
        """The largest size up to `limit` that divides all modules into blocks."""
        return next(n for n in range(limit, 0, -1) if self.common_divisor % n == 0)

    @property
    def linear_names(self) -> list[str]:
        """Last parts of the linear modules' names, each once."""
        return _last_parts(self.linear_modules)

    @property
    def norm_names(self) -> list[str]:
        return _last_parts(self.norm_modules)

    def above(self, targets: str | Iterable[str], frozen_layers: int) -> list[str]:
        """Full names of the modules that PEFT's `target_modules` picks, without those of the lowest
        layers and those that are in none."""
        picked = []
        for name in (*self.linear_modules, *self.norm_modules):
            if isinstance(targets, str):
                is_target = bool(re.fullmatch(targets, name))
                if targets == "all-linear":
                    is_target = name in self.linear_modules
            else:
                is_target = any(name == t or name.endswith(f".{t}") for t in targets)
            layer = _LAYER.search(name)
            if is_target and layer is not None and int(layer[1]) >= frozen_layers:
                picked.append(name)
        return picked


def _sizes(module: nn.Linear | Conv1D) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features


def _last_parts(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


@dataclass(frozen=True, slots=True)
class TrainingMethod:
    """Graftwork's settings of one of PEFT's methods."""

    peft_type: str
    learning_rate: float
    # Fields of PEFT's config that differ from PEFT's own defaults.
    defaults: Callable[[BaseShape], Mapping[str, Any]]
    # Whether it leaves the sequence as it is, so that sequences can be packed without padding.
    packs: bool = True
    # Whether it changes modules layer by layer, so that the lowest can be left out.
    by_layer: bool = True
    # Whether it needs nn.Linear: GPT-2's Conv1D, which is not quantized, is refused.
    needs_linear: bool = False
    # Field -> the only values that train here; the reason is in the message.
    accepted: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    why_accepted: str = "others change the base's weights, which all adapters share"
