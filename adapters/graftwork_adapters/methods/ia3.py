"""IA3 (Liu et al., 2022): scales the output of a module, its bias included, or in feed-forward
modules its input.

Keys in a file: "base_model.model." + module + `.ia3_l` (out, 1), or (1, in) in feed-forward
modules.
"""

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, ModuleAdapter
from graftwork_adapters.canonical_linear import BiasedScale, InputScale
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    owned,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher

_SCALE = "ia3_l"


def lower(source: LoweringInput) -> LoweredAdapter:
    matcher = Matcher()
    file = read_weight_file(source, read_targets(source.config, matcher), (_SCALE,))
    feedforward = source.config.strings_or_pattern("feedforward_modules")
    if feedforward is None:
        raise InvalidArtifact("adapter_config.json: feedforward_modules must be given")
    linear_modules = source.base.linear_modules
    return LoweredAdapter(
        {
            name: _lower_module(
                name, parts, linear_modules[name], _is_feedforward(name, feedforward, matcher)
            )
            for name, parts in file.modules.items()
        }
    )


def _is_feedforward(name: str, feedforward: tuple[str, ...] | str, matcher: Matcher) -> bool:
    """As PEFT matches: unlike target_modules, a name may end in the middle of a part."""
    if isinstance(feedforward, str):
        return matcher.match(feedforward, name, whole=True) is not None
    return name.endswith(feedforward)


def _lower_module(
    name: str, parts: Parts, module: LinearModule, is_feedforward: bool
) -> ModuleAdapter:
    shape = (1, module.in_features) if is_feedforward else (module.out_features, 1)
    check_parts(name, parts, {_SCALE: shape})
    scale = owned(parts[_SCALE]).flatten()
    if is_feedforward:
        return ModuleAdapter(input_transform=InputScale(scale))
    return ModuleAdapter(output_transform=BiasedScale(scale))


METHOD = Method(
    peft_type="IA3",
    consumed=TARGET_FIELDS | {"feedforward_modules"},
    lower=lower,
    inert={
        "fan_in_fan_out": "how the base stores its weight, which PEFT sets right by itself",
        "init_ia3_weights": "how training started",
    },
)
