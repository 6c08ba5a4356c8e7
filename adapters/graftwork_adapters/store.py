"""The immutable store: one folder per content digest, there in full or not at all.

    ROOT/versions/HEX/     the files of one adapter, under the digest over them
    ROOT/ephemeral/HEX/    the same, not synced, and gone at the next start
    ROOT/staging/RANDOM/   being written; whatever a crash leaves here is removed at the next start

Files and folder are synced before the rename that publishes them, and the parent after it. Those of
ephemeral versions never are: they stay in the page cache and are mostly removed before the system
would write them.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from graftwork_adapters.durable import is_disk_full, publish, sync
from graftwork_adapters.errors import ArtifactTooLarge, InvalidArtifact, StorageFull
from graftwork_adapters.folder import ALL_FILES, check_complete, check_filename, digest_of
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.pacing import yield_core
from graftwork_adapters.paths import open_regular

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK_BYTES = 256 * 1024


class ImmutableStore:
    """Thread-safe. One process per root; raises RuntimeError where another has it open."""

    def __init__(self, root: Path, limits: AdapterLimits) -> None:
        self._limits = limits
        root.mkdir(parents=True, exist_ok=True)
        self._lock_file = (root / "lock").open("ab")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock_file.close()
            raise RuntimeError(f"another process has the adapter store {root} open") from None
        self._versions = root / "versions"
        self._ephemeral = root / "ephemeral"
        self._staging = root / "staging"
        for folder in (self._ephemeral, self._staging):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self._versions, self._ephemeral, self._staging):
            folder.mkdir(parents=True, exist_ok=True)
        sync(root)

    def close(self) -> None:
        """Lets another process open the store; idempotent."""
        self._lock_file.close()

    def stage(self, *, ephemeral: bool = False) -> "Staging":
        """An empty folder to write an adapter into; leaving its `with` block without `commit`
        removes it."""
        with _disk_errors():
            folder = Path(tempfile.mkdtemp(dir=self._staging))
        if ephemeral:
            return Staging(folder, self._ephemeral, self._limits, durable=False)
        return Staging(folder, self._versions, self._limits, durable=True)

    def path(self, digest: str) -> Path:
        """The folder of a version; it exists while the registry knows the digest."""
        if _DIGEST.fullmatch(digest) is None:
            raise ValueError(f"not a digest: {digest!r}")
        name = digest.removeprefix("sha256:")
        folder = self._ephemeral / name
        return folder if folder.exists() else self._versions / name

    def size_bytes(self, digest: str) -> int | None:
        """Bytes of a version's files, None unless they make an adapter."""
        folder, sizes = self.path(digest), dict[str, int]()
        for name in ALL_FILES:
            with contextlib.suppress(FileNotFoundError):
                sizes[name] = (folder / name).stat().st_size
        try:
            check_complete(sizes)
        except InvalidArtifact:
            return None
        return sum(sizes.values())

    def files(self, digest: str) -> tuple[str, ...]:
        """The names of a version's files."""
        folder = self.path(digest)
        return tuple(name for name in ALL_FILES if (folder / name).is_file())

    def digests(self) -> frozenset[str]:
        """Every version on disk but the ephemeral ones."""
        names = (f"sha256:{entry.name}" for entry in self._versions.iterdir())
        return frozenset(name for name in names if _DIGEST.fullmatch(name))

    def delete(self, digest: str) -> None:
        """Removes a version; one that is not there is removed already."""
        # Renamed first, so that a crash in between leaves no folder with half its files.
        doomed = Path(tempfile.mkdtemp(dir=self._staging))
        name = self.path(digest).name
        with contextlib.suppress(FileNotFoundError):
            (self._ephemeral / name).rename(doomed / "ephemeral")
        try:
            (self._versions / name).rename(doomed / "version")
        except FileNotFoundError:
            pass
        else:
            sync(self._versions)
        shutil.rmtree(doomed, ignore_errors=True)


class Staging:
    """One adapter being written. Thread-safe: a caller that gives up may discard it while another
    thread still writes, whose next write then fails."""

    def __init__(
        self, folder: Path, versions: Path, limits: AdapterLimits, *, durable: bool
    ) -> None:
        self.folder = folder
        self._versions = versions
        self._limits = limits
        self._durable = durable
        self._lock = threading.Lock()
        self._open_file: tuple[str, IO[bytes]] | None = None
        self._hashes: dict[str, hashlib._Hash] = {}
        self._sizes: dict[str, int] = {}
        self._closed = False

    def __enter__(self) -> "Staging":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def write(self, filename: str, data: bytes) -> None:
        """Appends to a file. The bytes of one file follow each other; a file that another has
        followed is finished. Raises InvalidArtifact, ArtifactTooLarge, StorageFull."""
        with self._lock, _disk_errors():
            self._check_open()
            file = self._file(filename)
            size = self._sizes[filename] + len(data)
            limit = self._limits.max_bytes_of(filename)
            if size > limit:
                raise ArtifactTooLarge(filename, limit)
            file.write(data)
            self._hashes[filename].update(data)
            self._sizes[filename] = size

    def copy(self, files: Mapping[str, Path]) -> None:
        """Writes files that already lie in confined paths. Raises as `write`, SourceNotFound."""
        for filename, path in files.items():
            with open_regular(path) as source:
                while chunk := source.read(_CHUNK_BYTES):
                    self.write(filename, chunk)
                    yield_core()

    def flush(self) -> None:
        """Makes all that was written readable in the folder."""
        with self._lock, _disk_errors():
            self._check_open()
            self._close_file()

    def replace(self, filename: str, data: bytes) -> None:
        """Writes a file anew that is there. Raises as `write`."""
        with self._lock, _disk_errors():
            self._check_open()
            self._close_file()
            del self._sizes[filename]
            (self.folder / filename).unlink()
        self.write(filename, data)

    def finish(self) -> str:
        """Closes the files, and syncs them unless the version is ephemeral; returns the digest over
        them. Nothing may be written after it."""
        with self._lock, _disk_errors():
            self._check_open()
            self._close_file()
            for filename, size in self._sizes.items():
                if not size:
                    raise InvalidArtifact(f"{filename} is empty")
            check_complete(self._sizes)
            if self._durable:
                sync(self.folder)
            return self._digest()

    def commit(self) -> None:
        """Publishes the folder under its digest, durably unless the version is ephemeral. Equal
        content that is there stays."""
        with self._lock, _disk_errors():
            self._check_open()
            if self._open_file is not None:
                raise RuntimeError("commit before finish")
            target = self._versions / self._digest().removeprefix("sha256:")
            publish(self.folder, target)
            self._closed = True
            if self._durable:
                sync(self._versions)

    def discard(self) -> None:
        """Removes what was written, unless it is committed; may be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._open_file is not None:
                self._open_file[1].close()
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def size_bytes(self) -> int:
        return sum(self._sizes.values())

    def _digest(self) -> str:
        return digest_of({n: (self._sizes[n], h.digest()) for n, h in self._hashes.items()})

    def _file(self, filename: str) -> IO[bytes]:
        if self._open_file is not None and self._open_file[0] == filename:
            return self._open_file[1]
        check_filename(filename)
        if filename in self._sizes:
            raise InvalidArtifact(f"the chunks of {filename} do not follow each other")
        self._close_file()
        file = (self.folder / filename).open("xb")
        self._open_file = (filename, file)
        self._hashes[filename] = hashlib.sha256()
        self._sizes[filename] = 0
        return file

    def _close_file(self) -> None:
        if self._open_file is None:
            return
        file = self._open_file[1]
        self._open_file = None
        with file:
            file.flush()
            if self._durable:
                os.fsync(file.fileno())

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the staging folder is committed or discarded")


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull from error
        raise
