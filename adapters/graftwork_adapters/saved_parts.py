"""What a file holds beside its method's own tensors: saved modules, trained tokens, a classifier.

Any method may come with them. Keys: prefix + module + "." + parameter for modules_to_save and for
the classifier, prefix + module + ".token_adapter.trainable_tokens_delta" for
trainable_token_indices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from graftwork_adapters.canonical import BaseDescription, LoweredAdapter
from graftwork_adapters.canonical_parts import ClassifierHead, Parameters, TokenRows
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from graftwork_adapters.peft_config import LABELS_FIELD, PeftConfig

SEQUENCE_CLASSIFICATION = "SEQ_CLS"
CONSUMED = frozenset({"modules_to_save", "trainable_token_indices", LABELS_FIELD})

_CLASSIFIERS = ("score", "classifier")  # PEFT's names for the head of a sequence classifier
_TOKENS = "token_adapter.trainable_tokens_delta"


@dataclass(frozen=True, slots=True)
class SavedParts:
    """Lowered, beside the tensors that are the method's own."""

    rest: Mapping[str, Tensor]
    replaced: Mapping[str, Parameters] = field(default_factory=dict)
    embedding_rows: TokenRows | None = None
    head_rows: TokenRows | None = None
    classifier: ClassifierHead | None = None

    def put_into(self, adapter: LoweredAdapter, base: BaseDescription) -> LoweredAdapter:
        """Both together; raises InvalidArtifact where the two change one module."""
        both = sorted(self.replaced.keys() & (adapter.modules.keys() | adapter.replaced.keys()))
        if both:
            raise InvalidArtifact(f"{both[0]} is both adapted and saved")
        if self.head_rows is not None and base.head_name in adapter.modules:
            raise UnsupportedField(
                "trainable_token_indices", "rows of an adapted output head", "one of the two"
            )
        return replace(
            adapter,
            replaced={**adapter.replaced, **self.replaced},
            embedding_rows=self.embedding_rows or adapter.embedding_rows,
            head_rows=self.head_rows or adapter.head_rows,
            classifier=self.classifier,
        )


def split_saved_parts(
    config: PeftConfig, tensors: Mapping[str, Tensor], base: BaseDescription, prefix: str
) -> SavedParts:
    """`prefix` is what PEFT puts before the base's names. Raises InvalidArtifact, WrongBase."""
    rest = dict(tensors)
    classifier = None
    names = list(config.strings("modules_to_save"))
    if config.get("task_type", None) == SEQUENCE_CLASSIFICATION:
        classifier = _take_classifier(config, rest, base, prefix)
        names = [name for name in names if name not in _CLASSIFIERS]
    replaced = _take_saved_modules(names, rest, base, prefix)
    embedding_rows, head_rows = _take_token_rows(config, rest, base, prefix)
    if embedding_rows is not None and base.embedding_name in replaced:
        raise InvalidArtifact("the embedding is in modules_to_save and has trained tokens")
    if head_rows is not None and base.head_name in replaced:
        raise InvalidArtifact("the output head is in modules_to_save and has trained tokens")
    return SavedParts(rest, replaced, embedding_rows, head_rows, classifier)


def lower_parameters(name: str, tensors: Parameters, base: BaseDescription) -> Parameters:
    """The parameters of one saved module, complete and in the base's shapes; a linear weight as
    (out_features, in_features). Raises InvalidArtifact, WrongBase."""
    shapes = parameter_shapes(name, base)
    if tensors.keys() != shapes.keys():
        listed = ", ".join(sorted(tensors.keys() ^ shapes.keys())[:5])
        raise InvalidArtifact(f"the file and the base disagree about {listed[:200]} of {name}")
    for parameter, tensor in tensors.items():
        if tensor.shape != shapes[parameter]:
            raise WrongBase(
                f"{parameter} of {name} has shape {tuple(tensor.shape)}; this base needs "
                f"{shapes[parameter]}"
            )
    linear = base.linear_modules.get(name)
    lowered = {parameter: owned(tensor) for parameter, tensor in tensors.items()}
    if linear is not None and linear.is_transposed:
        lowered["weight"] = owned(tensors["weight"].T)
    return lowered


def parameter_shapes(name: str, base: BaseDescription) -> Mapping[str, tuple[int, ...]]:
    """Of a leaf module of the base, as a file holds them."""
    linear = base.linear_modules.get(name)
    if linear is None:
        return base.other_modules[name]
    shape = (linear.out_features, linear.in_features)
    weight = shape[::-1] if linear.is_transposed else shape
    return {"weight": weight, **({"bias": shape[:1]} if linear.has_bias else {})}


def token_rows(ids: tuple[int, ...], rows: Tensor, base: BaseDescription) -> TokenRows:
    """Trained rows by token; raises InvalidArtifact, WrongBase."""
    vocab_size, hidden_size = base.other_modules[base.embedding_name]["weight"]
    if rows.shape != (len(ids), hidden_size):
        raise InvalidArtifact(
            f"trainable_tokens_delta has shape {tuple(rows.shape)}, but adapter_config.json names "
            f"{len(ids)} tokens and the base's hidden size is {hidden_size}"
        )
    if len(set(ids)) != len(ids):
        raise InvalidArtifact("adapter_config.json names a trained token twice")
    if any(not 0 <= token_id < vocab_size for token_id in ids):
        raise WrongBase(f"a trained token is outside the base's vocabulary of {vocab_size}")
    return TokenRows(torch.tensor(ids, dtype=torch.int64), owned(rows))


def owned(tensor: Tensor) -> Tensor:
    """A copy that does not keep the buffer of the whole file alive."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _take_classifier(
    config: PeftConfig, rest: dict[str, Tensor], base: BaseDescription, prefix: str
) -> ClassifierHead:
    found = [name for name in _CLASSIFIERS if f"{prefix}{name}.weight" in rest]
    if len(found) != 1:
        raise InvalidArtifact(
            f"task_type is {SEQUENCE_CLASSIFICATION}, but the file holds no linear head named "
            f"{' or '.join(_CLASSIFIERS)}"
        )
    weight = rest.pop(f"{prefix}{found[0]}.weight")
    bias = rest.pop(f"{prefix}{found[0]}.bias", None)
    if weight.dim() != 2 or weight.shape[1] != base.hidden_size or weight.shape[0] < 1:
        raise WrongBase(
            f"{found[0]}.weight has shape {tuple(weight.shape)}; this base needs (number of "
            f"labels, {base.hidden_size})"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InvalidArtifact(f"{found[0]}.bias has shape {tuple(bias.shape)}")
    labels = config.strings(LABELS_FIELD) or [f"LABEL_{i}" for i in range(weight.shape[0])]
    if len(labels) != weight.shape[0] or len(set(labels)) != len(labels):
        raise InvalidArtifact(
            f"adapter_config.json: {LABELS_FIELD} must name each of the {weight.shape[0]} labels"
        )
    return ClassifierHead(owned(weight), None if bias is None else owned(bias), tuple(labels))


def _take_saved_modules(
    names: list[str], rest: dict[str, Tensor], base: BaseDescription, prefix: str
) -> dict[str, Parameters]:
    """Every leaf of the saved modules, which PEFT matches by the ends of their names."""
    leaves = [*base.linear_modules, *base.other_modules]
    saved = [leaf for leaf in leaves if any(_ends_a_parent(leaf, name) for name in names)]
    for name in names:
        if not any(_ends_a_parent(leaf, name) for leaf in saved):
            raise WrongBase(f"modules_to_save names {name[:80]!r}, which the base does not have")
    found: dict[str, Parameters] = {}
    for leaf in saved:
        parameters = {
            parameter: rest.pop(f"{prefix}{leaf}.{parameter}")
            for parameter in parameter_shapes(leaf, base)
            if f"{prefix}{leaf}.{parameter}" in rest
        }
        if not parameters:
            raise InvalidArtifact(
                f"modules_to_save match {leaf} of the base, but there are no tensors for it"
            )
        found[leaf] = lower_parameters(leaf, parameters, base)
    return found


def _ends_a_parent(leaf: str, name: str) -> bool:
    """Whether the leaf, or a module that holds it, ends with `name`."""
    parts = leaf.split(".")
    return any(".".join(parts[:count]).endswith(name) for count in range(1, len(parts) + 1))


def _take_token_rows(
    config: PeftConfig, rest: dict[str, Tensor], base: BaseDescription, prefix: str
) -> tuple[TokenRows | None, TokenRows | None]:
    """Of the embedding and of the output head."""
    value = config.get("trainable_token_indices", None)
    if not value:
        return None, None
    by_module = value if isinstance(value, dict) else {base.embedding_name: value}
    found: dict[str, TokenRows] = {}
    for target, ids in by_module.items():
        if not isinstance(ids, list) or not all(type(token_id) is int for token_id in ids):
            raise InvalidArtifact(
                "adapter_config.json: trainable_token_indices must be lists of token ids"
            )
        modules = (base.embedding_name, base.head_name)
        module = next((name for name in modules if name.endswith(target)), None)
        if module is None:
            raise UnsupportedField(
                "trainable_token_indices", target[:80], "the embedding and the output head"
            )
        rows = rest.pop(f"{prefix}{module}.{_TOKENS}", None)
        if rows is not None:
            found[module] = token_rows(tuple(ids), rows, base)
        elif not (base.has_tied_head and module == base.head_name):
            raise InvalidArtifact(f"there are no trained tokens for {module}")
    embedding = found.get(base.embedding_name)
    head = found.get(base.head_name)
    if base.has_tied_head and head is None:
        head = embedding
    return embedding, head
