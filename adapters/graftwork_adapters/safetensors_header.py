"""Reads and checks the header of a safetensors file before anything else of it is read.

Format: 8 bytes, the header's length as little-endian u64; the header, a JSON object; the tensors'
bytes. https://github.com/huggingface/safetensors#format. The offsets must cover those bytes without
gap or overlap, so that a file has one reading.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.strict_json import parse_object

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I16": 2, "I32": 4, "I64": 8}
_MAX_HEADER_BYTES = 16 * 1024**2
_MAX_DIMENSIONS = 4
# Some files hold empty tensors: AdaLoRA prunes modules to rank 0. Larger strides overflow.
_MAX_EMPTY_SIZE = 2**20


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """Where a tensor lies in the bytes after the header."""

    name: str
    dtype: str  # a key of DTYPE_BYTES
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    spans: tuple[TensorSpan, ...]  # by start
    metadata: Mapping[str, str]
    num_data_bytes: int


def read_header(file: BinaryIO, file_size: int, *, source: str) -> SafetensorsHeader:
    """Leaves `file` at the first byte of the tensors. Raises InvalidArtifact."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise InvalidArtifact(f"{source}: truncated: {file_size} bytes hold no header")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_MAX_HEADER_BYTES, file_size - 8):
        raise InvalidArtifact(
            f"{source}: truncated or not safetensors: a header of {length} bytes in a file of "
            f"{file_size}"
        )
    header = parse_object(file.read(length), source=f"{source} (header)")
    metadata = _metadata(header.pop("__metadata__", {}), source)
    spans = [_span(name, entry, source) for name, entry in header.items()]
    spans.sort(key=lambda span: (span.start, span.stop))
    num_data_bytes = file_size - 8 - length
    _check_cover(spans, num_data_bytes, source)
    return SafetensorsHeader(tuple(spans), metadata, num_data_bytes)


def _metadata(value: Any, source: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise InvalidArtifact(f"{source}: __metadata__ must map strings to strings")
    return value


def _span(name: str, entry: Any, source: str) -> TensorSpan:
    where = f"{source}: tensor {name[:200]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidArtifact(f"{where}: needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise InvalidArtifact(
            f"{where}: dtype {dtype!r} is not supported; supported are {', '.join(DTYPE_BYTES)}"
        )
    if not _is_list_of_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise InvalidArtifact(f"{where}: shape must be at most {_MAX_DIMENSIONS} sizes")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidArtifact(f"{where}: data_offsets must be [start, stop]")
    num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if num_bytes == 0 and (len(shape) > 3 or max(shape) > _MAX_EMPTY_SIZE):
        raise InvalidArtifact(f"{where}: is empty (shape {shape})")
    if offsets[1] - offsets[0] != num_bytes:
        raise InvalidArtifact(
            f"{where}: {dtype} of shape {shape} takes {num_bytes} bytes, "
            f"not the {offsets[1] - offsets[0]} of its data_offsets"
        )
    return TensorSpan(name, dtype, tuple(shape), offsets[0], offsets[1])


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_cover(spans: list[TensorSpan], num_data_bytes: int, source: str) -> None:
    if not spans:
        raise InvalidArtifact(f"{source}: holds no tensor")
    position = 0
    for span in spans:
        if span.start != position:
            kind = "overlaps another" if span.start < position else "leaves a gap before it"
            raise InvalidArtifact(f"{source}: tensor {span.name[:200]!r} {kind}")
        position = span.stop
    if position != num_data_bytes:
        kind = "truncated" if position > num_data_bytes else "followed by other data"
        raise InvalidArtifact(
            f"{source}: {kind}: tensors take {position} bytes, the file has {num_data_bytes}"
        )
