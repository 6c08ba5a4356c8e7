"""What the files of weight methods have in common: tensors grouped by the linear module they
change, the config's choice of modules, trained biases, and copies of base weights.

Keys in a file: "base_model.model." + module + "." + part, where a part is one of the method's own,
or `.bias` or `.base_layer.bias` (out) and `.base_layer.weight` (out, in) for trained or saved parts
of the base.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graftwork_adapters.canonical import (
    BaseDescription,
    BiasDelta,
    LinearModule,
    LoweredAdapter,
    LowRank,
    ModuleAdapter,
)
from graftwork_adapters.canonical_linear import DenseDelta
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from graftwork_adapters.methods.base import LoweringInput
from graftwork_adapters.patterns import Matcher, Targets
from graftwork_adapters.peft_config import PeftConfig

PREFIX = "base_model.model."
BASE_BIAS = "bias"
BASE_WEIGHT = "base_layer.weight"
_BASE_PARTS = {"base_layer.bias": BASE_BIAS, BASE_WEIGHT: BASE_WEIGHT, BASE_BIAS: BASE_BIAS}
# PEFT saves the output head's own weight beside its adapter. It must be the base's, up to rounding
# to int8: half a step of a row's largest value is 0.4% of it.
_BASE_WEIGHT_TOLERANCE = 0.01

TARGET_FIELDS = frozenset(
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
)

Parts = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file whose config, tensors and base speak of the same modules.

    `modules` are those that the method changes, with the method's own parts of each; `biases` are
    the trained biases, of these and of other modules.
    """

    modules: Mapping[str, Parts]
    biases: Mapping[str, BiasDelta]

    def with_deltas(self, deltas: Mapping[str, LowRank | DenseDelta]) -> LoweredAdapter:
        """The adapter that adds these to the modules' weights, and has the file's biases."""
        modules: dict[str, ModuleAdapter] = {}
        for name in sorted(deltas.keys() | self.biases.keys()):
            delta = deltas.get(name)
            modules[name] = ModuleAdapter(
                low_rank=delta if isinstance(delta, LowRank) else None,
                bias_delta=self.biases.get(name),
                added_term=delta if isinstance(delta, DenseDelta) else None,
            )
        return LoweredAdapter(modules)

    def with_biases(self, modules: Mapping[str, ModuleAdapter]) -> LoweredAdapter:
        """The adapter that does this to the modules, and has the file's biases."""
        return LoweredAdapter(
            {
                name: replace(modules.get(name, ModuleAdapter()), bias_delta=self.biases.get(name))
                for name in sorted(modules.keys() | self.biases.keys())
            }
        )


def read_targets(config: PeftConfig, matcher: Matcher) -> Targets:
    """Reads TARGET_FIELDS; raises InvalidArtifact."""
    targets = config.strings_or_pattern("target_modules")
    if not targets:
        raise InvalidArtifact("adapter_config.json: target_modules must name modules")
    return Targets(
        targets=targets,
        excluded=config.strings_or_pattern("exclude_modules"),
        layers=config.integers("layers_to_transform"),
        layers_pattern=config.strings_or_pattern("layers_pattern"),
        matcher=matcher,
    )


def read_weight_file(
    source: LoweringInput,
    targets: Targets,
    parts: Collection[str],
    *,
    bias: str = "none",
    tensors: Mapping[str, Tensor] | None = None,
) -> WeightFile:
    """Groups the tensors and checks that nothing is missing, superfluous or made for another base.

    `parts` are the ends of the method's keys, of which each module has at least one; `bias` is the
    config's field; `tensors` are the file's unless some were taken out. Raises InvalidArtifact,
    UnsupportedField, WrongBase.
    """
    base = source.base
    grouped = group_by_module(source.tensors if tensors is None else tensors, parts)
    for name, found in grouped.items():
        if name in base.linear_modules:
            continue
        if found.keys() == {BASE_BIAS}:
            raise UnsupportedField(
                "bias", f'"{bias[:80]}", with a bias of {name[:200]}', "biases of linear modules"
            )
        raise WrongBase(f"the base has no linear module {name[:200]!r}")
    targeted = targets.among(base.linear_modules)
    own = {name: _own(found) for name, found in grouped.items() if _own(found)}
    _check_targets(targeted, own.keys())
    saved = {name: found[BASE_BIAS] for name, found in grouped.items() if BASE_BIAS in found}
    _check_biases(saved, bias, targeted, base)
    for name, found in grouped.items():
        if BASE_WEIGHT in found:
            check_base_weight(name, found[BASE_WEIGHT], base)
    biases = {name: BiasDelta(saved[name].float() - base.bias(name)) for name in sorted(saved)}
    return WeightFile({name: own[name] for name in sorted(own)}, biases)


def group_by_module(
    tensors: Mapping[str, Tensor], parts: Collection[str]
) -> dict[str, dict[str, Tensor]]:
    """Tensors by module and part; raises InvalidArtifact for a key with none of the parts."""
    endings = {**{part: part for part in parts}, **_BASE_PARTS}
    longest_first = sorted(endings, key=len, reverse=True)
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        ending = next((e for e in longest_first if key.endswith(f".{e}")), None)
        if ending is None or not key.startswith(PREFIX):
            raise InvalidArtifact(f"tensor {key[:200]!r} is none that this method knows")
        module = key[len(PREFIX) : -len(ending) - 1]
        of_module = found.setdefault(module, {})
        if endings[ending] in of_module:
            raise InvalidArtifact(f"two tensors for the {endings[ending]} of {module[:200]}")
        of_module[endings[ending]] = tensor
    return found


def check_parts(name: str, parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The parts of one module are those of `shapes`, in these shapes; raises InvalidArtifact where
    one is missing or not asked for, WrongBase for another shape."""
    if unexpected := sorted(parts.keys() ^ shapes.keys()):
        raise InvalidArtifact(
            f"adapter_config.json and tensors of {name} disagree about {', '.join(unexpected)}"
        )
    for part, shape in shapes.items():
        if tuple(parts[part].shape) != shape:
            raise WrongBase(
                f"{part} of {name} has shape {tuple(parts[part].shape)}; this base and "
                f"adapter_config.json need {shape}"
            )


def check_rank_of(name: str, found: int, expected: int) -> None:
    """Raises InvalidArtifact where the tensors have another rank than the config."""
    if found != expected:
        raise InvalidArtifact(f"{name} has rank {found}, but adapter_config.json says {expected}")


def whole_rank(rank: float, module: str) -> int:
    """A rank out of a pattern table; raises InvalidArtifact."""
    if rank < 1 or rank != int(rank):
        raise InvalidArtifact(f"adapter_config.json: rank_pattern gives {module} the rank {rank:g}")
    return int(rank)


def owned(tensor: Tensor) -> Tensor:
    """A float32 copy, contiguous, that does not keep the buffer of the whole file alive."""
    return tensor.float().clone(memory_format=torch.contiguous_format)


def check_base_weight(name: str, saved: Tensor, base: BaseDescription) -> None:
    """Raises WrongBase unless a weight of the base that the file carries is this base's."""
    weight = base.weight(name)  # (out_features, in_features) float32
    if saved.shape != weight.shape:
        raise WrongBase(
            f"{BASE_WEIGHT} of {name} has shape {tuple(saved.shape)}; this base needs "
            f"{tuple(weight.shape)}"
        )
    difference = (saved.float() - weight).abs().amax(dim=1)
    if bool((difference > _BASE_WEIGHT_TOLERANCE * weight.abs().amax(dim=1)).any()):
        raise WrongBase(
            f"the file carries a weight of {name} itself, and it is not this base's; "
            "save it again with save_embedding_layers=False"
        )


def _own(parts: Parts) -> dict[str, Tensor]:
    """The method's parts, without the base's."""
    return {part: tensor for part, tensor in parts.items() if part not in {BASE_BIAS, BASE_WEIGHT}}


def _check_targets(targeted: frozenset[str], adapted: Collection[str]) -> None:
    if not targeted:
        raise WrongBase("target_modules of adapter_config.json match no linear module of the base")
    if surplus := sorted(set(adapted) - targeted):
        raise InvalidArtifact(
            f"there are tensors for {surplus[0]}, which target_modules do not match"
        )
    if missing := sorted(targeted - set(adapted)):
        raise InvalidArtifact(
            f"target_modules match {missing[0]} of the base, but there are no tensors for it: "
            "the file is incomplete, or made for another base"
        )


def _check_biases(
    saved: Mapping[str, Tensor], bias: str, targeted: frozenset[str], base: BaseDescription
) -> None:
    expected = {
        name
        for name in _modules_with_saved_bias(bias, targeted, base.linear_modules)
        if base.linear_modules[name].has_bias
    }
    if unexpected := sorted(saved.keys() ^ expected):
        raise InvalidArtifact(
            f'bias is "{bias}" in adapter_config.json, which disagrees with the tensors '
            f"about the bias of {unexpected[0]}"
        )
    for name, tensor in saved.items():
        shape = (base.linear_modules[name].out_features,)
        if tuple(tensor.shape) != shape:
            raise WrongBase(f"the bias of {name} has shape {tuple(tensor.shape)}, not {shape}")


def _modules_with_saved_bias(
    bias: str, targeted: frozenset[str], modules: Mapping[str, LinearModule]
) -> Iterable[str]:
    """Modules whose own bias the file holds, if they have one: PEFT takes "none", "all", and any
    word that ends in "_only"."""
    if bias == "none":
        return ()
    if bias == "all":
        return modules
    if bias.endswith("_only"):
        return targeted
    raise UnsupportedField("bias", f'"{bias[:80]}"', '"none", "all" or the method\'s "..._only"')
