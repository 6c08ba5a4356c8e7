"""Bottleneck adapter layers (Houlsby et al., 2019; Pfeiffer et al., 2020), as a model to train.

PEFT has none, so the artifact type is ours, in PEFT's file style: adapter_config.json with
peft_type "BOTTLENECK", and tensors under "base_model.model." + layer + ".attention_adapter." or
".output_adapter." + "down", "up", "norm_before" or "norm_after" + ".weight" or ".bias".

What they compute is what AdapterHub's `adapters` computes on a decoder whose norms come first.
With h what attention or MLP adds to the stream x, and A(z) = up(f(down(z))) * scaling:

- "houlsby" (AdapterHub's double_seq_bn), after attention and after MLP: x + h + A(h);
- "pfeiffer" (seq_bn), after the MLP only: x + h + A(x + h).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from graftwork_adapters.folder import CONFIG_FILE, WEIGHTS_FILE

PEFT_TYPE = "BOTTLENECK"
PREFIX = "base_model.model."
ATTENTION = "attention_adapter"
OUTPUT = "output_adapter"
_INIT_STD = 0.02

Placement = Literal["houlsby", "pfeiffer"]
PLACEMENTS: tuple[Placement, ...] = ("houlsby", "pfeiffer")
NON_LINEARITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "leakyrelu": functional.leaky_relu,
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, slots=True)
class BottleneckConfig:
    """The fields of adapter_config.json. Of bottleneck_size and reduction_factor (hidden size over
    bottleneck size) one is given."""

    placement: Placement
    non_linearity: str
    bottleneck_size: int | None = None
    reduction_factor: float | None = None
    layers_to_transform: tuple[int, ...] | None = None  # None: all
    scaling: float = 1.0
    norm_before: bool = False  # a LayerNorm on what A takes
    norm_after: bool = False  # a LayerNorm on what A yields
    dropout: float = 0.0  # on what A yields, while training
    task_type: str = "CAUSAL_LM"

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}")
        if self.non_linearity not in NON_LINEARITIES:
            raise ValueError(f"non_linearity must be one of {', '.join(NON_LINEARITIES)}")
        if (self.bottleneck_size is None) == (self.reduction_factor is None):
            raise ValueError("give one of bottleneck_size and reduction_factor")
        if self.reduction_factor is not None and not self.reduction_factor > 0:
            raise ValueError("reduction_factor must be positive")
        if self.bottleneck_size is not None and self.bottleneck_size < 1:
            raise ValueError("bottleneck_size must be positive")

    def size(self, hidden_size: int) -> int:
        """Rows of `down`; at least 1."""
        if self.bottleneck_size is not None:
            return self.bottleneck_size
        if self.reduction_factor is None:
            raise ValueError("neither bottleneck_size nor reduction_factor is given")
        return max(1, int(hidden_size // self.reduction_factor))


class BottleneckBlock(nn.Module):
    """A, and the forward hook that adds it to the output of the module it stands behind."""

    def __init__(self, hidden_size: int, config: BottleneckConfig) -> None:
        super().__init__()
        size = config.size(hidden_size)
        self.norm_before = nn.LayerNorm(hidden_size) if config.norm_before else None
        self.down = nn.Linear(hidden_size, size)
        self.up = nn.Linear(size, hidden_size)
        self.norm_after = nn.LayerNorm(hidden_size) if config.norm_after else None
        self.dropout = nn.Dropout(config.dropout)
        self._scaling = config.scaling
        self._non_linearity = config.non_linearity
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=_INIT_STD)
            nn.init.zeros_(linear.bias)

    def forward(self, h: Tensor) -> Tensor:
        """What to add to h: (..., hidden_size)."""
        h = h if self.norm_before is None else self.norm_before(h)
        h = NON_LINEARITIES[self._non_linearity](self.down(h))
        h = self.dropout(self.up(h) * self._scaling)
        return h if self.norm_after is None else self.norm_after(h)

    def edit(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG002
        """A forward hook, for a module that returns a tensor or a tuple with one first."""
        if isinstance(output, tuple):
            return (output[0] + self(output[0]), *output[1:])
        return output + self(output)


def add_bottlenecks(model: Any, config: BottleneckConfig) -> dict[str, BottleneckBlock]:
    """Freezes a decoder model of transformers and adds blocks, which alone are trained, in place.

    model: a PreTrainedModel. Returns the blocks by their names in the model. The model may then be
    given to any trainer.
    """
    model.requires_grad_(requires_grad=False)
    hidden_size = model.config.hidden_size
    parameter = next(model.parameters())
    blocks: dict[str, BottleneckBlock] = {}
    for index, (name, layer, attention, mlp) in enumerate(list(_layers(model))):
        if config.layers_to_transform is not None and index not in config.layers_to_transform:
            continue
        targets = {OUTPUT: layer} if config.placement == "pfeiffer" else {}
        if config.placement == "houlsby":
            targets = {ATTENTION: attention, OUTPUT: mlp}
        for role, target in targets.items():
            block = BottleneckBlock(hidden_size, config).to(parameter.device)
            target.register_forward_hook(block.edit)
            layer.add_module(role, block)
            blocks[f"{name}.{role}"] = block
    return blocks


def save_bottlenecks(
    model: nn.Module, config: BottleneckConfig, folder: Path, **fields: str
) -> None:
    """Writes a folder that can be registered.

    `fields` are further ones of adapter_config.json, such as the base's digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": PEFT_TYPE, **asdict(config), **fields}
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2, sort_keys=True))
    tensors = {
        f"{PREFIX}{name}.{key}": tensor.detach().cpu().contiguous()
        for name, block in model.named_modules()
        if isinstance(block, BottleneckBlock)
        for key, tensor in block.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read_bottleneck_config(folder: Path) -> BottleneckConfig:
    """The config that `save_bottlenecks` wrote."""
    fields = json.loads((folder / CONFIG_FILE).read_text())
    names = BottleneckConfig.__dataclass_fields__
    values = {name: value for name, value in fields.items() if name in names}
    if values.get("layers_to_transform") is not None:
        values["layers_to_transform"] = tuple(values["layers_to_transform"])
    return BottleneckConfig(**values)


def load_bottlenecks(model: nn.Module, folder: Path) -> dict[str, BottleneckBlock]:
    """Adds the blocks of a folder that `save_bottlenecks` wrote, with their weights."""
    blocks = add_bottlenecks(model, read_bottleneck_config(folder))
    tensors = load_file(folder / WEIGHTS_FILE)
    for name, block in blocks.items():
        start = f"{PREFIX}{name}."
        own = {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
        block.load_state_dict(own)
    return blocks


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module, nn.Module]]:
    """Name, layer, attention and MLP of each decoder layer."""
    for name, module in model.named_modules():
        children = dict(module.named_children())
        attention = children.get("self_attn", children.get("attn"))
        if attention is not None and "mlp" in children:
            yield name, module, attention, children["mlp"]
