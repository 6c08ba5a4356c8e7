"""A PEFT folder as files: which of them matter, which are refused, and the digest over them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.paths import confine

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE)

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PICKLE_FIX = (
    "pickles run code when read and are never opened; "
    "save it again with model.save_pretrained(..., safe_serialization=True)"
)


def check_filename(filename: str) -> None:
    """Raises InvalidArtifact unless `filename` is one of the files that make an adapter."""
    if filename in FILES:
        return
    if filename.endswith(_PICKLE_SUFFIXES):
        raise InvalidArtifact(f"{filename[:80]!r} is a pickle: {_PICKLE_FIX}")
    raise InvalidArtifact(
        f"{filename[:80]!r} is not a file of an adapter; these are {' and '.join(FILES)}"
    )


def adapter_files(folder: Path, roots: Sequence[Path]) -> dict[str, Path]:
    """The files of the adapter in `folder`, by name, each resolved and inside a root.

    Other files that training leaves beside them are not looked at. Raises InvalidArtifact where one
    is missing, PathNotAllowed where one links out of the roots.
    """
    names = {entry.name for entry in folder.iterdir()}
    if WEIGHTS_FILE not in names:
        pickles = sorted(n for n in names if n.startswith("adapter_") and _is_pickle(n))
        if pickles:
            raise InvalidArtifact(f"{pickles[0]} is a pickle: {_PICKLE_FIX}")
    for filename in FILES:
        if filename not in names:
            raise InvalidArtifact(f"{filename} is missing")
    return {filename: confine(folder / filename, roots) for filename in FILES}


def digest_of(files: Mapping[str, tuple[int, bytes]]) -> str:
    """ "sha256:..." over (size in bytes, SHA-256) of each file, in the order of their names.

    Hashing each file's own hash lets a caller send the files in any order.
    """
    whole = hashlib.sha256(b"graftwork adapter v1\n")
    for filename in sorted(files):
        size, file_hash = files[filename]
        whole.update(f"{filename} {size} {file_hash.hex()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _is_pickle(filename: str) -> bool:
    return filename.endswith(_PICKLE_SUFFIXES)
