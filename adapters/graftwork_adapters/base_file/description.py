"""base.json: what a base's folder holds."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

DESCRIPTION_FILE = "base.json"
WEIGHTS_FILE = "weights.safetensors"
_FORMAT_VERSION = 1

# "int8" and "nf4" are the panels of `panels.py`; "nf4_blocks" is bitsandbytes' own layout, with its
# scales quantized, for CUDA.
Packing = Literal["int8", "nf4", "nf4_blocks"]
PACKINGS: tuple[Packing, ...] = ("int8", "nf4", "nf4_blocks")


class InvalidBaseFile(Exception):
    """A base's folder is damaged or not one; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A linear module whose weight is quantized: its tensors are buffers of that module."""

    in_features: int
    out_features: int
    packing: Packing


@dataclass(frozen=True, slots=True)
class BaseFileDescription:
    """The fields of base.json."""

    digest: str  # "sha256:..." of the base as it is served
    quantization: str  # "none", "int8" or "nf4"
    end_token_ids: tuple[int, ...]  # that end an answer
    packed: Mapping[str, PackedLinear]  # by the module's name; all others are as in config.json
    aliases: Mapping[str, str]  # names of tensors that are another's, such as a tied head

    def to_json(self) -> str:
        values = {**asdict(self), "format_version": _FORMAT_VERSION}
        return json.dumps(values, indent=2, sort_keys=True)


def read_description(folder: Path) -> BaseFileDescription:
    """Raises InvalidBaseFile."""
    path = folder / DESCRIPTION_FILE
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        if values.pop("format_version") != _FORMAT_VERSION:
            raise InvalidBaseFile(f"{path}: written by another version; remove the folder")
        values["end_token_ids"] = tuple(values["end_token_ids"])
        values["packed"] = {
            name: _packed_linear(fields) for name, fields in values["packed"].items()
        }
        return BaseFileDescription(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidBaseFile(f"{path}: {error}; start the server to write it anew") from error


def _packed_linear(fields: Mapping[str, Any]) -> PackedLinear:
    if fields["packing"] not in PACKINGS:
        raise ValueError(f"packing {fields['packing']!r} is not known")
    return PackedLinear(
        int(fields["in_features"]), int(fields["out_features"]), cast("Packing", fields["packing"])
    )
