"""LN tuning (Zhao et al., 2023): the adapter's own norms.

Keys in a file: "base_model.model." + module + ".ln_tuning_layers." + "weight" or "bias".
"""

from torch import Tensor

from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.patterns import Matcher, Targets
from graftwork_adapters.saved_parts import lower_parameters

_PREFIX = "base_model.model."
_LAYER = ".ln_tuning_layers."


def lower(source: LoweringInput) -> LoweredAdapter:
    config, base = source.config, source.base
    wanted = config.strings_or_pattern("target_modules")
    if not wanted:
        raise InvalidArtifact("adapter_config.json: target_modules must name modules")
    targets = Targets(
        targets=wanted,
        excluded=config.strings_or_pattern("exclude_modules"),
        layers=None,
        layers_pattern=None,
        matcher=Matcher(),
    )
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in source.tensors.items():
        module, layer, parameter = key.removeprefix(_PREFIX).partition(_LAYER)
        if not key.startswith(_PREFIX) or not layer:
            raise InvalidArtifact(f"tensor {key[:200]!r} is none that LN tuning knows")
        found.setdefault(module, {})[parameter] = tensor
    for module in found:
        if module not in base.other_modules:
            raise WrongBase(f"the base has no norm {module[:200]!r}")
        if module == base.embedding_name:
            raise UnsupportedField("target_modules", module[:80], "norms")
    targeted = targets.among(base.other_modules)
    if wrong := sorted(targeted ^ found.keys()):
        raise InvalidArtifact(
            f"target_modules of adapter_config.json and the tensors disagree about {wrong[0]}"
        )
    return LoweredAdapter(
        replaced={
            module: lower_parameters(module, parameters, base)
            for module, parameters in sorted(found.items())
        }
    )


METHOD = Method(
    peft_type="LN_TUNING",
    consumed=frozenset({"target_modules", "exclude_modules"}),
    lower=lower,
)
