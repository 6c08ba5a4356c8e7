"""An adapter's folder as files: which of them matter, which are refused, and the digest over them.

It holds what PEFT saves, FILES; or these and PROMPT_FILE; or PROMPT_FILE alone, or with a config
that names no method, or PROMPT_ONLY.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.paths import confine

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PROMPT_FILE = "graftwork_prompt.json"
FILES = (CONFIG_FILE, WEIGHTS_FILE)
ALL_FILES = (*FILES, PROMPT_FILE)
PROMPT_ONLY = "PROMPT_ONLY"  # the method of a version without weights

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PICKLE_FIX = (
    "pickles run code when read and are never opened; "
    "save it again with model.save_pretrained(..., safe_serialization=True)"
)


def check_filename(filename: str) -> None:
    """Raises InvalidArtifact unless `filename` is one of the files that make an adapter."""
    if filename in ALL_FILES:
        return
    if filename.endswith(_PICKLE_SUFFIXES):
        raise InvalidArtifact(f"{filename[:80]!r} is a pickle: {_PICKLE_FIX}")
    raise InvalidArtifact(
        f"{filename[:80]!r} is not a file of an adapter; these are {', '.join(ALL_FILES)}"
    )


def check_complete(filenames: Collection[str]) -> None:
    """Raises InvalidArtifact unless these files together are an adapter."""
    if WEIGHTS_FILE not in filenames and PROMPT_FILE in filenames:
        return
    for filename in FILES:
        if filename not in filenames:
            raise InvalidArtifact(f"{filename} is missing")


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
    check_complete(names)
    return {name: confine(folder / name, roots) for name in ALL_FILES if name in names}


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
