"""SHiRA (Bhardwaj et al., 2024): adds a sparse matrix to a module's weight.

Keys in a file: "base_model.model." + module + `.shira_weight` (r * (out + in)), the values, and
`.shira_indices` (2, as many), their rows and columns.
"""

from graftwork_adapters.canonical import LinearModule, LoweredAdapter, ModuleAdapter
from graftwork_adapters.canonical_linear import SparseDelta
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.weight_file import (
    TARGET_FIELDS,
    Parts,
    check_parts,
    owned,
    read_targets,
    read_weight_file,
)
from graftwork_adapters.patterns import Matcher

_VALUES = "shira_weight"
_INDICES = "shira_indices"


def lower(source: LoweringInput) -> LoweredAdapter:
    rank = source.config.positive_integer("r")
    targets = read_targets(source.config, Matcher())
    file = read_weight_file(source, targets, (_VALUES, _INDICES))
    linear_modules = source.base.linear_modules
    return LoweredAdapter(
        {
            name: ModuleAdapter(added_term=_sparse(name, parts, rank, linear_modules[name]))
            for name, parts in file.modules.items()
        }
    )


def _sparse(name: str, parts: Parts, rank: int, module: LinearModule) -> SparseDelta:
    out_features, in_features = module.out_features, module.in_features
    count = rank * (out_features + in_features)
    check_parts(name, parts, {_VALUES: (count,), _INDICES: (2, count)})
    rows, columns = parts[_INDICES].long()
    if int(rows.min()) < 0 or int(columns.min()) < 0:
        raise InvalidArtifact(f"{_INDICES} of {name} has a negative index")
    if int(rows.max()) >= out_features or int(columns.max()) >= in_features:
        raise WrongBase(
            f"{_INDICES} of {name} reaches row {int(rows.max())} and column {int(columns.max())}; "
            f"this base has {out_features} and {in_features}"
        )
    places, order = (rows * in_features + columns).sort()
    if bool((places[1:] == places[:-1]).any()):
        raise InvalidArtifact(f"{_INDICES} of {name} names a place twice")
    return SparseDelta(
        places // in_features,
        places % in_features,
        owned(parts[_VALUES])[order],
        out_features,
        in_features,
    )


METHOD = Method(
    peft_type="SHIRA",
    consumed=TARGET_FIELDS | {"r"},
    lower=lower,
    inert={
        "fan_in_fan_out": "PEFT knows SHiRA for nn.Linear only",
        "init_weights": "how training started",
        "mask_type": "how the places were chosen; the file holds them",
        "random_seed": "how the places were chosen; the file holds them",
    },
    integer_parts=(f".{_INDICES}",),
)
