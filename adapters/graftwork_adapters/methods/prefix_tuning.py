"""Prefix tuning (Li and Liang, 2021): keys and values of virtual tokens in every layer.

PEFT saves them as the projection, if there was one, has put them out: a row for each virtual token
with, for each layer, its key and then its value.
"""

from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.canonical_parts import KeyValuePrefix
from graftwork_adapters.errors import WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.virtual_tokens import (
    CONSUMED,
    EMBEDDINGS,
    ENCODER_NOT_NEEDED,
    SAVED_PREFIX,
    check_shape,
    check_tensors,
    num_virtual_tokens,
)
from graftwork_adapters.saved_parts import owned


def lower(source: LoweringInput) -> LoweredAdapter:
    config, layers = source.config, source.base.layers
    count, width = num_virtual_tokens(source), config.positive_integer("token_dim")
    num_layers = config.positive_integer("num_layers")
    num_heads = config.positive_integer("num_attention_heads")
    check_tensors(source, [EMBEDDINGS])
    flat = source.tensors[EMBEDDINGS]
    meaning = "num_virtual_tokens, and num_layers times 2 times token_dim"
    check_shape(EMBEDDINGS, flat, (count, num_layers * 2 * width), meaning)
    found = (num_layers, num_heads, width)
    first = layers[0]
    expected = (len(layers), first.num_kv_heads, first.num_kv_heads * first.head_dim)
    if found != expected or any(
        (layer.num_kv_heads, layer.head_dim) != (first.num_kv_heads, first.head_dim)
        for layer in layers
    ):
        raise WrongBase(
            f"made for num_layers, num_attention_heads (of keys) and token_dim {found}; "
            f"this base has {expected}"
        )
    split = flat.view(count, num_layers, 2, num_heads, width // num_heads)
    return LoweredAdapter(
        prefix=KeyValuePrefix(
            keys=owned(split[:, :, 0].transpose(0, 1)),
            values=owned(split[:, :, 1].transpose(0, 1)),
        )
    )


METHOD = Method(
    peft_type="PREFIX_TUNING",
    consumed=CONSUMED | {"num_layers", "num_attention_heads"},
    lower=lower,
    saved_prefix=SAVED_PREFIX,
    inert={
        "encoder_hidden_size": ENCODER_NOT_NEEDED,
        "prefix_projection": ENCODER_NOT_NEEDED,
        "init_weights": "how training started",
    },
)
