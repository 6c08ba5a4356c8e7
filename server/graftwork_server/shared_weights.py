"""The base's weights in a file, mapped: memory that a trainer on the same machine has in common
with the server."""

import logging
import shutil
from pathlib import Path

from graftwork_adapters.base_file.description import (
    BaseFileDescription,
    InvalidBaseFile,
    PackedLinear,
    Packing,
)
from graftwork_adapters.base_file.reader import map_base
from graftwork_adapters.base_file.writer import write_base
from graftwork_adapters.durable import is_disk_full, write_file

from graftwork_server.base_model import BaseModel
from graftwork_server.errors import StartupError
from graftwork_server.quantization.int8 import Int8Linear
from graftwork_server.quantization.linear import QuantizedLinear

logger = logging.getLogger(__name__)


class BaseNotShareable(StartupError):
    """The base's file can neither be written nor read; the message says why."""


# What a base's file was made of (stored_base.py), where that is known.
ORIGIN_FILE = "origin"


def share_weights(base: BaseModel, root: Path, origin: str | None = None) -> Path:
    """Writes the base to root/HEX unless it is there, and on the CPU computes with that file from
    here on. Returns the folder, which notes the origin.

    Call it before anything else holds the base's tensors. Raises BaseNotShareable.
    """
    folder = root / base.digest.removeprefix("sha256:")
    if folder.exists() and not _is_whole(base, folder):
        logger.warning("%s is damaged and is written anew", folder)
        shutil.rmtree(folder)
    try:
        if not folder.exists():
            _write(base, folder)
        if base.device.type == "cpu":
            base.adopt(map_base(folder).tensors)
        if origin is not None:
            write_file(folder / ORIGIN_FILE, origin.encode())
    except OSError as error:
        if is_disk_full(error):
            raise BaseNotShareable(
                f"data_dir: no room for the base's {base.weight_bytes >> 20} MiB in {root}"
            ) from error
        raise BaseNotShareable(f"data_dir: cannot write the base to {root}: {error}") from error
    except InvalidBaseFile as error:
        raise BaseNotShareable(f"data_dir: {error}") from error
    return folder


def remove_other_bases(base: BaseModel, root: Path) -> None:
    """Removes the files of bases that were served before, and what a kill left half-written.

    Call it once no other server can be using them: they are mapped by its trainers.
    """
    for path in root.glob("*"):
        if path.name != base.digest.removeprefix("sha256:"):
            logger.info("%s is removed: the server has another base now", path)
            shutil.rmtree(path, ignore_errors=True)


def _is_whole(base: BaseModel, folder: Path) -> bool:
    """Whether the folder holds the very bytes of the base."""
    try:
        mapped = map_base(folder)
    except InvalidBaseFile:
        return False
    return mapped.description == describe(base) and base.digest_of(mapped.tensors) == base.digest


def _write(base: BaseModel, folder: Path) -> None:
    description = describe(base)
    stored = {k: t for k, t in base.tensors.items() if k not in description.aliases}

    def save_model_files(draft: Path) -> None:
        base.config.save_pretrained(draft)
        base.tokenizer.save_pretrained(draft)

    write_base(folder, description, stored, save_model_files)


def describe(base: BaseModel) -> BaseFileDescription:
    """What base.json says of a base."""
    owners: dict[int, str] = {}
    aliases = {}
    for name, tensor in base.tensors.items():
        owner = owners.setdefault(tensor.data_ptr(), name)
        if owner != name:
            aliases[name] = owner
    return BaseFileDescription(
        digest=base.digest,
        quantization=base.quantization,
        end_token_ids=tuple(sorted(base.end_token_ids)),
        packed={
            name: PackedLinear(module.in_features, module.out_features, _packing(base, module))
            for name in base.linear_modules
            if isinstance(module := base.own_module(name), QuantizedLinear)
        },
        aliases=aliases,
    )


def _packing(base: BaseModel, module: QuantizedLinear) -> Packing:
    if isinstance(module, Int8Linear):
        return "int8"
    return "nf4" if base.device.type == "cpu" else "nf4_blocks"
