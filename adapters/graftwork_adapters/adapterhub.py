"""Bottleneck layers saved by AdapterHub's `adapters`, as a folder in our own style (bottleneck.py).

Its folders hold adapter_config.json, with the architecture under "config", and adapter.safetensors
or, from older versions, pytorch_adapter.bin: a pickle, which only the offline conversion opens, and
there for tensors alone.
"""

import io
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from graftwork_adapters.bottleneck import ATTENTION, NON_LINEARITIES, OUTPUT, PEFT_TYPE, PREFIX
from graftwork_adapters.errors import (
    ArtifactTooLarge,
    InvalidArtifact,
    SourceNotFound,
    UnsupportedField,
)
from graftwork_adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.paths import confine, open_regular
from graftwork_adapters.safetensors_header import read_header
from graftwork_adapters.strict_json import parse_object

SAFE_WEIGHTS = "adapter.safetensors"
PICKLED_WEIGHTS = "pytorch_adapter.bin"

_KEY = re.compile(
    r"(?:(?:model|transformer)\.)?(?P<stack>layers|h)\.(?P<index>\d+)"
    r"\.(?P<role>attention|output)_adapters\.adapters\.[^.]+\.(?P<part>.+)"
)
_PARTS = {
    "adapter_down.0.weight": "down.weight",
    "adapter_down.0.bias": "down.bias",
    "adapter_up.weight": "up.weight",
    "adapter_up.bias": "up.bias",
    "adapter_norm_after.weight": "norm_after.weight",
    "adapter_norm_after.bias": "norm_after.bias",
}
_STACKS = {"layers": "model.layers", "h": "transformer.h"}
_ROLES = {"attention": ATTENTION, "output": OUTPUT}
# Before 1.0 files said no version, and meant others by these names.
_OLD_NON_LINEARITIES = {"gelu": "gelu_new", "gelu_orig": "gelu"}
# (original_ln_before, mh_adapter, output_adapter) -> placement
_PLACEMENTS = {(False, True, True): "houlsby", (True, False, True): "pfeiffer"}
# Field -> the value that leaves the arithmetic as bottleneck.py has it.
_REQUIRED: Mapping[str, object] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "inv_adapter": None,
    "is_parallel": False,
    "ln_before": False,
    "original_ln_after": True,
    "phm_layer": False,
    "residual_before_ln": True,
    "use_gating": False,
}


def is_adapterhub(folder: Path) -> bool:
    """Whether a folder holds AdapterHub's safetensors file and none of PEFT's."""
    return (folder / SAFE_WEIGHTS).exists() and not (folder / WEIGHTS_FILE).exists()


def import_folder(
    folder: Path, roots: Sequence[Path], limits: AdapterLimits
) -> Mapping[str, bytes]:
    """The files of our own style, by name.

    Raises InvalidArtifact, UnsupportedField, PathNotAllowed, ArtifactTooLarge, SourceNotFound.
    """
    fields = _read_config(confine(folder / CONFIG_FILE, roots), limits)
    data = _read(confine(folder / SAFE_WEIGHTS, roots), limits.max_weights_bytes)
    read_header(io.BytesIO(data), len(data), source=SAFE_WEIGHTS)
    return convert(fields, load(data))


def convert_folder(source: Path, target: Path, limits: AdapterLimits) -> None:
    """Offline: writes a folder that a server takes, from one with safetensors or with a pickle."""
    fields = _read_config(source / CONFIG_FILE, limits)
    if (source / SAFE_WEIGHTS).exists():
        files = import_folder(source, [source], limits)
    elif (source / PICKLED_WEIGHTS).exists():
        data = io.BytesIO(_read(source / PICKLED_WEIGHTS, limits.max_weights_bytes))
        try:
            tensors = torch.load(data, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InvalidArtifact(f"{PICKLED_WEIGHTS} holds more than tensors") from error
        files = convert(fields, tensors)
    else:
        raise SourceNotFound(f"neither {SAFE_WEIGHTS} nor {PICKLED_WEIGHTS} is in {source}")
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (target / name).write_bytes(content)


def convert(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, bytes]:
    """The two files of our style, from AdapterHub's config and tensors."""
    config = fields.get("config")
    if not isinstance(config, dict):
        raise InvalidArtifact(f"{CONFIG_FILE}: no AdapterHub config: needs an object named config")
    renamed: dict[str, Tensor] = {}
    layers: set[int] = set()
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        part = None if match is None else _PARTS.get(match["part"])
        if match is None or part is None:
            raise InvalidArtifact(f"tensor {key[:200]!r} is none of a bottleneck layer's")
        layers.add(int(match["index"]))
        layer = f"{_STACKS[match['stack']]}.{match['index']}"
        renamed[f"{PREFIX}{layer}.{_ROLES[match['role']]}.{part}"] = tensor.contiguous()
    ours = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "layers_to_transform": sorted(layers),
        **_convert_config(config, is_old="version" not in fields),
    }
    text = json.dumps(ours, indent=2, sort_keys=True)
    return {
        CONFIG_FILE: text.encode(),
        WEIGHTS_FILE: save(renamed, metadata={"format": "pt"}),
    }


def _convert_config(config: Mapping[str, Any], *, is_old: bool) -> dict[str, object]:
    for name, wanted in _REQUIRED.items():
        value = config.get(name, wanted)
        if value != wanted and not (wanted is None and not value):
            raise UnsupportedField(name, json.dumps(value)[:80], json.dumps(wanted))
    where = ("original_ln_before", "mh_adapter", "output_adapter")
    placement = _PLACEMENTS.get(tuple(bool(config.get(name)) for name in where))  # type: ignore[arg-type]
    if placement is None:
        raise UnsupportedField(
            "mh_adapter, output_adapter and original_ln_before",
            json.dumps([config.get(name) for name in where])[:80],
            "those of double_seq_bn (Houlsby) and seq_bn (Pfeiffer)",
        )
    name = str(config.get("non_linearity", "")).lower()
    name = _OLD_NON_LINEARITIES.get(name, name) if is_old else name
    if name not in NON_LINEARITIES:
        raise UnsupportedField("non_linearity", name[:80], ", ".join(NON_LINEARITIES))
    factor, scaling = config.get("reduction_factor"), config.get("scaling", 1.0)
    if type(factor) not in {int, float}:
        raise UnsupportedField("reduction_factor", json.dumps(factor)[:80], "one number")
    if type(scaling) not in {int, float}:
        raise UnsupportedField("scaling", json.dumps(scaling)[:80], "a number")
    return {
        "placement": placement,
        "non_linearity": name,
        "reduction_factor": factor,
        "scaling": scaling,
        "norm_after": bool(config.get("ln_after", False)),
    }


def _read_config(path: Path, limits: AdapterLimits) -> dict[str, Any]:
    return parse_object(_read(path, limits.max_config_bytes), source=CONFIG_FILE)


def _read(path: Path, limit: int) -> bytes:
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ArtifactTooLarge(path.name, limit)
    return data
