"""RoAd (Liao and Monz, 2024): rotates and scales pairs of a module's outputs, its bias included.

Keys in a file: "base_model.model." + module + `.road_theta` and `.road_alpha`, angles and scales:
(out / 2) in variant road_1, (out) in road_2, (2 * out) in road_4.
"""

from torch import Tensor

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, ModuleAdapter
from graftwork_adapters.canonical_linear import PairRotation
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher

_THETA = "road_theta"
_ALPHA = "road_alpha"
# Halves of a module's outputs that each parameter vector has numbers for.
_HALVES = {"road_1": 1, "road_2": 2, "road_4": 4}


def lower(source: LoweringInput) -> LoweredAdapter:
    config = source.config
    variant, group_size = config.string("variant"), config.positive_integer("group_size")
    if variant not in _HALVES:
        raise UnsupportedField("variant", f'"{variant[:80]}"', ", ".join(_HALVES))
    if group_size % 2:
        raise InvalidArtifact(f"adapter_config.json: group_size {group_size} is not even")
    targets = read_targets(config, Matcher())
    file = read_weight_file(source, targets, (_THETA, _ALPHA))
    linear_modules = source.base.linear_modules
    return LoweredAdapter(
        {
            name: _lower_module(name, parts, linear_modules[name], variant, group_size)
            for name, parts in file.modules.items()
        }
    )


def _lower_module(
    name: str, parts: Parts, module: LinearModule, variant: str, group_size: int
) -> ModuleAdapter:
    out_features = module.out_features
    if out_features % group_size:
        raise WrongBase(f"{name} has {out_features} outputs, not in groups of {group_size}")
    shape = (out_features * _HALVES[variant] // 2,)
    check_parts(name, parts, {_THETA: shape, _ALPHA: shape})
    theta, alpha = parts[_THETA].double(), parts[_ALPHA].double()
    if variant == "road_4":
        # In each group, first what the output itself is multiplied by, then its partner.
        theta, alpha = theta.view(-1, 2, group_size), alpha.view(-1, 2, group_size)
        cosine = (alpha[:, 0] * theta[:, 0].cos()).flatten()
        sine = (alpha[:, 1] * theta[:, 1].sin()).flatten()
    else:
        if variant == "road_1":
            theta, alpha = _for_both_halves(theta, group_size), _for_both_halves(alpha, group_size)
        cosine, sine = alpha * theta.cos(), alpha * theta.sin()
    return ModuleAdapter(output_transform=PairRotation(cosine.float(), sine.float(), group_size))


def _for_both_halves(vector: Tensor, group_size: int) -> Tensor:
    return vector.view(-1, group_size // 2).repeat_interleave(2, dim=0).flatten()


METHOD = Method(
    peft_type="ROAD",
    consumed=TARGET_FIELDS | {"group_size", "variant"},
    lower=lower,
    inert={"init_weights": "how training started"},
)
