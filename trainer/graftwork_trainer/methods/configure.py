"""From a method's name and a job's `method_config` to the config that is trained."""

import inspect
from collections.abc import Mapping
from typing import Any

from graftwork.status import InvalidFieldError
from graftwork_adapters.bottleneck import PEFT_TYPE as BOTTLENECK
from graftwork_adapters.bottleneck import BottleneckConfig
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods import find_methods
from graftwork_adapters.peft_config import PeftConfig as ArtifactConfig
from graftwork_adapters.saved_parts import CONSUMED
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftType
from transformers import PreTrainedModel

from graftwork_trainer.methods.catalogue import find_method
from graftwork_trainer.methods.method import BaseShape, TrainingMethod

# What the trainer decides, not the job.
_OURS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
     "revision", "runtime_config", "task_type", "total_step"}
)  # fmt: skip
# Fields that PEFT takes unchecked.
_SIZES = frozenset({"adapter_layers", "adapter_len", "num_virtual_tokens", "r"})


def configure(
    model: PreTrainedModel,
    peft_type: str,
    method_config: Mapping[str, Any],
    *,
    frozen_layers: int,
    total_steps: int,
) -> PeftConfig | BottleneckConfig:
    """The config of an adapter to train on `model`.

    frozen_layers: the lowest so many get no adapter
    total_steps: optimizer steps of the whole training

    Raises InvalidFieldError that names the method, the field of `method_config`, or the
    hyperparameter that does not go with it.
    """
    method = find_method(peft_type)
    shape = BaseShape.of(model)
    _check_base(method, shape)
    config_class = _config_class(method)
    _check_names(config_class, method, method_config)
    fields = {**method.defaults(shape), **method_config}
    if method.peft_type == "ADALORA":
        fields = {**_adalora_schedule(total_steps), **fields, "total_step": total_steps}
    if frozen_layers:
        fields |= _above(method, fields, frozen_layers, shape)
    try:
        config: PeftConfig | BottleneckConfig = config_class(task_type="CAUSAL_LM", **fields)
    except (TypeError, ValueError) as error:
        raise InvalidFieldError("method_config", f"is refused: {error}") from None
    _check_servable(config, method)
    return config


def _config_class(method: TrainingMethod) -> type[Any]:
    if method.peft_type == BOTTLENECK:
        return BottleneckConfig
    found: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.peft_type)]
    return found


def _check_base(method: TrainingMethod, shape: BaseShape) -> None:
    if method.needs_linear and shape.is_conv1d:
        raise InvalidFieldError(
            "method",
            f"{method.peft_type} cannot be trained on this base while it is not quantized: its "
            "modules are GPT-2's Conv1D, which PEFT refuses; serve it as int8, or train LORA",
        )


def _check_names(
    config_class: type[Any], method: TrainingMethod, method_config: Mapping[str, Any]
) -> None:
    known = [n for n in inspect.signature(config_class).parameters if n not in _OURS]
    for key, value in method_config.items():
        name = f"method_config.{key[:80]}"
        if key in _OURS:
            raise InvalidFieldError(name, "is set by the trainer: leave it out")
        if key not in known:
            raise InvalidFieldError(
                name, f"is no field of {method.peft_type}; these are {', '.join(known)}"
            )
        if key in _SIZES and (type(value) is not int or value < 1):
            raise InvalidFieldError(name, f"must be a positive integer, is {str(value)[:80]}")
        accepted = method.accepted.get(key)
        if accepted is not None and not any(
            type(value) is type(choice) and value == choice for choice in accepted
        ):
            raise InvalidFieldError(
                name,
                f"must be one of {', '.join(map(str, accepted))}, is {str(value)[:80]}: "
                f"{method.why_accepted}",
            )


def _check_servable(config: PeftConfig | BottleneckConfig, method: TrainingMethod) -> None:
    """Before an hour of training: whether the server will take what comes out."""
    if isinstance(config, BottleneckConfig):
        return
    lowering = find_methods()[method.peft_type]
    try:
        ArtifactConfig(_as_json(config)).check_fields(
            consumed=lowering.consumed | CONSUMED,
            inert=lowering.inert,
            required=lowering.required,
        )
    except InvalidArtifact as error:
        raise InvalidFieldError("method_config", str(error)) from None


def _as_json(config: PeftConfig) -> dict[str, Any]:
    fields: dict[str, Any] = config.to_dict()
    return {key: sorted(v) if isinstance(v, set) else v for key, v in fields.items()}


def _adalora_schedule(total_steps: int) -> dict[str, int]:
    """Warm up for a tenth of the steps, prune until the last third."""
    return {
        "tinit": total_steps // 10,
        "tfinal": total_steps // 3,
        "deltaT": max(1, total_steps // 100),
    }


def _above(
    method: TrainingMethod, fields: Mapping[str, Any], frozen_layers: int, shape: BaseShape
) -> dict[str, Any]:
    """The fields that leave out the lowest layers."""
    name = "hyperparameters.frozen_layers"
    if not method.by_layer:
        raise InvalidFieldError(name, f"{method.peft_type} has nothing in the layers: leave it out")
    if frozen_layers >= shape.num_layers:
        raise InvalidFieldError(
            name, f"must be below the base's {shape.num_layers} layers, is {frozen_layers}"
        )
    if method.peft_type == BOTTLENECK:
        return {"layers_to_transform": tuple(range(frozen_layers, shape.num_layers))}
    if method.peft_type == "ADAPTION_PROMPT":
        return {"adapter_layers": min(fields["adapter_layers"], shape.num_layers - frozen_layers)}
    return {
        key: shape.above(fields[key], frozen_layers)
        for key in ("target_modules", "feedforward_modules")
        if fields.get(key) is not None
    }
