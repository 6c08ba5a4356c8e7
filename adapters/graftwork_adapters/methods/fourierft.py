"""FourierFT (Gao et al., 2024): adds to a module's weight what has a sparse Fourier transform.

Keys in a file: "base_model.model." + module + `.fourierft_spectrum` (n_frequency); the places of
these values follow from a seed.
"""

import torch
from torch import Tensor

from graftwork_adapters.canonical import LoweredAdapter, ModuleAdapter
from graftwork_adapters.canonical_linear import SpectralDelta
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    check_parts,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import DottedPatternTable, Matcher

_SPECTRUM = "fourierft_spectrum"


def lower(source: LoweringInput) -> LoweredAdapter:
    config, matcher = source.config, Matcher()
    default_count, scaling = config.positive_integer("n_frequency"), config.number("scaling")
    counts = DottedPatternTable(config.numbers_by_pattern("n_frequency_pattern"), matcher)
    places = _Places(config.seed("random_loc_seed"))
    targets = read_targets(config, matcher)
    file = read_weight_file(source, targets, (_SPECTRUM,), bias=config.string("bias"))
    modules: dict[str, ModuleAdapter] = {}
    for name, parts in file.modules.items():
        module = source.base.linear_modules[name]
        shape = module.out_features, module.in_features
        count = _whole_count(counts.get(name, default_count), shape, name)
        check_parts(name, parts, {_SPECTRUM: (count,)})
        values = parts[_SPECTRUM].float() * scaling
        term = SpectralDelta(*places.of(shape, count), values, *shape)
        modules[name] = ModuleAdapter(added_term=term)
    return file.with_biases(modules)


class _Places:
    """Rows and columns of a spectrum's values; modules of one shape share the tensors."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._found: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def of(self, shape: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
        """The first `count` of PEFT's permutation of all places: two of (count,) int64."""
        found = self._found.get((*shape, count))
        if found is None:
            generator = torch.Generator().manual_seed(self._seed)
            places = torch.randperm(shape[0] * shape[1], generator=generator)[:count]
            found = self._found[*shape, count] = (places // shape[1], places % shape[1])
        return found


def _whole_count(count: float, shape: tuple[int, int], module: str) -> int:
    if not 1 <= count <= shape[0] * shape[1] or count != int(count):
        raise InvalidArtifact(
            f"adapter_config.json: {count:g} frequencies do not fit {module} of shape {shape}"
        )
    return int(count)


METHOD = Method(
    peft_type="FOURIERFT",
    consumed=TARGET_FIELDS
    | {"bias", "n_frequency", "n_frequency_pattern", "random_loc_seed", "scaling"},
    lower=lower,
    inert={
        "fan_in_fan_out": "how the base stores its weight, which PEFT sets right by itself",
        "init_weights": "how training started",
    },
)
