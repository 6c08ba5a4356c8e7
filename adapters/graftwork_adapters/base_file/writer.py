"""Writes a base's folder: in full or not at all, and readable only.

The weights are safetensors, written here because its library packs tensors at multiples of 8 bytes:
kernels read whole cache lines.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from graftwork_adapters.base_file.description import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    BaseFileDescription,
)
from graftwork_adapters.durable import new_folder

LINE = 64  # bytes of a cache line
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


def write_base(
    folder: Path,
    description: BaseFileDescription,
    tensors: Mapping[str, Tensor],
    save_model_files: Callable[[Path], None],
) -> None:
    """Writes ROOT/HEX; a folder that is there stays as it is.

    tensors: every one that the description's aliases do not name, on any device
    save_model_files: saves the config and the tokenizer into the folder that it is given

    Raises OSError where the disk is full or not writable.
    """
    with new_folder(folder) as draft:
        save_model_files(draft)
        (draft / DESCRIPTION_FILE).write_text(description.to_json())
        with (draft / WEIGHTS_FILE).open("xb") as file:
            for chunk in _chunks(tensors):
                file.write(chunk)
        for path in draft.iterdir():
            if path.is_file():
                path.chmod(0o444)
        draft.chmod(0o755)


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of the file. Tensors of whole lines come first, so that all of them are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -_alignment(item[1].nbytes))
    header: dict[str, object] = {}
    position = 0
    for name, tensor in ordered:
        end = position + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(len(encoded) + 8) % LINE)
    yield len(encoded).to_bytes(8, "little")
    yield encoded
    for _, tensor in ordered:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def _alignment(num_bytes: int) -> int:
    """The largest power of two up to a line that divides the size."""
    return min(LINE, num_bytes & -num_bytes) if num_bytes else LINE
