"""The database that the journal and the jobs share: opened, migrated, and read or written in
transactions. SQLite by default, PostgreSQL by URL."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import event, exc

from graftwork_trainer.journal.errors import (
    JournalError,
    JournalFull,
    JournalNotUsable,
    JournalUnavailable,
)

BUSY_TIMEOUT_S = 10.0
_MIGRATIONS = Path(__file__).parent / "migrations"
_DISK_FULL = "53100"  # PostgreSQL's SQLSTATE
_POOL_SIZE = 8
# Migrations of two servers that start on one PostgreSQL database at once wait for one another.
_MIGRATION_LOCK = 0x67726166_74776F72


class Database:
    """Safe to use from any thread. One write transaction runs at a time in a process."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        # SQLite's transactions are such by themselves.
        self._reading = (
            engine
            if self.is_sqlite
            else engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self._writing = threading.Lock()

    @classmethod
    def open(cls, place: str | Path) -> "Database":
        """Opens `sqlite:///path`, `postgresql+psycopg://...` or the path of an SQLite file, and
        brings its tables up to date.

        Raises JournalNotUsable.
        """
        url = parse_url(place)
        database = cls(_create_engine(url))
        try:
            database._migrate()
        except (exc.SQLAlchemyError, CommandError, JournalError) as error:
            database.close()
            shown = url.render_as_string(hide_password=True)
            raise JournalNotUsable(
                f"the journal at {shown} cannot be opened: {error.__cause__ or error}"
            ) from error
        return database

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view while inside. Raises JournalUnavailable."""
        with _translated(), self._reading.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """All of the block's changes, durably, or none. Raises JournalFull, JournalUnavailable."""
        with (
            self._writing,
            _translated(),
            self.engine.connect().execution_options(graftwork_writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def parse_url(place: str | Path) -> sa.URL:
    """Raises JournalNotUsable."""
    if isinstance(place, Path):
        return sa.URL.create("sqlite", database=str(place))
    try:
        return sa.make_url(place)
    except exc.ArgumentError as error:
        raise JournalNotUsable(
            "journal.url: is not a database URL: give sqlite:///PATH or "
            "postgresql+psycopg://USER@HOST/NAME"
        ) from error


def _create_engine(url: sa.URL) -> sa.Engine:
    if url.drivername == "sqlite":
        if not url.database or url.database == ":memory:":
            raise JournalNotUsable("journal.url: must name a file, as sqlite:///PATH")
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            url, connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=_POOL_SIZE
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.drivername != "postgresql+psycopg":
        raise JournalNotUsable(
            f"journal.url: {url.drivername!r} is not supported: give sqlite:///PATH or "
            "postgresql+psycopg://USER@HOST/NAME"
        )
    try:
        engine = sa.create_engine(url, pool_pre_ping=True, pool_size=_POOL_SIZE)
    except ModuleNotFoundError as error:
        raise JournalNotUsable(
            "journal.url: PostgreSQL needs psycopg: pip install 'graftwork[postgresql]'"
        ) from error
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own way of beginning transactions leaves reads outside of them.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # a commit is on disk before it returns
        "secure_delete = ON",  # what is deleted is overwritten
        f"busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes then may find the file locked without recourse.
    writes = connection.get_execution_options().get("graftwork_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    was = connection.autocommit
    connection.autocommit = True
    connection.execute("SET synchronous_commit TO on")
    connection.autocommit = was


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turns what the database may suffer into errors for callers; defects pass as they are."""
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        original = getattr(error, "orig", None)
        code = getattr(original, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL or getattr(original, "sqlstate", None) == _DISK_FULL:
            raise JournalFull from error
        raise JournalUnavailable from error
