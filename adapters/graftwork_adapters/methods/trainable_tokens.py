"""Trainable tokens: rows of the embedding, and of an output head tied to it, are the adapter's."""

from collections.abc import Set

import torch

from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.patterns import Matcher, Targets
from graftwork_adapters.saved_parts import token_rows

_PREFIX = "base_model.model."
_ROWS = "trainable_tokens_delta"


def lower(source: LoweringInput) -> LoweredAdapter:
    config, base = source.config, source.base
    ids = config.integers("token_indices") or ()
    wanted = config.strings_or_pattern("target_modules") or base.embedding_name
    if isinstance(wanted, str) and base.embedding_name.endswith(wanted):
        wanted = (wanted,)  # PEFT writes the embedding's name as a plain string
    targets = Targets(
        targets=wanted, excluded=None, layers=None, layers_pattern=None, matcher=Matcher()
    )
    modules: Set[str] = targets.among([*base.other_modules, base.head_name])
    known = {base.embedding_name, base.head_name}
    if not modules or modules - known:
        raise InvalidArtifact(
            "target_modules of adapter_config.json must match the embedding or the output head "
            "alone"
        )
    if base.has_tied_head and base.embedding_name in modules:
        modules = known  # the head follows, and PEFT saves its rows too
    keys = {f"{_PREFIX}{module}.{_ROWS}": module for module in modules}
    if source.tensors.keys() != keys.keys():
        raise InvalidArtifact(f"the file must hold {', '.join(sorted(keys))}, and nothing else")
    rows = {module: token_rows(ids, source.tensors[key], base) for key, module in keys.items()}
    embedding, head = rows.get(base.embedding_name), rows.get(base.head_name)
    if embedding and head and base.has_tied_head and not torch.equal(embedding.rows, head.rows):
        raise InvalidArtifact("the trained tokens of the embedding and of the tied head differ")
    return LoweredAdapter(embedding_rows=embedding, head_rows=head)


METHOD = Method(
    peft_type="TRAINABLE_TOKENS",
    consumed=frozenset({"token_indices", "target_modules"}),
    lower=lower,
    inert={"init_weights": "how training started"},
)
