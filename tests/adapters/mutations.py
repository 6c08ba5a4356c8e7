"""Damages adapter folders by a seed: some mutations keep a file well-formed and only make it lie,
others break the format itself."""

import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftwork_adapters.folder import CONFIG_FILE, WEIGHTS_FILE

DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I16": 2, "I32": 4, "I64": 8, "F64": 8, "BOOL": 1}

_WILD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 5, 7, 64, 10**6, 2**31, 2**63 - 1, 2**63, -(2**63)),
    *(10**400, 0.5, 2.0, 1e300, -1e300, 1e-300, -0.0),
    *(
        "",
        "a",
        "none",
        "all",
        "lora_only",
        "q_proj",
        "lm_head",
        "embed_tokens",
        ".*",
        "(",
        "CAUSAL_LM",
    ),
    *("(a+)+$", "((.|[a-z._0-9])+)+[!?]", "(a{1000}){1000}", "é\u2028😀", "\x00", "a" * 5000),
    *(
        [],
        [None],
        [0],
        [-1],
        [0, 1],
        [5, 7, 9],
        ["q_proj"],
        ["q_proj", 3],
        [[]],
        ["lm_head"],
        [2**70],
    ),
    *({}, {"q_proj": 4}, {"q_proj": -1}, {".*": 1e300}, {"(": 1}, {"": ""}, {"a": {"b": [1]}}),
]
_UNKNOWN = ["use_qalora", "a_field_of_the_future", "layer_replication", "", "é", "rank_pattern"]
_NAMES = [
    "",
    "a",
    "é😀",
    "base_model.model.",
    "a" * 3000,
    "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight",
    "base_model.model.lm_head.weight",
    "prompt_embeddings",
    "../../etc/passwd",
]


@dataclass(frozen=True, slots=True)
class Tensor:
    dtype: str
    shape: list[int]
    data: bytes


@dataclass(frozen=True, slots=True)
class Folder:
    """An adapter folder as data."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> "Folder":
        data = (path / WEIGHTS_FILE).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        body = data[8 + length :]
        tensors = {
            name: Tensor(entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
            for name, entry in header.items()
        }
        return cls(json.loads((path / CONFIG_FILE).read_text()), tensors)


def write_mutant(folders: list[Folder], seed: int, path: Path) -> str:
    """Writes a damaged copy of one of the folders; says what was done to it."""
    rng = random.Random(seed)
    folder, done = rng.choice(folders), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutate = rng.choice(_WELL_FORMED)
        done.append(mutate.__name__)
        folder = mutate(folder, folders, rng)
    config = json.dumps(folder.config).encode()
    header, body = _layout(folder)
    if rng.random() < 0.3:
        mutate_header = rng.choice(_HEADER)
        done.append(mutate_header.__name__)
        mutate_header(header, rng)
    encoded = json.dumps(header).encode()
    weights = struct.pack("<Q", len(encoded)) + encoded + body
    if rng.random() < 0.2:
        mutate_bytes = rng.choice(_BYTES)
        done.append(mutate_bytes.__name__)
        if rng.random() < 0.5:
            config = mutate_bytes(config, rng)
        else:
            weights = mutate_bytes(weights, rng)
    (path / CONFIG_FILE).write_bytes(config)
    (path / WEIGHTS_FILE).write_bytes(weights)
    return f"seed {seed}, {folder.config.get('peft_type')}: {', '.join(done)}"


def _layout(folder: Folder) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in folder.tensors.items():
        span = [len(body), len(body) + len(tensor.data)]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": span}
        body += tensor.data
    return header, body


# --- Well-formed files that lie


def _set_field(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    name = rng.choice(sorted(folder.config))
    return replace(folder, config={**folder.config, name: rng.choice(_WILD)})


def _nudge_number(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    numbers = [k for k, v in sorted(folder.config.items()) if type(v) in {int, float}]
    if not numbers:
        return _set_field(folder, folders, rng)
    name = rng.choice(numbers)
    change: Callable[[Any], Any] = rng.choice(
        [
            lambda v: v + 1,
            lambda v: v - 1,
            lambda v: v * 2,
            lambda v: -v,
            lambda v: v % 97 + 0.5,
            str,
            lambda v: [v],
        ]
    )
    return replace(folder, config={**folder.config, name: change(folder.config[name])})


def _drop_field(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    name = rng.choice(sorted(folder.config))
    return replace(folder, config={k: v for k, v in folder.config.items() if k != name})


def _unknown_field(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    return replace(folder, config={**folder.config, rng.choice(_UNKNOWN): rng.choice(_WILD)})


def _field_of_another(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    other = rng.choice(folders).config
    name = rng.choice(sorted(other))
    return replace(folder, config={**folder.config, name: other[name]})


def _drop_tensor(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    if not folder.tensors:
        return folder
    name = rng.choice(sorted(folder.tensors))
    return replace(folder, tensors={k: t for k, t in folder.tensors.items() if k != name})


def _rename_tensor(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    if not folder.tensors:
        return folder
    name = rng.choice(sorted(folder.tensors))
    new = rng.choice([*_NAMES, name[1:], name.replace("0", "1"), f"{name}.weight", name.upper()])
    return replace(folder, tensors={new if k == name else k: t for k, t in folder.tensors.items()})


def _add_tensor(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    other = rng.choice(folders).tensors
    name = rng.choice([*_NAMES, *sorted(other)])
    tensor = other.get(name) or Tensor("F32", [2], b"\0" * 8)
    return replace(folder, tensors={**folder.tensors, name: tensor})


def _reshape_tensor(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    """Another shape, and as many bytes as that takes."""

    def changed(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        kind = rng.randrange(6)
        if kind == 0:
            shape.reverse()
        elif kind == 1 and shape:
            shape[rng.randrange(len(shape))] = rng.choice([0, 1, 2, 3, 5, 17, 33])
        elif kind == 2:
            shape = [math.prod(shape)]
        elif kind == 3:
            shape = [1, *shape]
        elif kind == 4:
            shape = []
        else:
            shape = [*shape, 1]
        size = math.prod(shape) * DTYPES[tensor.dtype]
        return replace(tensor, shape=shape, data=(tensor.data * (size + 1))[:size])

    return _with_tensor(folder, rng, changed)


def _retype_tensor(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    def changed(tensor: Tensor) -> Tensor:
        dtype = rng.choice(sorted(DTYPES))
        size = math.prod(tensor.shape) * DTYPES[dtype]
        return Tensor(dtype, tensor.shape, (tensor.data * 8)[:size].ljust(size, b"\0"))

    return _with_tensor(folder, rng, changed)


def _overwrite_numbers(folder: Folder, folders: list[Folder], rng: random.Random) -> Folder:
    def changed(tensor: Tensor) -> Tensor:
        value = rng.choice([math.nan, math.inf, -math.inf, 0.0, 3e38, -3e38, 1e-45, 1.0])
        number = struct.pack("<f", value)
        if rng.random() < 0.5:
            return replace(tensor, data=(number * len(tensor.data))[: len(tensor.data)])
        start = 4 * rng.randrange(max(1, len(tensor.data) // 4))
        data = tensor.data[:start] + number + tensor.data[start + 4 :]
        return replace(tensor, data=data[: len(tensor.data)])

    return _with_tensor(folder, rng, changed)


def _with_tensor(folder: Folder, rng: random.Random, change: Callable[[Tensor], Tensor]) -> Folder:
    if not folder.tensors:
        return folder
    name = rng.choice(sorted(folder.tensors))
    return replace(folder, tensors={**folder.tensors, name: change(folder.tensors[name])})


_WELL_FORMED = [
    *[_set_field] * 4,
    *[_nudge_number] * 2,
    _drop_field,
    _unknown_field,
    _field_of_another,
    _drop_tensor,
    _rename_tensor,
    _add_tensor,
    _reshape_tensor,
    _retype_tensor,
    _overwrite_numbers,
]

# --- Headers that contradict their bytes


def _entries(header: dict[str, Any]) -> list[str]:
    return sorted(name for name in header if name != "__metadata__")


def _wild_offsets(header: dict[str, Any], rng: random.Random) -> None:
    if names := _entries(header):
        offsets = header[rng.choice(names)]["data_offsets"]
        index = rng.randrange(2)
        offsets[index] = rng.choice(
            [
                0,
                -1,
                offsets[index] + 1,
                offsets[index] - 4,
                2**40,
                2**63,
                10**30,
                1.5,
                "0",
                None,
                [],
            ]
        )


def _wild_shape(header: dict[str, Any], rng: random.Random) -> None:
    if names := _entries(header):
        sizes = [[2**62, 2**62], [2**32, 2**32], [-1], [0], [0, 2**40], [1.0], ["a"], [[]], None]
        header[rng.choice(names)]["shape"] = rng.choice([*sizes, "16", {}, [1] * 80])


def _wild_dtype(header: dict[str, Any], rng: random.Random) -> None:
    if names := _entries(header):
        header[rng.choice(names)]["dtype"] = rng.choice([*DTYPES, "", "f32", "F8_E4M3", 3, None])


def _wild_entry(header: dict[str, Any], rng: random.Random) -> None:
    if names := _entries(header):
        header[rng.choice(names)] = rng.choice(_WILD)


def _share_bytes(header: dict[str, Any], rng: random.Random) -> None:
    if names := _entries(header):
        first, second = rng.choice(names), rng.choice(names)
        header[first]["data_offsets"] = list(header[second]["data_offsets"])


def _wild_metadata(header: dict[str, Any], rng: random.Random) -> None:
    header["__metadata__"] = rng.choice(
        [*_WILD, {"graftwork_base_digest": "sha256:0"}, {"graftwork_base_digest": 3}]
    )


def _extra_key(header: dict[str, Any], rng: random.Random) -> None:
    if names := _entries(header):
        header[rng.choice(names)]["extra"] = 1


_HEADER = [
    _wild_offsets,
    _wild_shape,
    _wild_dtype,
    _wild_entry,
    _share_bytes,
    _wild_metadata,
    _extra_key,
]

# --- Bytes that are no JSON, or no safetensors


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 8])):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([b"\0", b"{}", b"\xff" * 100])


def _nest(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice([100, 5000, 100_000])
    return _in_braces(data, b'"deep": ' + b"[" * depth + b"]" * depth)


def _repeat_a_key(data: bytes, rng: random.Random) -> bytes:
    return _in_braces(data, b'"r": 1, "r": 1')


def _constant(data: bytes, rng: random.Random) -> bytes:
    return _in_braces(data, b'"r": ' + rng.choice([b"NaN", b"Infinity", b"1e999", b"9" * 5000]))


def _surrogate(data: bytes, rng: random.Random) -> bytes:
    return _in_braces(data, rng.choice([b'"\\ud800": 1', b'"bias": "\\udfff"', b'"\xff": 1']))


def _lie_about_the_length(data: bytes, rng: random.Random) -> bytes:
    return struct.pack("<Q", rng.choice([0, 1, 7, 2**31, 2**63, 2**64 - 1])) + data[8:]


def _in_braces(data: bytes, fields: bytes) -> bytes:
    """Before the first field of a JSON object, in a safetensors file with the length made right."""
    start = data.find(b"{")
    changed = data[: start + 1] + fields + b", " + data[start + 1 :]
    if start == 8:
        (length,) = struct.unpack("<Q", data[:8])
        changed = struct.pack("<Q", length + len(fields) + 2) + changed[8:]
    return changed


_BYTES = [
    _flip,
    _truncate,
    _append,
    _nest,
    _repeat_a_key,
    _constant,
    _surrogate,
    _lie_about_the_length,
]
