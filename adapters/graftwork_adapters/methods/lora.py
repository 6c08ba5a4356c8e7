"""LoRA (Hu et al., 2021), rsLoRA, DoRA, rank and alpha patterns, and trained biases.

Keys in a file: "base_model.model." + module + one of `.lora_A.weight` (rank, in), `.lora_B.weight`
(out, rank), `.lora_B.bias` (out), `.lora_magnitude_vector` (out), and for trained or saved parts of
the base `.bias` or `.base_layer.bias` (out), `.base_layer.weight` (out, in).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from graftwork_adapters.canonical import (
    BaseDescription,
    BiasDelta,
    LinearModule,
    LoweredAdapter,
    LowRank,
    ModuleAdapter,
    OutputScale,
)
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.lora_settings import LoraSettings

_PREFIX = "base_model.model."
_A = "lora_A.weight"
_B = "lora_B.weight"
_B_BIAS = "lora_B.bias"
_MAGNITUDE = "lora_magnitude_vector"
_BASE_BIAS = "bias"
_BASE_WEIGHT = "base_layer.weight"
# Ends of keys, longest first, and the part each stands for.
_PARTS = {
    _A: _A,
    _B: _B,
    _B_BIAS: _B_BIAS,
    f"{_MAGNITUDE}.weight": _MAGNITUDE,
    _MAGNITUDE: _MAGNITUDE,
    "base_layer.bias": _BASE_BIAS,
    _BASE_WEIGHT: _BASE_WEIGHT,
    _BASE_BIAS: _BASE_BIAS,
}
# PEFT saves the output head's own weight beside its LoRA. It must be the base's, up to rounding to
# int8: half a step of a row's largest value is 0.4% of it.
_BASE_WEIGHT_TOLERANCE = 0.01

Parts = Mapping[str, Tensor]


def lower(source: LoweringInput) -> LoweredAdapter:
    settings = LoraSettings.parse(source.config)
    parts_of_module = _group(source.tensors)
    linear_modules = source.base.linear_modules
    _check_modules(parts_of_module, settings, linear_modules)
    modules: dict[str, ModuleAdapter] = {}
    for name, parts in sorted(parts_of_module.items()):
        _check_parts(name, parts, settings, linear_modules[name])
        if _A in parts:
            source.check_rank(parts[_A].shape[0], name)
        modules[name] = _lower_module(name, parts, settings, source.base)
    return LoweredAdapter(modules)


def _group(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by module and part."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, part = _split_key(key)
        parts = found.setdefault(module, {})
        if part in parts:
            raise InvalidArtifact(f"two tensors for the {part} of {module}")
        parts[part] = tensor
    return found


def _split_key(key: str) -> tuple[str, str]:
    if ".lora_embedding_" in key:
        raise UnsupportedField(
            "target_modules", f"an embedding ({key[:200]})", "linear modules and the output head"
        )
    if key.startswith(_PREFIX):
        for ending, part in _PARTS.items():
            if key.endswith(f".{ending}"):
                return key[len(_PREFIX) : -len(ending) - 1], part
    raise InvalidArtifact(f"tensor {key[:200]!r} is none that LoRA knows")


def _check_modules(
    parts_of_module: Mapping[str, Parts],
    settings: LoraSettings,
    linear_modules: Mapping[str, LinearModule],
) -> None:
    """Config, tensors and base must speak of the same modules."""
    for name, parts in parts_of_module.items():
        if name in linear_modules:
            continue
        if parts.keys() == {_BASE_BIAS}:
            raise UnsupportedField(
                "bias",
                f'"{settings.bias}", with a bias of {name[:200]}',
                "biases of linear modules",
            )
        raise WrongBase(f"the base has no linear module {name[:200]!r}")
    targeted = settings.targets.among(linear_modules)
    adapted = {name for name, parts in parts_of_module.items() if parts.keys() & {_A, _B}}
    if not targeted:
        raise WrongBase("target_modules of adapter_config.json match no linear module of the base")
    if surplus := sorted(adapted - targeted):
        raise InvalidArtifact(
            f"there are tensors for {surplus[0]}, which target_modules do not match"
        )
    if missing := sorted(targeted - adapted):
        raise InvalidArtifact(
            f"target_modules match {missing[0]} of the base, but there are no tensors for it: "
            "the file is incomplete, or made for another base"
        )
    biased = {name for name, module in linear_modules.items() if module.has_bias}
    expected = biased & settings.modules_with_saved_bias(targeted, linear_modules)
    saved = {name for name, parts in parts_of_module.items() if _BASE_BIAS in parts}
    if unexpected := sorted(saved ^ expected):
        raise InvalidArtifact(
            f'bias is "{settings.bias}" in adapter_config.json, which disagrees with the tensors '
            f"about the bias of {unexpected[0]}"
        )


def _check_parts(name: str, parts: Parts, settings: LoraSettings, module: LinearModule) -> None:
    """The parts of one module are those that the config asks for, in the base's shapes."""
    expected: set[str] = set()
    if parts.keys() & {_A, _B}:
        expected = {_A, _B}
        expected |= {_B_BIAS} if settings.lora_bias else set()
        expected |= {_MAGNITUDE} if settings.use_dora else set()
    found = parts.keys() - {_BASE_BIAS, _BASE_WEIGHT}
    if found != expected:
        listed = ", ".join(sorted(found ^ expected))
        raise InvalidArtifact(f"adapter_config.json and tensors of {name} disagree about {listed}")

    rank = settings.rank(name)
    out_features, in_features = module.out_features, module.in_features
    shapes = {
        _A: (rank, in_features),
        _B: (out_features, rank),
        _B_BIAS: (out_features,),
        _MAGNITUDE: (out_features,),
        _BASE_BIAS: (out_features,),
        _BASE_WEIGHT: (out_features, in_features),
    }
    for part, tensor in parts.items():
        shape = tuple(tensor.shape)
        if shape == shapes[part]:
            continue
        if part in {_A, _B} and len(shape) == 2:
            ours = shape[0 if part == _A else 1]
            if ours != rank:
                raise InvalidArtifact(
                    f"{name} has rank {ours}, but adapter_config.json says {rank}"
                )
        raise WrongBase(f"{part} of {name} has shape {shape}; this base needs {shapes[part]}")


def _lower_module(
    name: str, parts: Parts, settings: LoraSettings, base: BaseDescription
) -> ModuleAdapter:
    if _BASE_WEIGHT in parts:
        _check_base_weight(name, parts[_BASE_WEIGHT], base)
    low_rank: LowRank | None = None
    output_scale: OutputScale | None = None
    delta: Tensor | None = None  # (out_features,) float32
    if _A in parts:
        scaling = settings.scaling(name)
        low_rank = _fold(parts[_A], parts[_B], scaling)
        if settings.use_dora:
            output_scale = _dora_scale(parts, scaling, base.weight(name), name)
        if settings.lora_bias:
            delta = parts[_B_BIAS].float() * scaling
    if _BASE_BIAS in parts:
        trained = parts[_BASE_BIAS].float() - base.bias(name)
        delta = trained if delta is None else delta + trained
    return ModuleAdapter(low_rank, output_scale, None if delta is None else BiasDelta(delta))


def _fold(a: Tensor, b: Tensor, scaling: float) -> LowRank:
    """The pair with `scaling` in B: in the file's dtype where that is exact, else in float32."""
    # a: (rank, in_features), b: (out_features, rank)
    if a.dtype == b.dtype:
        folded = b * scaling
        if b.dtype == torch.float32 or torch.equal(folded.float(), b.float() * scaling):
            return LowRank(_owned(a), _owned(folded))
    return LowRank(_owned(a.float()), _owned(b.float() * scaling))


def _owned(tensor: Tensor) -> Tensor:
    """A copy that does not keep the buffer of the whole file alive."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _dora_scale(parts: Parts, scaling: float, weight: Tensor, name: str) -> OutputScale:
    """Liu et al., 2024: magnitude over the norm of each row of W + scaling * B A."""
    merged = torch.addmm(weight, parts[_B].float(), parts[_A].float(), alpha=scaling)
    norm = torch.linalg.vector_norm(merged, dim=1)  # (out_features,) float32
    if bool((norm == 0).any()):
        raise InvalidArtifact(f"DoRA of {name} divides by a row of zeros")
    return OutputScale(parts[_MAGNITUDE].float() / norm)


def _check_base_weight(name: str, saved: Tensor, base: BaseDescription) -> None:
    weight = base.weight(name)  # (out_features, in_features) float32
    difference = (saved.float() - weight).abs().amax(dim=1)
    if bool((difference > _BASE_WEIGHT_TOLERANCE * weight.abs().amax(dim=1)).any()):
        raise WrongBase(
            f"the file carries a weight of {name} itself, and it is not this base's; "
            "save it again with save_embedding_layers=False"
        )


_START = "how training started; init_lora_weights decides whether that matters"

METHOD = Method(
    peft_type="LORA",
    consumed=LoraSettings.CONSUMED,
    lower=lower,
    inert={
        "lora_dropout": "training only",
        "fan_in_fan_out": "how the base stores its weight, which PEFT sets right by itself",
        "megatron_core": "read with megatron_config only",
        "qalora_group_size": "read with use_qalora only",
        "eva_config": _START,
        "loftq_config": _START,
        "corda_config": _START,
        "lora_ga_config": _START,
        "runtime_config": "where PEFT computes",
    },
    required={
        "modules_to_save": (None, []),
        "trainable_token_indices": (None, [], {}),
        "alora_invocation_tokens": (None,),
        "arrow_config": (None,),
        "ensure_weight_tying": (False,),
        "kasa_config": (None,),
        "layer_replication": (None,),
        "megatron_config": (None,),
        "monteclora_config": (None,),
        "target_parameters": (None, []),
        "use_bdlora": (None, False),
        "use_qalora": (False,),
        "velora_config": (None,),
    },
)
