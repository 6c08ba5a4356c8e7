"""The base out of the file that an earlier start wrote: nothing is loaded or quantized again.

Beside a base's file lies its *origin*: a hash over all that decides what the file holds. A file of
another origin is left alone, and one whose digest is not what it says is not used: in both cases
the base is made anew. Only folders on this machine have an origin, and only on the CPU.
"""

import hashlib
import importlib.metadata
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from accelerate import init_empty_weights
from graftwork_adapters import base_file
from graftwork_adapters.base_file.description import InvalidBaseFile
from graftwork_adapters.base_file.reader import MappedBase, map_base
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from graftwork_server.attention import PAGED_ATTENTION
from graftwork_server.base_model import (
    BaseModel,
    load_base_model,
    load_config,
    load_tokenizer,
    prepare_base_model,
)
from graftwork_server.shared_weights import ORIGIN_FILE, describe, share_weights

logger = logging.getLogger(__name__)

_SERVER = Path(__file__).parent
# What makes the numbers in the file, and their layout.
_CODE = (
    *sorted(Path(base_file.__file__).parent.glob("*.py")),
    *sorted((_SERVER / "quantization").glob("*.py")),
    _SERVER / "base_model.py",
    _SERVER / "kernels" / "nf4_linear.py",
)


def load_shared_base(
    source: str | Path, root: Path, *, name: str, quantization: str, device: torch.device
) -> BaseModel:
    """The base of a folder or hub id, with its file in `root`; on the CPU it computes with that.

    Raises ModelNotUsable, BaseNotShareable.
    """
    origin = origin_of(source, quantization, device)
    base = None
    if origin is not None:
        base = _restore(source, root, origin, name=name, quantization=quantization)
    if base is None:
        base = load_base_model(source, name=name, quantization=quantization, device=device)
        share_weights(base, root, origin)
    return base


def origin_of(source: str | Path, quantization: str, device: torch.device) -> str | None:
    """SHA-256 over what a base is made of: the model's files as the file system tells them apart,
    the quantization, and the code that loads and quantizes. None where that cannot be said."""
    folder = Path(source)
    if device.type != "cpu" or not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for part in (quantization, *_versions(quantization), *_files(folder)):
        digest.update(f"{part}\0".encode())
    for path in _CODE:
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _versions(quantization: str) -> Iterator[str]:
    yield torch.__version__
    yield transformers.__version__
    if quantization == "nf4":
        yield importlib.metadata.version("bitsandbytes")


def _files(folder: Path) -> Iterator[str]:
    """Hashing the weights would take as long as loading them: the time of a file's last change,
    which no program can set back, tells whether it still is what it was."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            status = path.stat()
            times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
            yield f"{path.name}:{status.st_ino}:{status.st_size}:{times}"


def _restore(
    source: str | Path, root: Path, origin: str, *, name: str, quantization: str
) -> BaseModel | None:
    """The base out of the file of this origin, None where there is none that is whole."""
    try:
        stored = _find(root, origin)
        if stored is None:
            return None
        base = _build(source, stored, name=name, quantization=quantization)
    except (InvalidBaseFile, OSError) as error:
        logger.warning("the base is made anew: %s", error)
        return None
    digest = stored.description.digest
    is_whole = base.digest == digest and describe(base) == stored.description
    if not is_whole or stored.folder.name != digest.removeprefix("sha256:"):
        logger.warning("the base is made anew: %s is not what it says", stored.folder)
        return None
    return base


def _find(root: Path, origin: str) -> MappedBase | None:
    for path in sorted(root.glob(f"*/{ORIGIN_FILE}")):
        if path.read_text() == origin:
            return map_base(path.parent)
    return None


def _build(source: str | Path, stored: MappedBase, *, name: str, quantization: str) -> BaseModel:
    """What `load_base_model` would, over the file's tensors."""
    config = load_config(source)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=PAGED_ATTENTION
        )
    if Path(source, GENERATION_CONFIG_NAME).exists():  # else it follows from the model's config
        model.generation_config = GenerationConfig.from_pretrained(source)
    return prepare_base_model(
        model,
        load_tokenizer(source),
        name=name,
        quantization=quantization,
        device=torch.device("cpu"),
        stored=stored,
    )
