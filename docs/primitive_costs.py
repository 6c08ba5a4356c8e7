"""What each primitive costs, counted in multiply-adds for one token."""

from math import log2

from graftwork_adapters.canonical import (
    BaseDescription,
    LinearModule,
    LoweredAdapter,
    ModuleAdapter,
)
from graftwork_adapters.canonical_linear import (
    AddedTerm,
    BiasedScale,
    BlockRotations,
    Circulant,
    DenseDelta,
    InputScale,
    InputTransform,
    Kronecker,
    OutputTransform,
    PairRotation,
    SharedBases,
    SharedLowRank,
    SparseDelta,
    SpectralDelta,
)

_NAMES = {
    InputScale: "input scale",
    BlockRotations: "input rotation by blocks",
    SharedLowRank: "shared low-rank pair",
    SharedBases: "shared random bases",
    Kronecker: "Kronecker product",
    Circulant: "circulant blocks",
    SparseDelta: "sparse delta",
    SpectralDelta: "sparse spectrum",
    DenseDelta: "dense delta",
    BiasedScale: "output scale",
    PairRotation: "pair rotation of the output",
}


def primitives_of(adapter: LoweredAdapter) -> list[str]:
    """Names of the primitives that an adapter is made of, each once."""
    found: list[str] = []
    for module in adapter.modules.values():
        found += ["low-rank pair"] if module.low_rank is not None else []
        found += ["output scale"] if module.output_scale is not None else []
        parts = (module.input_transform, module.added_term, module.output_transform)
        found += [_NAMES[type(part)] for part in parts if part is not None]
    if adapter.prefix is not None:
        found.append("key/value prefix")
    if adapter.virtual_tokens is not None:
        found.append("virtual tokens")
    found += ["gated attention prompt"] if adapter.gated_prompts else []
    found += ["bottleneck block"] if adapter.bottlenecks else []
    found += ["replaced vectors"] if adapter.replaced else []
    if adapter.embedding_rows is not None or adapter.head_rows is not None:
        found.append("replaced rows")
    return list(dict.fromkeys(found))


def multiply_adds(adapter: LoweredAdapter, base: BaseDescription) -> float:
    """Beside those of the base. A virtual token costs what attention reads of it in each layer."""
    total = sum(
        _of_module(module, base.linear_modules[name]) for name, module in adapter.modules.items()
    )
    for layer in base.layers:
        total += 2 * adapter.num_virtual_tokens * layer.num_heads * layer.head_dim
    for index, prompt in adapter.gated_prompts.items():
        total += 2 * prompt.keys.shape[1] * base.layers[index].num_heads * prompt.keys.shape[2]
    for block in adapter.bottlenecks.values():
        total += block.down.numel() + block.up.numel()
    if adapter.head_rows is not None:
        total += adapter.head_rows.rows.numel()
    return float(total)


def _of_module(module: ModuleAdapter, shape: LinearModule) -> float:
    total = 0.0
    if module.low_rank is not None:
        total += module.low_rank.rank * (shape.in_features + shape.out_features)
    if module.output_scale is not None:
        total += shape.out_features
    if module.input_transform is not None:
        total += _of_input(module.input_transform, shape.in_features)
    if module.added_term is not None:
        total += _of_term(module.added_term, shape)
    if module.output_transform is not None:
        total += _of_output(module.output_transform, shape.out_features)
    return total


def _of_input(transform: InputTransform, in_features: int) -> float:
    if isinstance(transform, InputScale):
        return in_features
    return sum(in_features * rotation.matrices.shape[-1] for rotation in transform.rotations)


def _of_output(transform: OutputTransform, out_features: int) -> float:
    return out_features if isinstance(transform, BiasedScale) else 2 * out_features


def _of_term(term: AddedTerm, shape: LinearModule) -> float:
    inputs, outputs = shape.in_features, shape.out_features
    match term:
        case SharedLowRank():
            cost = (inputs + outputs + 1) * term.a_scale.numel() + outputs
        case SharedBases():
            cost = (inputs + outputs) * term.row_scale.numel() + term.column_scale.numel()
        case Kronecker():
            (a, c), (b, d) = term.left.shape, term.right.shape
            cost = min(c * b * d + a * b * c, a * c * d + a * b * d)
        case Circulant():
            size = term.kernels.shape[-1]
            transforms = sum(_fourier(size) * count / size for count in (inputs, outputs))
            cost = transforms + 4 * (size // 2 + 1) * inputs * outputs / size**2
        case SparseDelta():
            cost = term.values.numel()
        case SpectralDelta():
            cost = _fourier(inputs) + _fourier(outputs) + 4 * term.values.numel()
        case DenseDelta():
            cost = inputs * outputs
    return cost


def _fourier(size: int) -> float:
    """Of a fast transform: a complex product, four real ones, for each of its butterflies."""
    return 2 * size * max(1.0, log2(size))
