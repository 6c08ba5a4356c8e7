"""The training stamp: our own files say which base they were trained on.

It is the base's digest as `graftwork_base_digest`, in the metadata of the safetensors file, which
PEFT reads over; a field of that name in adapter_config.json is heeded too.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.folder import WEIGHTS_FILE
from graftwork_adapters.peft_config import BASE_DIGEST_FIELD, PeftConfig


def read_stamp(config: PeftConfig, metadata: Mapping[str, str]) -> str | None:
    """The base's digest, None where the files carry none; raises InvalidArtifact if they carry two
    that differ."""
    stamps = {stamp for stamp in (config.base_digest, metadata.get(BASE_DIGEST_FIELD)) if stamp}
    if len(stamps) > 1:
        raise InvalidArtifact(f"{BASE_DIGEST_FIELD} differs between config and weights")
    return stamps.pop() if stamps else None


def stamp_folder(folder: Path, base_digest: str) -> None:
    """Writes the stamp into a folder that PEFT has saved; replaces the weights file in one step."""
    path = folder / WEIGHTS_FILE
    with safe_open(path, framework="pt") as file:
        metadata = {**(file.metadata() or {}), BASE_DIGEST_FIELD: base_digest}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    draft = path.with_suffix(".safetensors.tmp")
    save_file(tensors, draft, metadata=metadata)
    draft.replace(path)
