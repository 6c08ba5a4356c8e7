"""Prompt tuning (Lester et al., 2021): learned embeddings before the prompt's own."""

from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.virtual_tokens import (
    CONSUMED,
    DESCRIBES_THE_BASE,
    SAVED_PREFIX,
    embeddings_alone,
)


def lower(source: LoweringInput) -> LoweredAdapter:
    return LoweredAdapter(virtual_tokens=embeddings_alone(source))


METHOD = Method(
    peft_type="PROMPT_TUNING",
    consumed=CONSUMED,
    lower=lower,
    saved_prefix=SAVED_PREFIX,
    inert={
        **DESCRIBES_THE_BASE,
        "prompt_tuning_init": "how training started",
        "prompt_tuning_init_text": "how training started",
        "tokenizer_name_or_path": "how training started",
        "tokenizer_kwargs": "how training started",
    },
)
