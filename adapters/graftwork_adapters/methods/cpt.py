"""Context-aware prompt tuning (Blau et al., 2024): the tokens of examples, their embeddings tuned.

PEFT saves the embeddings with the bounded changes added.
"""

from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.virtual_tokens import (
    CONSUMED,
    DESCRIBES_THE_BASE,
    EMBEDDINGS,
    SAVED_PREFIX,
    check_shape,
    check_tensors,
    num_virtual_tokens,
)
from graftwork_adapters.saved_parts import owned


def lower(source: LoweringInput) -> LoweredAdapter:
    count = num_virtual_tokens(source)
    token_ids = source.config.integers("cpt_token_ids")
    if token_ids is not None and len(token_ids) != count:
        raise InvalidArtifact(
            f"adapter_config.json: num_virtual_tokens is {count}, but there are {len(token_ids)} "
            "cpt_token_ids"
        )
    check_tensors(source, [EMBEDDINGS])
    embeddings = source.tensors[EMBEDDINGS]
    shape = (count, source.base.hidden_size)
    check_shape(EMBEDDINGS, embeddings, shape, "num_virtual_tokens, for this base's hidden size")
    return LoweredAdapter(virtual_tokens=owned(embeddings))


_LOSS = "training only"

METHOD = Method(
    peft_type="CPT",
    consumed=CONSUMED | {"cpt_token_ids"},
    lower=lower,
    saved_prefix=SAVED_PREFIX,
    inert={
        **DESCRIBES_THE_BASE,
        "cpt_mask": _LOSS,
        "cpt_tokens_type_mask": "where training may change the embeddings",
        "opt_weighted_loss_type": _LOSS,
        "opt_loss_decay_factor": _LOSS,
        "opt_projection_epsilon": "bounded the changes while training; those saved are bounded",
        "opt_projection_format_epsilon": "as opt_projection_epsilon",
        "tokenizer_name_or_path": "how training started",
        "is_prompt_learning": "which class PEFT loads",
    },
)
