"""P-tuning (Liu et al., 2021): virtual tokens that an encoder made while training.

PEFT saves what the encoder puts out, so that serving needs no encoder.
"""

from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.virtual_tokens import (
    CONSUMED,
    DESCRIBES_THE_BASE,
    ENCODER_NOT_NEEDED,
    SAVED_PREFIX,
    embeddings_alone,
)


def lower(source: LoweringInput) -> LoweredAdapter:
    return LoweredAdapter(virtual_tokens=embeddings_alone(source))


METHOD = Method(
    peft_type="P_TUNING",
    consumed=CONSUMED,
    lower=lower,
    saved_prefix=SAVED_PREFIX,
    inert={
        **DESCRIBES_THE_BASE,
        "encoder_reparameterization_type": ENCODER_NOT_NEEDED,
        "encoder_hidden_size": ENCODER_NOT_NEEDED,
        "encoder_num_layers": ENCODER_NOT_NEEDED,
        "encoder_dropout": "training only",
    },
)
