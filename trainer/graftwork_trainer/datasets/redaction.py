"""Takes what was deleted from the journal out of the snapshots and golden sets on the disk.

A snapshot without some of its examples is another one, under its own digest, whose manifest says
what it was made of. It takes the place of the earlier one, whose digest leads to it from then on:

    ROOT/snapshots/HEX.redacted    the digest of the snapshot that has taken the place of HEX
"""

import contextlib
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from graftwork.status import WireError
from graftwork_adapters.durable import new_folder, sync, write_file

from graftwork_trainer.datasets.snapshot import (
    MANIFEST,
    SPLITS,
    digest_of,
    folder_of,
    open_snapshot,
    successor_file,
)
from graftwork_trainer.errors import disk_full_is_told

logger = logging.getLogger(__name__)


class Redactor:
    """Of the data sets below a root. Thread-safe; every method waits for the disk, and may be
    called again after any crash."""

    def __init__(self, root: Path, deleted_items: Callable[[], Collection[str]]) -> None:
        """`deleted_items` gives the ids of all generations and feedback that were ever deleted."""
        self._root = root
        self._deleted_items = deleted_items
        self._lock = threading.Lock()

    def redact(self, items: Collection[str]) -> None:
        """Takes examples made of these generations and feedback out of everything. Raises
        DamagedSnapshot, DatasetDiskFull."""
        with self._lock, disk_full_is_told():
            self._redact_golden(frozenset(items))
            for folder in sorted((self._root / "snapshots").glob("[0-9a-f]*")):
                if folder.is_dir():
                    _redact_snapshot(self._root, folder, frozenset(items))

    def catch_up(self) -> None:
        """The same for all that was ever deleted: for what a crash cut off, and for deletions that
        another server on the journal's database has made. The log says what goes wrong."""
        with _logged():
            if items := self._deleted_items():
                self.redact(items)

    def catch_up_snapshot(self, digest: str) -> None:
        """The same for one snapshot, and the golden sets: it may have been made of what was read
        before a deletion and written after it. The log says what goes wrong."""
        with _logged():
            if not (items := frozenset(self._deleted_items())):
                return
            with self._lock, disk_full_is_told():
                self._redact_golden(items)
                _redact_snapshot(self._root, open_snapshot(self._root, digest).folder, items)

    def _redact_golden(self, items: Collection[str]) -> None:
        for path in sorted((self._root / "golden").glob("*.jsonl")):
            kept, num_gone = _without(path.read_bytes(), items)
            if num_gone:
                write_file(path, kept)
                logger.info("%d examples were deleted from %s", num_gone, path)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except (WireError, OSError):
        logger.exception("data sets may still hold what was deleted, until the next start")


def _redact_snapshot(root: Path, folder: Path, items: Collection[str]) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    gone = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        name = f"{split}.jsonl"
        files[name], gone[split] = _without(files[name], items)
    if not any(gone.values()):
        return
    before = open_snapshot(root, f"sha256:{folder.name}")  # which checks what is kept of it
    manifest: dict[str, Any] = {**before.manifest, "redacted": {"from": before.digest, **gone}}
    note = f"\n{sum(gone.values())} of these examples were deleted after this was written.\n"
    files["report.md"] += note.encode()
    manifest["files"] = {
        name: {**listed, "sha256": hashlib.sha256(files[name]).hexdigest()}
        for name, listed in manifest["files"].items()
    }
    for split, number in gone.items():
        manifest["files"][f"{split}.jsonl"]["examples"] -= number
    manifest["digest"] = digest_of(manifest)
    files[MANIFEST] = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True).encode()
    with new_folder(folder_of(root, manifest["digest"])) as draft:
        for name, data in files.items():
            (draft / name).write_bytes(data)
    # Whoever looks for the earlier one finds one of the two at any time.
    write_file(successor_file(root, before.digest), manifest["digest"].encode())
    shutil.rmtree(folder)
    sync(folder.parent)
    logger.info("%s replaces %s without what was deleted", manifest["digest"], before.digest)


def _without(lines: bytes, items: Collection[str]) -> tuple[bytes, int]:
    """The lines of examples that were not made of these, and how many were."""
    kept, num_gone = [], 0
    for line in lines.splitlines(keepends=True):
        example = json.loads(line)
        ids = [*example.get("generation_ids", ()), *example.get("feedback_ids", ())]
        if any(one in items for one in ids):
            num_gone += 1
        else:
            kept.append(line)
    return b"".join(kept), num_gone
