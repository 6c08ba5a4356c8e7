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
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.lora_settings import LoraSettings
from graftwork_adapters.methods.weight_file import (
    Parts,
    check_parts,
    check_rank_of,
    read_weight_file,
)
from graftwork_adapters.pacing import paced

_A = "lora_A.weight"
_B = "lora_B.weight"
_B_BIAS = "lora_B.bias"
_MAGNITUDE = "lora_magnitude_vector"
_PARTS = (_A, _B, _B_BIAS, _MAGNITUDE)


def lower(source: LoweringInput) -> LoweredAdapter:
    settings = LoraSettings.parse(source.config)
    tensors = _renamed(source.tensors)
    file = read_weight_file(source, settings.targets, _PARTS, bias=settings.bias, tensors=tensors)
    linear_modules = source.base.linear_modules
    modules: dict[str, ModuleAdapter] = {}
    for name in paced(sorted(file.modules.keys() | file.biases.keys())):
        parts, bias_delta = file.modules.get(name), file.biases.get(name)
        if parts is None:
            modules[name] = ModuleAdapter(bias_delta=bias_delta)
            continue
        _check_parts(name, parts, settings, linear_modules[name])
        source.check_rank(parts[_A].shape[0], name)
        modules[name] = _lower_module(name, parts, settings, source.base, bias_delta)
    return LoweredAdapter(modules)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Magnitudes under their newer name; refuses embeddings."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".lora_embedding_" in key:
            raise UnsupportedField(
                "target_modules",
                f"an embedding ({key[:200]})",
                "linear modules and the output head",
            )
        is_old = key.endswith(f".{_MAGNITUDE}.weight")
        name = key.removesuffix(".weight") if is_old else key
        if name in renamed:
            raise InvalidArtifact(f"two tensors for {name[:200]}")
        renamed[name] = tensor
    return renamed


def _check_parts(name: str, parts: Parts, settings: LoraSettings, module: LinearModule) -> None:
    """The parts of one module are those that the config asks for, in the base's shapes."""
    rank = settings.rank(name)
    if _A in parts and parts[_A].ndim == 2:
        check_rank_of(name, parts[_A].shape[0], rank)
    if _B in parts and parts[_B].ndim == 2:
        check_rank_of(name, parts[_B].shape[1], rank)
    out_features, in_features = module.out_features, module.in_features
    shapes: dict[str, tuple[int, ...]] = {_A: (rank, in_features), _B: (out_features, rank)}
    if settings.lora_bias:
        shapes[_B_BIAS] = (out_features,)
    if settings.use_dora:
        shapes[_MAGNITUDE] = (out_features,)
    check_parts(name, parts, shapes)


def _lower_module(
    name: str,
    parts: Parts,
    settings: LoraSettings,
    base: BaseDescription,
    bias_delta: BiasDelta | None,
) -> ModuleAdapter:
    scaling = settings.scaling(name)
    output_scale: OutputScale | None = None
    if settings.use_dora:
        output_scale = _dora_scale(parts, scaling, base.weight(name), name)
    if settings.lora_bias:
        delta = parts[_B_BIAS].float() * scaling  # (out_features,)
        bias_delta = BiasDelta(delta if bias_delta is None else delta + bias_delta.delta)
    return ModuleAdapter(_fold(parts[_A], parts[_B], scaling), output_scale, bias_delta)


def _fold(a: Tensor, b: Tensor, scaling: float) -> LowRank:
    """The pair with `scaling` in B: in the file's dtype where that is exact, else in float32."""
    # a: (rank, in_features), b: (out_features, rank)
    if a.dtype == b.dtype:
        folded = b * scaling
        if b.dtype == torch.float32 or torch.equal(folded.float(), b.float() * scaling):
            return LowRank(_owned(a), folded.contiguous())
    return LowRank(_owned(a.float()), (b.float() * scaling).contiguous())


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
