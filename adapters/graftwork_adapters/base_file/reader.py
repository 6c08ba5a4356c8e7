"""Maps a base's folder. Every process that does shares the pages, and none can change them: what
one would write stays its own."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from graftwork_adapters.base_file.description import (
    WEIGHTS_FILE,
    BaseFileDescription,
    InvalidBaseFile,
    read_description,
)

_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class MappedBase:
    """A base's folder with its tensors. They live as long as any of them."""

    folder: Path  # of config and tokenizer, too
    description: BaseFileDescription
    tensors: Mapping[str, Tensor]  # by their names in the model, aliases too


def map_base(folder: Path) -> MappedBase:
    """Maps a folder that `write_base` wrote; raises InvalidBaseFile."""
    description = read_description(folder)
    tensors = _map_tensors(folder / WEIGHTS_FILE)
    for name, own in description.aliases.items():
        if own not in tensors:
            raise InvalidBaseFile(f"{folder}: {name} is said to be {own}, which is not there")
        tensors[name] = tensors[own]
    return MappedBase(folder, description, tensors)


def _map_tensors(path: Path) -> dict[str, Tensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        # Private: written pages would be the process's own.
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + length :]
        tensors = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            if not 0 <= start <= stop <= len(data):
                raise InvalidBaseFile(f"{path}: truncated; remove the folder and start the server")
            tensors[name] = data[start:stop].view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, struct.error, RuntimeError) as error:
        raise InvalidBaseFile(f"{path}: {error}; remove the folder, start the server") from error
    return tensors
