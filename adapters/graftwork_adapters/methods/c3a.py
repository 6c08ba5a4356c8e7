"""C3A (Chen et al., 2024): adds a block-circulant matrix to a module's weight.

Keys in a file: "base_model.model." + module + `.c3a_kernel` (out / size, in / size, size).
"""

from graftwork_adapters.canonical import LoweredAdapter, ModuleAdapter
from graftwork_adapters.canonical_linear import Circulant
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    check_parts,
    owned,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import DottedPatternTable, Matcher

_KERNEL = "c3a_kernel"


def lower(source: LoweringInput) -> LoweredAdapter:
    config, matcher = source.config, Matcher()
    default_size = config.positive_integer("block_size")
    sizes = DottedPatternTable(config.numbers_by_pattern("block_size_pattern"), matcher)
    targets = read_targets(config, matcher)
    file = read_weight_file(source, targets, (_KERNEL,), bias=config.string("bias"))
    modules: dict[str, ModuleAdapter] = {}
    for name, parts in file.modules.items():
        module = source.base.linear_modules[name]
        size = _whole_size(sizes.get(name, default_size), name)
        if module.in_features % size or module.out_features % size:
            raise WrongBase(
                f"{name} has {module.in_features} inputs and {module.out_features} outputs, "
                f"not multiples of {size}"
            )
        shape = (module.out_features // size, module.in_features // size, size)
        check_parts(name, parts, {_KERNEL: shape})
        term = Circulant(owned(parts[_KERNEL]) / module.in_features)
        modules[name] = ModuleAdapter(added_term=term)
    return file.with_biases(modules)


def _whole_size(size: float, module: str) -> int:
    if size < 1 or size != int(size):
        raise InvalidArtifact(
            f"adapter_config.json: block_size_pattern gives {module} the size {size:g}"
        )
    return int(size)


METHOD = Method(
    peft_type="C3A",
    consumed=TARGET_FIELDS | {"bias", "block_size", "block_size_pattern"},
    lower=lower,
    inert={"init_weights": "how training started"},
)
