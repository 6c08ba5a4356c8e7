"""PEFT folders on the caller's disk: cut into chunks for an upload, put together by a download."""

import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from graftwork.errors import Internal, InvalidArgument
from graftwork.v1 import adapter_service_pb2 as adapter_pb

CHUNK_BYTES = 1 << 20

# Called with the bytes done and the bytes in all.
Progress = Callable[[int, int], None]

# What PEFT saves, and a prompt that goes with it or stands alone. A training run leaves more beside
# it (optimizer state, pickled arguments, the tokenizer, a model card), which is no part of an
# adapter.
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PICKLED_WEIGHTS = "adapter_model.bin"
_PROMPT = "graftwork_prompt.json"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """The files of a PEFT folder, of a prompt, or of both, to be sent."""

    files: tuple[Path, ...]
    size_bytes: int

    @classmethod
    def scan(cls, folder: str | Path) -> Self:
        """Raises InvalidArgument where the folder holds no adapter."""
        root = Path(folder)
        has_weights = any((root / name).is_file() for name in (_WEIGHTS, _PICKLED_WEIGHTS))
        is_prompt = (root / _PROMPT).is_file() and not has_weights
        for name in (_CONFIG, _WEIGHTS):
            if (root / name).is_file() or is_prompt:
                continue
            message = f"folder: no {name} in {root}"
            if name == _WEIGHTS and (root / _PICKLED_WEIGHTS).is_file():
                message += f"; {_PICKLED_WEIGHTS} is a pickle: save it again as safetensors"
            raise InvalidArgument(message, field="folder")
        files = tuple(root / name for name in (_CONFIG, _PROMPT, _WEIGHTS))
        files = tuple(path for path in files if path.is_file())
        return cls(files, sum(path.stat().st_size for path in files))

    def chunks(self) -> Iterator[adapter_pb.FileChunk]:
        """The weights last, so that the server can refuse before the weights are sent."""
        for path in self.files:
            with path.open("rb") as file:
                data = file.read(CHUNK_BYTES)
                yield adapter_pb.FileChunk(filename=path.name, data=data)  # an empty file too
                while data := file.read(CHUNK_BYTES):
                    yield adapter_pb.FileChunk(filename=path.name, data=data)


class FolderWriter:
    """Writes the chunks of a download beside the folder, which appears whole or not at all.

    A context manager: leaving it without an error makes the folder appear.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises FileExistsError where something is in the way."""
        self._folder = Path(folder).resolve()
        if self._folder.exists() and not _is_empty_folder(self._folder):
            raise FileExistsError(17, "already there, and not an empty folder", str(folder))
        self._partial = self._folder.with_name(f".{self._folder.name}.{uuid.uuid4().hex}")
        self._partial.mkdir(parents=True)
        self._file: IO[bytes] | None = None
        self._filename = ""
        self.received = 0  # bytes

    def write(self, chunk: adapter_pb.FileChunk) -> None:
        """Raises Internal for a name that is not a plain file name, or that comes back."""
        if self._file is None or chunk.filename != self._filename:
            self._file = self._next_file(chunk.filename)
        self._file.write(chunk.data)
        self.received += len(chunk.data)

    def _next_file(self, name: str) -> IO[bytes]:
        if not _PLAIN_NAME.fullmatch(name):
            raise Internal(f"the server sent a file named {name!r}, which is not a plain name")
        self._close()
        self._filename = name
        try:
            return (self._partial / name).open("xb")
        except FileExistsError as error:
            raise Internal(f"the server sent {name!r} in pieces that are apart") from error

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        try:
            if error is None:
                if not self._filename:
                    raise Internal("the server sent no file")
                self._partial.replace(self._folder)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
