"""A PEFT folder, read and checked: its config, its tensors, its digest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from graftwork_adapters.errors import ArtifactTooLarge, InvalidArtifact
from graftwork_adapters.folder import CONFIG_FILE, WEIGHTS_FILE, digest_of
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.paths import open_regular
from graftwork_adapters.peft_config import PeftConfig
from graftwork_adapters.safetensors_header import TensorSpan, read_header
from graftwork_adapters.strict_json import parse_object

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a PEFT folder holds. Tensors share one buffer, which lives as long as any of them."""

    config: PeftConfig
    tensors: Mapping[str, Tensor]  # by the name in the file, of any dtype in _DTYPES, finite
    metadata: Mapping[str, str]  # of the safetensors file
    digest: str  # "sha256:..."
    size_bytes: int


def read_artifact(folder: Path, limits: AdapterLimits) -> Artifact:
    """Reads a folder whose path is already confined (paths.py) or is the store's own.

    The weights are read, not mapped: a mapped file that shrinks kills the process. Raises
    InvalidArtifact, ArtifactTooLarge, SourceNotFound.
    """
    with open_regular(folder / CONFIG_FILE) as file:
        config_data = file.read(limits.max_config_bytes + 1)
    if len(config_data) > limits.max_config_bytes:
        raise ArtifactTooLarge(CONFIG_FILE, limits.max_config_bytes)
    config = PeftConfig(parse_object(config_data, source=CONFIG_FILE))

    with open_regular(folder / WEIGHTS_FILE) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size > limits.max_weights_bytes:
            raise ArtifactTooLarge(WEIGHTS_FILE, limits.max_weights_bytes)
        header = read_header(file, size, source=WEIGHTS_FILE)
        data = _read_exactly(file, header.num_data_bytes)
        file.seek(0)
        weights_hash = hashlib.file_digest(file, "sha256").digest()

    tensors = {span.name: _tensor(data, span) for span in header.spans}
    files = {
        CONFIG_FILE: (len(config_data), hashlib.sha256(config_data).digest()),
        WEIGHTS_FILE: (size, weights_hash),
    }
    return Artifact(config, tensors, header.metadata, digest_of(files), len(config_data) + size)


def _read_exactly(file: BufferedReader, num_bytes: int) -> bytearray:
    data = bytearray(num_bytes)
    view, filled = memoryview(data), 0
    while filled < num_bytes:
        count = file.readinto(view[filled:])
        if not count:
            raise InvalidArtifact(f"{WEIGHTS_FILE}: truncated while it was read")
        filled += count
    return data


def _tensor(data: bytearray, span: TensorSpan) -> Tensor:
    dtype = _DTYPES[span.dtype]
    if span.start == span.stop:
        return torch.empty(span.shape, dtype=dtype)
    num_elements = (span.stop - span.start) // dtype.itemsize
    flat = torch.frombuffer(data, dtype=dtype, count=num_elements, offset=span.start)
    if span.start % dtype.itemsize:
        flat = flat.clone()  # vectorized kernels expect aligned elements
    if not torch.isfinite(flat).all():
        raise InvalidArtifact(f"{WEIGHTS_FILE}: tensor {span.name[:200]!r} holds NaN or infinity")
    return flat.reshape(span.shape)
