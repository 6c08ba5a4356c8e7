"""A PostgreSQL server of the tests' own, started from the system's binaries."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

_ACCOUNT = "postgres"  # the server refuses to run as root


@dataclass(frozen=True, slots=True)
class PostgresServer:
    sockets: Path  # folder of its socket; it listens on no port

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{_ACCOUNT}@/postgres?host={self.sockets}"

    def emptied(self) -> str:
        """The URL of the database, with nothing in it any more: quicker than to make another."""
        with psycopg.connect(
            host=str(self.sockets), user=_ACCOUNT, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self.url


@contextlib.contextmanager
def postgres_server(*, fsync: bool = False) -> Iterator[PostgresServer]:
    """Runs while inside. Without `fsync` it is faster, and survives its own processes only."""
    # Not pytest's folder, which only its owner may enter; and sockets need short paths.
    folder = Path(tempfile.mkdtemp(prefix="graftwork-pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _ACCOUNT, _ACCOUNT)
        data = folder / "data"
        _run("initdb", "-D", data, "-U", _ACCOUNT, "-A", "trust", "-E", "UTF8", "--no-sync")
        settings = [f"-c fsync={'on' if fsync else 'off'}", f"-k {folder}", "-c listen_addresses="]
        _run("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", " ".join(settings), "start")
        try:
            yield PostgresServer(folder)
        finally:
            _run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _run(program: str, *arguments: str | Path) -> None:
    account = {"user": _ACCOUNT, "group": _ACCOUNT, "extra_groups": []}
    done = subprocess.run(
        [_find(program), *map(str, arguments)],
        stdout=subprocess.DEVNULL,  # a pipe would stay open in the server
        stderr=subprocess.STDOUT,
        cwd="/",
        check=False,
        **(account if os.geteuid() == 0 else {}),
    )
    if done.returncode:
        raise RuntimeError(f"{program} failed with exit code {done.returncode}")


def _find(program: str) -> str:
    """Debian keeps a server's programs out of PATH."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / program).exists():
            return str(folder / program)
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"{program} is not there: install PostgreSQL (Debian: postgresql)")
    return found
