"""Files and folders that are there in full, durably, or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from graftwork_adapters.durable import sync

from graftwork_trainer.errors import DatasetDiskFull


def write_once(path: Path, data: bytes) -> None:
    """Raises DatasetDiskFull."""
    with disk_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            staged = Path(file.name)
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                staged.replace(path)
            except BaseException:
                staged.unlink(missing_ok=True)
                raise
        sync(path.parent)


def write_folder(path: Path, contents: Mapping[str, bytes]) -> None:
    """Writes a folder of files; one that is there stays. Raises DatasetDiskFull."""
    with disk_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=path.parent, prefix="."))
        try:
            for name, data in contents.items():
                with (staged / name).open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            sync(staged)
            try:
                staged.rename(path)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        sync(path.parent)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DatasetDiskFull from error
        raise
