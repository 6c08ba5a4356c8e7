"""Every method that trains here, with Graftwork's defaults, by families; and why others do not.

Learning rates suit models of a few hundred million parameters and a few hundred steps; those of
methods that start as the identity and have few parameters are higher.
"""

from collections.abc import Callable, Mapping
from typing import Any

from graftwork.status import InvalidFieldError
from graftwork_adapters.bottleneck import PEFT_TYPE as BOTTLENECK

from graftwork_trainer.methods.method import BaseShape, TrainingMethod

DEFAULT_METHOD = "LORA"

_LORA_INITS = {"init_lora_weights": (True, False, "gaussian", "orthogonal")}
_VIRTUAL_TOKENS = 16

# Methods that PEFT has and that cannot be trained here.
_REASONS = {
    "XLORA": "it mixes other adapters: train those, and compose versions instead",
    "POLY": "it needs the id of a task with each example, which requests do not carry",
}


def find_method(peft_type: str, name: str = "method") -> TrainingMethod:
    """Raises InvalidFieldError naming `name`."""
    method = _METHODS.get(peft_type.upper())
    if method is not None:
        return method
    reason = _REASONS.get(peft_type.upper(), "is no method that trains")
    raise InvalidFieldError(name, f"{peft_type[:80]}: {reason}; there are {', '.join(_METHODS)}")


def trainable_methods() -> Mapping[str, TrainingMethod]:
    """By PEFT's name."""
    return dict(_METHODS)


def _on_layers(shape: BaseShape, **fields: Any) -> dict[str, Any]:
    """Fields, beside all linear modules of the layers as targets."""
    return {"target_modules": shape.linear_names, **fields}


def _layers(**fields: Any) -> Callable[[BaseShape], dict[str, Any]]:
    return lambda shape: _on_layers(shape, **fields)


def _fields(**fields: Any) -> Callable[[BaseShape], dict[str, Any]]:
    return lambda _: dict(fields)


def _ia3(shape: BaseShape) -> dict[str, Any]:
    """Keys, values and what leads out of the MLP, as in the paper (arXiv:2205.05638)."""
    attention = ("k_proj", "v_proj", "qkv_proj", "c_attn", "query_key_value")
    mlp = ("down_proj", "mlp.c_proj", "fc2", "dense_4h_to_h")

    def there(names: tuple[str, ...]) -> list[str]:
        return [n for n in names if any(m.endswith(f".{n}") for m in shape.linear_modules)]

    return {"target_modules": there(attention + mlp), "feedforward_modules": there(mlp)}


_LOW_RANK = (
    TrainingMethod("LORA", 5e-4, _layers(r=16, lora_alpha=32), accepted=_LORA_INITS),
    TrainingMethod("ADALORA", 1e-3, _layers(init_r=12, target_r=8, lora_alpha=16)),
    TrainingMethod("DELORA", 1e-3, _layers(r=8), needs_linear=True),
    TrainingMethod("MISS", 5e-4, _layers(r=16), needs_linear=True),
    TrainingMethod(
        "VBLORA",
        1e-3,
        lambda shape: _on_layers(shape, r=4, num_vectors=256, vector_length=shape.block(64)),
    ),
    TrainingMethod("VERA", 5e-3, _layers(r=256, save_projection=True)),
    TrainingMethod("RANDLORA", 1e-3, _layers(r=16, save_projection=True)),
    TrainingMethod("LOHA", 1e-3, _layers(r=8, alpha=8), needs_linear=True),
    TrainingMethod("LOKR", 1e-3, _layers(r=8, alpha=8), needs_linear=True),
    TrainingMethod("FOURIERFT", 1e-2, _layers(n_frequency=1000)),
    TrainingMethod(
        "SHIRA",
        1e-3,
        # As many values as a low-rank pair has, and never more than the weight has.
        lambda shape: _on_layers(shape, r=min(16, max(1, shape.smallest // 4))),
        needs_linear=True,
    ),
    TrainingMethod(
        "C3A",
        1e-2,
        lambda shape: _on_layers(shape, block_size=shape.block(64)),
        needs_linear=True,
    ),
)
_SCALES = (
    TrainingMethod("IA3", 5e-3, _ia3),
    TrainingMethod("LN_TUNING", 1e-3, lambda shape: {"target_modules": shape.norm_names}),
)
_ROTATIONS = (
    TrainingMethod(
        "OFT",
        1e-3,
        lambda shape: _on_layers(shape, oft_block_size=shape.block(16)),
        needs_linear=True,
    ),
    TrainingMethod(
        "BOFT",
        1e-3,
        lambda shape: _on_layers(shape, boft_block_size=shape.block(4)),
        needs_linear=True,
    ),
    TrainingMethod("HRA", 1e-3, _layers(r=8), needs_linear=True),
    TrainingMethod(
        "ROAD",
        5e-3,
        lambda shape: _on_layers(shape, group_size=shape.block(32)),
        needs_linear=True,
    ),
)
_SEQUENCE = (
    TrainingMethod(
        "PROMPT_TUNING", 1e-2, _fields(num_virtual_tokens=_VIRTUAL_TOKENS),
        packs=False, by_layer=False,
    ),
    TrainingMethod(
        "P_TUNING", 1e-3, _fields(num_virtual_tokens=_VIRTUAL_TOKENS, encoder_hidden_size=128),
        packs=False, by_layer=False,
    ),
    TrainingMethod(
        "PREFIX_TUNING", 1e-2, _fields(num_virtual_tokens=_VIRTUAL_TOKENS),
        packs=False, by_layer=False,
    ),
    TrainingMethod(
        "ADAPTION_PROMPT", 5e-3,
        lambda shape: {"adapter_len": 10, "adapter_layers": shape.num_layers},
        packs=False,
    ),
)  # fmt: skip
_BLOCKS = (
    TrainingMethod(
        BOTTLENECK,
        1e-3,
        _fields(placement="pfeiffer", non_linearity="relu", reduction_factor=16),
    ),
)
_METHODS = {
    method.peft_type: method for method in (*_LOW_RANK, *_SCALES, *_ROTATIONS, *_SEQUENCE, *_BLOCKS)
}
