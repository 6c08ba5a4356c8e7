"""Backups of what a server keeps: registry, adapter store, journal and training data together.

A backup is a tar file:

    manifest.json            its format, and which journal it has
    registry.sqlite3         a consistent copy
    versions/HEX/...         the files of every version that the copy names
    journal.sqlite3          likewise; or journal.pgdump, as pg_dump writes it
    training/...             data sets, golden sets and reports; no checkpoints

It may be made while the server serves: SQLite copies a database without stopping its writers, and
the registry is copied before the store, whose files never change. What is restored is checked
against its digests before anything is put in place.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from graftwork_adapters.durable import sync
from graftwork_adapters.folder import digest_of

from graftwork_server import postgresql_dump
from graftwork_server.errors import BackupError
from graftwork_server.settings import Settings
from graftwork_server.version import VERSION

FORMAT = 1
MANIFEST = "manifest.json"
REGISTRY = "registry.sqlite3"
VERSIONS = "versions"
JOURNAL = "journal.sqlite3"
JOURNAL_DUMP = "journal.pgdump"
_NAMES = (REGISTRY, JOURNAL, JOURNAL_DUMP)
TRAINING = "training"
_CHECKPOINTS = "work"  # of a job: large, and of no use without its process
_ATTEMPTS = 3
_CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int], None]  # bytes done, and in all


def back_up(settings: Settings, target: Path, progress: Progress) -> None:
    """Writes a new file, whole or not at all, that only its owner may read. Raises BackupError."""
    if target.exists():
        raise BackupError(f"{target} exists already: name a new file")
    if not _registry_path(settings).exists():
        raise BackupError(f"data_dir: no server has kept anything in {settings.data_dir} yet")
    with _told(f"cannot write {target}"), tempfile.TemporaryDirectory(dir=target.parent) as name:
        scratch = Path(name)
        journal = _copy_journal(settings, scratch)
        for attempt in range(_ATTEMPTS):
            part = scratch / f"backup-{attempt}"
            try:
                _write(settings, scratch, journal, part, progress)
            except FileNotFoundError:
                continue  # a version was deleted while it was read
            os.link(part, target)  # unlike a rename, this replaces nothing
            sync(target.parent)
            return
    raise BackupError("versions were deleted while the backup was made: try again")


def restore(settings: Settings, source: Path, progress: Progress) -> None:
    """Puts a backup's contents where the settings say and nothing is yet. Raises BackupError."""
    data = settings.data_dir
    with _told(f"cannot restore {source}"):
        data.mkdir(parents=True, exist_ok=True)
        settings.adapter_store_dir.mkdir(parents=True, exist_ok=True)
        with _nothing_runs(settings), tempfile.TemporaryDirectory(dir=data) as name:
            _check_empty(settings)
            folder = Path(name)
            _extract(source, folder, progress)
            manifest = _read_manifest(source, folder)
            for digest in _digests(folder / REGISTRY):
                _check_version(folder, digest)
            _put_journal(settings, folder, manifest["journal"])
            # The registry last: without it, what a crash leaves is not taken for whole.
            if (folder / VERSIONS).exists():
                shutil.move(folder / VERSIONS, settings.adapter_store_dir / VERSIONS)
            if (folder / TRAINING).exists():
                (folder / TRAINING).rename(data / TRAINING)
            (folder / REGISTRY).rename(_registry_path(settings))
            sync(data)


def _write(
    settings: Settings, scratch: Path, journal: Path | None, part: Path, progress: Progress
) -> None:
    """Raises FileNotFoundError where a version went away meanwhile."""
    registry = scratch / REGISTRY
    _copy_database(_registry_path(settings), registry)
    digests = _digests(registry)
    files: dict[str, Path] = {REGISTRY: registry}
    for digest in digests:
        folder = settings.adapter_store_dir / VERSIONS / _hex(digest)
        names = sorted(os.listdir(folder))  # noqa: PTH208 - iterdir is lazy
        files |= {f"{VERSIONS}/{_hex(digest)}/{name}": folder / name for name in names}
    if journal is not None:
        files[journal.name] = journal
    files |= _training_files(settings.data_dir / TRAINING)
    manifest = {
        "format": FORMAT,
        "graftwork": VERSION,
        "create_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "journal": None if journal is None else journal.name,
    }
    total = sum(path.stat().st_size for path in files.values())
    done = 0
    with (
        os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w") as archive,
    ):
        text = json.dumps(manifest, indent=1).encode()
        archive.addfile(_entry(MANIFEST, len(text)), io.BytesIO(text))
        for name, path in files.items():
            with path.open("rb") as content:
                size = os.fstat(content.fileno()).st_size
                archive.addfile(_entry(name, size), content)
            done += size
            progress(done, total)
    sync(part)


def _training_files(folder: Path) -> dict[str, Path]:
    """What lies below, by the name in a backup."""
    found: dict[str, Path] = {}
    for where, folders, names in os.walk(folder):
        inside = Path(where).relative_to(folder)
        if inside.parts[:1] == ("jobs",) and len(inside.parts) == 2:
            folders[:] = [name for name in folders if name != _CHECKPOINTS]
        found |= {str(TRAINING / inside / name): Path(where) / name for name in names}
    return found


def _copy_journal(settings: Settings, scratch: Path) -> Path | None:
    """None where there is no journal."""
    place = settings.journal_place
    path = sqlite_path(place)
    if path is None:
        dump = scratch / JOURNAL_DUMP
        postgresql_dump.dump(str(place), dump)
        return dump
    if not path.exists():
        return None
    _copy_database(path, scratch / JOURNAL)
    return scratch / JOURNAL


def _put_journal(settings: Settings, folder: Path, name: str | None) -> None:
    if name is None:
        return
    path = sqlite_path(settings.journal_place)
    if (name == JOURNAL) != (path is not None):
        kind = "an SQLite" if name == JOURNAL else "a PostgreSQL"
        raise BackupError(f"journal.url: the backup holds {kind} journal; name a database like it")
    if path is None:
        postgresql_dump.restore(str(settings.journal_place), folder / JOURNAL_DUMP)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / JOURNAL, path)


def sqlite_path(place: str | Path) -> Path | None:
    """The file of an SQLite journal; None for a PostgreSQL one."""
    if isinstance(place, Path):
        return place
    scheme, _, path = place.partition(":///")
    return Path(path) if scheme == "sqlite" else None


def _copy_database(source: Path, target: Path) -> None:
    """A consistent copy, while others may write."""
    target.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as a,
        contextlib.closing(sqlite3.connect(target)) as b,
    ):
        # In one piece: in several it would begin anew whenever somebody writes.
        a.backup(b, pages=-1)


def _digests(registry: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(registry)) as connection:
        rows = connection.execute("SELECT DISTINCT digest FROM versions ORDER BY digest")
        return [str(digest) for (digest,) in rows]


def _extract(source: Path, folder: Path, progress: Progress) -> None:
    total, done = source.stat().st_size, 0
    try:
        with tarfile.open(source, "r:") as archive:
            for entry in archive:
                if not entry.isfile():
                    raise BackupError(f"{source} holds {entry.name!r}, which is no plain file")
                archive.extract(entry, folder, filter="data")
                done += entry.size
                progress(done, total)
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"{source} is not a whole backup: {error}") from error


def _read_manifest(source: Path, folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        known = manifest["format"] == FORMAT
        journal = manifest["journal"] if known else None
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{source} is not a backup of Graftwork's") from error
    if not known:
        raise BackupError(f"{source} was written by a newer Graftwork than this one, {VERSION}")
    for name in (REGISTRY, journal):
        if name is not None and not (name in _NAMES and (folder / name).is_file()):
            raise BackupError(f"{source} is not a whole backup: {name} is missing")
    return manifest


def _check_version(folder: Path, digest: str) -> None:
    files: dict[str, tuple[int, bytes]] = {}
    for path in sorted((folder / VERSIONS / _hex(digest)).glob("*")):
        whole, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while data := file.read(_CHUNK_BYTES):
                whole.update(data)
                size += len(data)
        files[path.name] = (size, whole.digest())
    if digest_of(files) != digest:
        raise BackupError(f"the backup is damaged: the files of {digest} do not match it")


def _check_empty(settings: Settings) -> None:
    places = [
        _registry_path(settings),
        settings.adapter_store_dir / VERSIONS,
        settings.data_dir / TRAINING,
        sqlite_path(settings.journal_place),
    ]
    for place in places:
        if place is not None and place.exists() and (place.is_file() or any(place.iterdir())):
            raise BackupError(
                f"{place} is there already: restore into a new --data-dir, or move it away first"
            )
    for place in places[1:3]:
        if place is not None and place.exists():
            place.rmdir()


@contextlib.contextmanager
def _nothing_runs(settings: Settings) -> Iterator[None]:
    """Takes the lock that a server has on its store."""
    with (settings.adapter_store_dir / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"a server uses {settings.data_dir}: stop it first") from None
        yield


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"{what}: {error}") from error


def _registry_path(settings: Settings) -> Path:
    return settings.data_dir / REGISTRY


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, int(time.time())
    return entry
