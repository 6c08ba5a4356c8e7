"""A PEFT folder, read and checked: its config, its tensors, its digest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from graftwork_adapters.errors import ArtifactTooLarge, InvalidArtifact
from graftwork_adapters.finite import is_finite
from graftwork_adapters.folder import (
    ALL_FILES,
    CONFIG_FILE,
    PROMPT_FILE,
    PROMPT_ONLY,
    WEIGHTS_FILE,
    check_complete,
    digest_of,
)
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.pacing import paced, yield_core
from graftwork_adapters.paths import open_regular
from graftwork_adapters.peft_config import PeftConfig
from graftwork_adapters.prompt_file import VersionPrompt, parse_prompt
from graftwork_adapters.safetensors_header import TensorSpan, read_header
from graftwork_adapters.strict_json import parse_object

_CHUNK_BYTES = 256 * 1024

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
    """What an adapter's folder holds. Tensors share one buffer, which lives as long as any of
    them."""

    config: PeftConfig
    tensors: Mapping[str, Tensor]  # by the name in the file, of any dtype in _DTYPES, finite
    metadata: Mapping[str, str]  # of the safetensors file
    digest: str  # "sha256:..."
    size_bytes: int
    prompt: VersionPrompt | None = None

    @property
    def has_weights(self) -> bool:
        """Otherwise the folder holds a prompt alone."""
        return bool(self.tensors)

    @property
    def method(self) -> str:
        """PEFT's name of the method, or PROMPT_ONLY."""
        return self.config.peft_type if self.has_weights else PROMPT_ONLY


def read_artifact(folder: Path, limits: AdapterLimits) -> Artifact:
    """Reads a folder whose path is already confined (paths.py) or is the store's own.

    The weights are read, not mapped: a mapped file that shrinks kills the process. Raises
    InvalidArtifact, ArtifactTooLarge, SourceNotFound.
    """
    check_complete([name for name in ALL_FILES if (folder / name).exists()])
    files: dict[str, tuple[int, bytes]] = {}
    config, prompt, weights = PeftConfig({}), None, _Weights({}, {})
    if (data := _read_small(folder, CONFIG_FILE, limits)) is not None:
        config = PeftConfig(parse_object(data, source=CONFIG_FILE))
        files[CONFIG_FILE] = (len(data), hashlib.sha256(data).digest())
    if (data := _read_small(folder, PROMPT_FILE, limits)) is not None:
        prompt = parse_prompt(data)
        files[PROMPT_FILE] = (len(data), hashlib.sha256(data).digest())
    if (folder / WEIGHTS_FILE).exists():
        weights, files[WEIGHTS_FILE] = _read_weights(folder, limits)
    return Artifact(
        config,
        weights.tensors,
        weights.metadata,
        digest_of(files),
        sum(size for size, _ in files.values()),
        prompt,
    )


def read_prompt(folder: Path, limits: AdapterLimits) -> VersionPrompt | None:
    """The prompt of a version in the store. Raises InvalidArtifact."""
    data = _read_small(folder, PROMPT_FILE, limits)
    return None if data is None else parse_prompt(data)


@dataclass(frozen=True, slots=True)
class _Weights:
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def _read_small(folder: Path, filename: str, limits: AdapterLimits) -> bytes | None:
    """A whole JSON file, None where there is none."""
    if not (folder / filename).exists():
        return None
    limit = limits.max_bytes_of(filename)
    with open_regular(folder / filename) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ArtifactTooLarge(filename, limit)
    return data


def _read_weights(folder: Path, limits: AdapterLimits) -> tuple[_Weights, tuple[int, bytes]]:
    """The tensors, and the file's size and hash."""
    with open_regular(folder / WEIGHTS_FILE) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size > limits.max_weights_bytes:
            raise ArtifactTooLarge(WEIGHTS_FILE, limits.max_weights_bytes)
        header = read_header(file, size, source=WEIGHTS_FILE)
        num_header_bytes = file.tell()
        file.seek(0)
        weights_hash = hashlib.sha256(file.read(num_header_bytes))
        data = _read_exactly(file, header.num_data_bytes, weights_hash)
    tensors = {span.name: _tensor(data, span) for span in paced(header.spans)}
    return _Weights(tensors, header.metadata), (size, weights_hash.digest())


def _read_exactly(file: BufferedReader, num_bytes: int, running_hash: "hashlib._Hash") -> Tensor:
    """The next bytes of the file, (num_bytes,) uint8."""
    # Not a bytearray: that fills 20 MB with zeros first, and holds the interpreter for 50 ms.
    data = torch.empty(num_bytes, dtype=torch.uint8)
    view, filled = data.numpy().data, 0
    while filled < num_bytes:
        count = file.readinto(view[filled : filled + _CHUNK_BYTES])
        if not count:
            raise InvalidArtifact(f"{WEIGHTS_FILE}: truncated while it was read")
        running_hash.update(view[filled : filled + count])
        filled += count
        yield_core()
    return data


def _tensor(data: Tensor, span: TensorSpan) -> Tensor:
    dtype = _DTYPES[span.dtype]
    if span.start == span.stop:
        return torch.empty(span.shape, dtype=dtype)
    own = data[span.start : span.stop]
    if span.start % dtype.itemsize:
        own = own.clone()  # elements are aligned
    flat = own.view(dtype)
    if not is_finite(flat):
        raise InvalidArtifact(f"{WEIGHTS_FILE}: tensor {span.name[:200]!r} holds NaN or infinity")
    return flat.reshape(span.shape)
