"""Dumps of a PostgreSQL journal, by PostgreSQL's own programs."""

import os
import shutil
import subprocess
from pathlib import Path

from graftwork_server.errors import BackupError


def dump(url: str, target: Path) -> None:
    """A consistent copy, in pg_dump's custom format. Raises BackupError."""
    _run("pg_dump", url, "--format=custom", "--no-owner", f"--file={target}")


def restore(url: str, source: Path) -> None:
    """Into an empty database, whole or not at all. Raises BackupError."""
    _run("pg_restore", url, "--no-owner", "--exit-on-error", "--single-transaction", str(source))


def _run(program: str, url: str, *arguments: str) -> None:
    path = _find(program)
    if path is None:
        raise BackupError(
            f"journal.url: is a PostgreSQL database, which takes {program}, and that is not there: "
            "install PostgreSQL's client (Debian: postgresql-client)"
        )
    # libpq's own form of the URL, and its password where no list of processes shows it.
    scheme, _, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, _, password = credentials.partition(":")
    environment = {**os.environ, "PGPASSWORD": password} if password else dict(os.environ)
    target = f"{scheme.partition('+')[0]}://{user}{at}{place}"
    done = subprocess.run(
        [path, f"--dbname={target}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise BackupError(f"{program} failed: {done.stderr.strip()}")


def _find(program: str) -> str | None:
    """Of several releases beside one another the newest, which reads what older ones wrote."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / program).exists():
            return str(folder / program)
    return shutil.which(program)
