"""Queueing, group commits, and databases that refuse."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from graftwork_trainer.jobs import tables
from graftwork_trainer.journal import database, schema, writer
from graftwork_trainer.journal.database import Database
from graftwork_trainer.journal.errors import (
    GenerationNotLogged,
    JournalBusy,
    JournalFull,
    JournalNotUsable,
    JournalUnavailable,
)
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.records import Feedback, FeedbackFilter, GenerationFilter

from tests.trainer.journal.helpers import Clock, Ids, Observer, draft, generation, prompt, wait_for


def count(journal: Journal) -> int:
    return len(journal.list_generations(GenerationFilter(), page_size=1000).items)


class Gate:
    """Holds the writer's thread inside a transaction."""

    def __init__(self, journal: Journal) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        self.future = journal._writer.run(self._wait)
        assert self._entered.wait(10)

    def _wait(self, _: sa.Connection) -> None:
        self._entered.set()
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()
        self.future.result(10)


def test_generations_are_written_without_being_waited_for(
    journal: Journal, ids: Ids, clock: Clock, observer: Observer
) -> None:
    for _ in range(30):
        journal.log(generation(ids, clock))
    wait_for(lambda: observer.generations["written"] == 30)
    assert count(journal) == 30
    assert observer.queue == 0


def test_what_does_not_fit_into_the_queue_is_dropped(
    open_journal: Callable[..., Journal], ids: Ids, clock: Clock, observer: Observer
) -> None:
    made = [generation(ids, clock) for _ in range(10)]
    journal = open_journal(queue_bytes=3 * made[0].ByteSize())
    gate = Gate(journal)
    for one in made:
        journal.log(one)
    assert observer.generations["dropped"] == 7
    assert observer.queue == 3
    gate.open()
    journal.settle()
    assert count(journal) == 3
    (outcome,) = journal.submit([draft(generation_id=made[9].id, thumbs=1)]).result()
    assert isinstance(outcome, GenerationNotLogged)
    (outcome,) = journal.submit([draft(generation_id=made[2].id, thumbs=1)]).result()
    assert isinstance(outcome, Feedback)


def test_waiting_feedback_is_bounded(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 3)
    gate = Gate(journal)
    one = draft(prompt=prompt(), label="l")
    waiting = [journal.submit([one]) for _ in range(3)]
    with pytest.raises(JournalBusy):
        journal.submit([one])
    gate.open()
    assert [len(future.result(10)) for future in waiting] == [1, 1, 1]


def test_what_its_caller_has_left_is_not_written(journal: Journal) -> None:
    gate = Gate(journal)
    future = journal.submit([draft(prompt=prompt(), label="l")])
    assert future.cancel()
    gate.open()
    journal.settle()
    assert journal.count_feedback(FeedbackFilter()) == 0


def test_one_change_that_fails_does_not_fail_the_others(
    journal: Journal, ids: Ids, clock: Clock, observer: Observer
) -> None:
    def fail(connection: sa.Connection) -> None:
        connection.execute(sa.delete(schema.feedback))
        raise ZeroDivisionError

    gate = Gate(journal)
    one = generation(ids, clock)
    journal.log(one)
    before = journal.submit([draft(generation_id=one.id, thumbs=1)])
    failing = journal._writer.run(fail)
    after = journal.submit([draft(generation_id=one.id, correction="c")])
    gate.open()
    assert isinstance(before.result(10)[0], Feedback)
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    assert isinstance(after.result(10)[0], Feedback)
    assert journal.count_feedback(FeedbackFilter()) == 2
    assert observer.failures == 1


def test_one_generation_that_cannot_be_written_is_left_out(
    journal: Journal, ids: Ids, clock: Clock, observer: Observer
) -> None:
    made = [generation(ids, clock) for _ in range(3)]
    made[1].finish_reason = 99
    gate = Gate(journal)
    for one in made:
        journal.log(one)
    gate.open()
    journal.settle()
    assert count(journal) == 2
    assert observer.generations == {"written": 2, "failed": 1}


def test_close_writes_what_waits(
    open_journal: Callable[..., Journal], ids: Ids, clock: Clock
) -> None:
    journal = open_journal()
    for _ in range(100):
        journal.log(generation(ids, clock))
    journal.close()
    with pytest.raises(JournalUnavailable):
        journal.submit([draft(prompt=prompt(), label="l")])
    assert count(open_journal()) == 100


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_full_disk_is_told_and_overcome(
    journal: Journal, ids: Ids, clock: Clock, observer: Observer
) -> None:
    journal.settle()
    one = generation(ids, clock)

    def limit_pages(connection: sa.Connection, more: int) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + more}")

    sa.event.listen(journal.database.engine, "begin", lambda c: limit_pages(c, full[0]))
    full = [0]
    big = draft(prompt=prompt(), correction=None, demonstration="x" * 100_000)
    with pytest.raises(JournalFull, match="nothing was written") as caught:
        journal.submit([big]).result(10)
    assert caught.value.retry_after_s
    one.completion = "y" * 100_000
    journal.log(one)
    journal.settle()
    assert count(journal) == 0
    wait_for(lambda: observer.queue == 1)
    full[0] = 1_000_000
    (outcome,) = journal.submit([draft(generation_id=one.id, thumbs=1)]).result(10)
    assert isinstance(outcome, Feedback)
    assert journal.submit([big]).result(10)
    assert observer.generations["dropped"] == 0


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_locked_database_is_unavailable(
    open_journal: Callable[..., Journal],
    place: Path,
    ids: Ids,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.01)
    journal = open_journal()
    journal.settle()
    other = sqlite3.connect(place, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    one = generation(ids, clock)
    journal.log(one)
    with pytest.raises(JournalUnavailable):
        journal.submit([draft(generation_id=one.id, thumbs=1)]).result(10)
    other.execute("ROLLBACK")
    other.close()
    (outcome,) = journal.submit([draft(generation_id=one.id, thumbs=1)]).result(10)
    assert isinstance(outcome, Feedback)


def test_two_writers_of_one_database_agree(open_journal: Callable[..., Journal]) -> None:
    first, second = open_journal(), open_journal()
    drafts = [draft(prompt=prompt(str(number)), label="l") for number in range(50)]
    futures = [j.submit([d]) for d in drafts for j in (first, second)]
    taken = [o for future in futures for o in future.result(10) if isinstance(o, Feedback)]
    assert len(taken) == 50
    assert first.count_feedback(FeedbackFilter()) == 50


def test_migrations_make_what_the_schema_says(place: str | Path) -> None:
    for _ in range(2):  # the second time there is nothing to do
        opened = Database.open(place)
        with opened.engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, [schema.metadata, tables.metadata]) == []
        opened.close()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("nonsense", "is not a database URL"),
        ("sqlite://", "must name a file"),
        ("mysql://host/name", "'mysql' is not supported"),
        ("postgresql+psycopg://user:word@/x?host=/nowhere", r"user:\*\*\*@.* cannot be opened"),
        (Path("/proc/journal.sqlite3"), "cannot be opened"),
    ],
)
def test_places_that_cannot_be(place: str | Path, why: str) -> None:
    with pytest.raises(JournalNotUsable, match=why):
        Database.open(place)


def test_a_database_of_a_newer_release_is_refused(place: str | Path) -> None:
    opened = Database.open(place)
    with opened.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    opened.close()
    with pytest.raises(JournalNotUsable, match="9999"):
        Database.open(place)
