"""Bottleneck layers after Houlsby and Pfeiffer; see graftwork_adapters/bottleneck.py."""

import re
from collections.abc import Mapping

from torch import Tensor

from graftwork_adapters.bottleneck import (
    ATTENTION,
    NON_LINEARITIES,
    OUTPUT,
    PEFT_TYPE,
    PLACEMENTS,
    PREFIX,
    BottleneckConfig,
)
from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.canonical_parts import Bottleneck, Normalization
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.peft_config import PeftConfig
from graftwork_adapters.saved_parts import owned

_KEY = re.compile(
    rf"{re.escape(PREFIX)}(?P<layer>.+)\.(?P<role>{ATTENTION}|{OUTPUT})"
    r"\.(?P<part>(?:down|up|norm_before|norm_after)\.(?:weight|bias))"
)


def lower(source: LoweringInput) -> LoweredAdapter:
    config, base = _parse(source.config), source.base
    blocks: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in source.tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise InvalidArtifact(f"tensor {key[:200]!r} is none that bottleneck layers know")
        blocks.setdefault((match["layer"], match["role"]), {})[match["part"]] = tensor
    chosen = config.layers_to_transform
    if chosen is not None and any(not 0 <= index < len(base.layers) for index in chosen):
        raise WrongBase(f"layers_to_transform goes beyond the base's {len(base.layers)} layers")
    roles = (OUTPUT,) if config.placement == "pfeiffer" else (ATTENTION, OUTPUT)
    expected: dict[tuple[str, str], str] = {}
    for index, layer in enumerate(base.layers):
        if chosen is None or index in chosen:
            after = {ATTENTION: layer.attention, OUTPUT: layer.mlp}
            for role in roles:
                is_layer = config.placement == "pfeiffer"
                expected[layer.name, role] = layer.name if is_layer else after[role]
    if wrong := sorted(blocks.keys() ^ expected.keys()):
        raise InvalidArtifact(
            f"adapter_config.json and the tensors disagree about {'.'.join(wrong[0])[:200]}"
        )
    return LoweredAdapter(
        bottlenecks={
            module: _lower_block(".".join(key), blocks[key], config, base.hidden_size)
            for key, module in expected.items()
        }
    )


def _parse(config: PeftConfig) -> BottleneckConfig:
    placement = config.string("placement")
    if placement not in PLACEMENTS:
        raise UnsupportedField("placement", placement[:80], " or ".join(PLACEMENTS))
    non_linearity = config.string("non_linearity").lower()
    if non_linearity not in NON_LINEARITIES:
        raise UnsupportedField("non_linearity", non_linearity[:80], ", ".join(NON_LINEARITIES))
    size, factor = config.get("bottleneck_size", None), config.get("reduction_factor", None)
    try:
        return BottleneckConfig(
            placement=placement,
            non_linearity=non_linearity,
            bottleneck_size=None if size is None else config.positive_integer("bottleneck_size"),
            reduction_factor=None if factor is None else config.number("reduction_factor"),
            layers_to_transform=config.integers("layers_to_transform"),
            scaling=1.0 if config.get("scaling", None) is None else config.number("scaling"),
            norm_before=config.boolean("norm_before", default=False),
            norm_after=config.boolean("norm_after", default=False),
        )
    except ValueError as error:
        raise InvalidArtifact(f"adapter_config.json: {error}") from None


def _lower_block(
    name: str, parts: Mapping[str, Tensor], config: BottleneckConfig, hidden_size: int
) -> Bottleneck:
    size = config.size(hidden_size)
    shapes: dict[str, tuple[int, ...]] = {
        "down.weight": (size, hidden_size),
        "down.bias": (size,),
        "up.weight": (hidden_size, size),
        "up.bias": (hidden_size,),
    }
    norms = {"norm_before": config.norm_before, "norm_after": config.norm_after}
    for norm, is_there in norms.items():
        if is_there:
            shapes |= {f"{norm}.weight": (hidden_size,), f"{norm}.bias": (hidden_size,)}
    found = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    if found != shapes:
        wrong = sorted(set(found.items()) ^ set(shapes.items()))[0]
        raise InvalidArtifact(
            f"{name} and adapter_config.json, with the base's hidden size {hidden_size}, disagree "
            f"about {wrong[0]}: {found.get(wrong[0])}, not {shapes.get(wrong[0])}"
        )

    def normalization(norm: str) -> Normalization | None:
        if not norms[norm]:
            return None
        return Normalization(owned(parts[f"{norm}.weight"]), owned(parts[f"{norm}.bias"]))

    up, up_bias = parts["up.weight"], parts["up.bias"]
    if config.scaling != 1:
        up, up_bias = up.float() * config.scaling, up_bias.float() * config.scaling
    return Bottleneck(
        down=owned(parts["down.weight"]),
        down_bias=owned(parts["down.bias"]),
        up=owned(up),
        up_bias=owned(up_bias),
        non_linearity=config.non_linearity,
        before=normalization("norm_before"),
        after=normalization("norm_after"),
    )


METHOD = Method(
    peft_type=PEFT_TYPE,
    consumed=frozenset(
        {
            "placement",
            "non_linearity",
            "bottleneck_size",
            "reduction_factor",
            "layers_to_transform",
            "scaling",
            "norm_before",
            "norm_after",
        }
    ),
    lower=lower,
    inert={"dropout": "training only"},
)
