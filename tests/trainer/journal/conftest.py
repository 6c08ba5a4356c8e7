from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.judge import Rules

from tests.support.postgresql import PostgresServer, postgres_server
from tests.trainer.journal.helpers import Clock, Ids, Observer


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Of an empty database, on each that is supported."""
    if request.param == "sqlite":
        return tmp_path / "journal.sqlite3"
    return request.getfixturevalue("postgresql").emptied()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ids(clock: Clock) -> Ids:
    return Ids(clock)


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def open_journal(
    place: str | Path, clock: Clock, ids: Ids, observer: Observer
) -> Iterator[Callable[..., Journal]]:
    """Opens the same database each time; closes what is left open."""
    opened: list[Journal] = []

    def open_one(rules: Rules | None = None, **options: object) -> Journal:
        journal = Journal.open(
            place,
            rules or Rules(retention_days=30),
            observer,
            new_id=ids.new,
            clock_ns=clock,
            **options,
        )
        opened.append(journal)
        return journal

    yield open_one
    for journal in opened:
        journal.close()


@pytest.fixture
def journal(open_journal: Callable[..., Journal]) -> Journal:
    return open_journal()
