"""The journal: takes finished generations and feedback, and gives them back.

    with Journal.open(url, Rules(), observer, new_id=ids.new) as journal:
        journal.log(generation)  # from the server, never blocks
        [outcome] = journal.submit([draft]).result()  # on disk

Nothing here knows tensors. Reads run on the caller's thread, each in one consistent view; `settle`
first makes them see all that was logged before.
"""

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from graftwork.v1 import feedback_service_pb2 as pb

from graftwork_trainer.journal import deletion, queries, schema
from graftwork_trainer.journal.database import Database
from graftwork_trainer.journal.errors import JournalError
from graftwork_trainer.journal.judge import Judge, Outcome, Rules
from graftwork_trainer.journal.records import (
    Deletion,
    Draft,
    Feedback,
    FeedbackFilter,
    Generation,
    GenerationFilter,
    Page,
)
from graftwork_trainer.journal.writer import JournalObserver, Writer, insert_new

EXPIRY_INTERVAL_S = 60.0
_EXPIRY_BATCH = 500  # generations deleted in one transaction
_READ_BATCH = 500

DEFAULT_QUEUE_BYTES = 64 * 2**20


class Journal:
    """Safe to use from any thread."""

    def __init__(
        self,
        database: Database,
        rules: Rules,
        observer: JournalObserver,
        *,
        new_id: Callable[[], str],
        clock_ns: Callable[[], int] = time.time_ns,
        queue_bytes: int = DEFAULT_QUEUE_BYTES,
    ) -> None:
        """`new_id` issues UUIDv7; `clock_ns` returns Unix time."""
        self.database = database
        self._rules = rules
        self._observer = observer
        self._new_id = new_id
        self._clock_ns = clock_ns
        self._writer = Writer(
            database, observer, queue_bytes=queue_bytes, idle=self._expire_in_background
        )

    @classmethod
    def open(
        cls,
        place: str | Path,
        rules: Rules,
        observer: JournalObserver,
        *,
        new_id: Callable[[], str],
        **options: Any,
    ) -> "Journal":
        """Opens the database, a URL or a path, and migrates it. Raises JournalNotUsable."""
        return cls(Database.open(place), rules, observer, new_id=new_id, **options)

    # Writing

    def log(self, generation: pb.Generation) -> None:
        """Takes a finished generation, which the caller changes no more. Never blocks or raises;
        what the queue has no room for is dropped and counted."""
        self._writer.log(generation)

    def submit(self, drafts: Sequence[Draft]) -> "Future[list[Outcome]]":
        """Judges and keeps feedback; the future has an outcome for each draft, in order, once all
        that was accepted is on disk. Raises JournalBusy; the future JournalFull or
        JournalUnavailable, and then nothing was kept."""

        def change(connection: sa.Connection) -> list[Outcome]:
            judge = Judge(
                connection,
                self._rules,
                now_ns=self._clock_ns(),
                new_id=self._new_id,
                was_dropped=self._writer.was_dropped,
                issued_ns=issued_ns,
            )
            outcomes = judge.judge(drafts)
            judge.write()
            accepted[:] = judge.accepted_kinds
            return outcomes

        def count(done: "Future[list[Outcome]]") -> None:
            if not done.cancelled() and done.exception() is None:
                for kind, number in Counter(accepted).items():
                    self._observer.count_feedback(kind, number)

        accepted: list[str] = []
        future = self._writer.run(change, weight=len(drafts))
        future.add_done_callback(count)
        return future

    def delete_ids(self, ids: Sequence[str]) -> "Future[Deletion]":
        return self._writer.run(lambda connection: deletion.delete_ids(connection, ids))

    def delete_author(self, author: str) -> "Future[Deletion]":
        return self._writer.run(lambda connection: deletion.delete_author(connection, author))

    def delete_episode(self, episode_id: str) -> "Future[Deletion]":
        return self._writer.run(lambda connection: deletion.delete_episode(connection, episode_id))

    def record_training(self, version: str, item_ids: Iterable[str]) -> "Future[None]":
        """Notes that "name@version" was trained on these generations and feedback, so that their
        deletion names it."""
        rows = [{"item_id": item, "version": version} for item in sorted(set(item_ids))]
        return self._writer.run(lambda connection: insert_new(connection, schema.trained_on, rows))

    def deleted_items(self) -> frozenset[str]:
        """The ids of all generations and feedback that were ever deleted by request."""
        with self.database.read() as connection:
            return frozenset(connection.scalars(sa.select(schema.deleted_items.c.item_id)))

    def expire(self) -> Deletion:
        """Deletes a batch of what is older than the retention; nothing once nothing is."""
        before_ns = self._rules.expires_before_ns(self._clock_ns())
        with self.database.write() as connection:
            return deletion.delete_expired(connection, before_ns, _EXPIRY_BATCH)

    def settle(self) -> None:
        """Waits until what was logged before is written, or the database has refused it."""
        with contextlib.suppress(JournalError):
            self._writer.run(_nothing).result()

    # Reading

    def list_feedback(
        self, wanted: FeedbackFilter, *, page_size: int, page_token: str = ""
    ) -> Page[Feedback]:
        """Newest first. Raises InvalidFieldError, JournalUnavailable."""
        with self.database.read() as connection:
            return queries.list_feedback(connection, wanted, page_size, page_token)

    def list_generations(
        self, wanted: GenerationFilter, *, page_size: int, page_token: str = ""
    ) -> Page[Generation]:
        """Newest first. Raises InvalidFieldError, JournalUnavailable."""
        with self.database.read() as connection:
            return queries.list_generations(connection, wanted, page_size, page_token)

    def count_feedback(self, wanted: FeedbackFilter) -> int:
        with self.database.read() as connection:
            return queries.count_feedback(connection, wanted)

    def feedback_batches(self, wanted: FeedbackFilter) -> Iterator[list[Feedback]]:
        """All of it, oldest first: what comes meanwhile may be among it."""
        last = ""
        while True:
            with self.database.read() as connection:
                batch = queries.oldest_feedback(connection, wanted, last, _READ_BATCH)
            if not batch:
                return
            yield batch
            last = batch[-1].id

    def generations(self, ids: Iterable[str]) -> dict[str, Generation]:
        """By id; what does not exist is left out."""
        return {g.id: g for g in self._generations_of(schema.generations.c.id, ids)}

    def generations_of_groups(self, group_ids: Iterable[str]) -> list[Generation]:
        """Oldest first."""
        return self._generations_of(schema.generations.c.group_id, group_ids)

    def generations_of_episodes(self, episode_ids: Iterable[str]) -> list[Generation]:
        """Oldest first."""
        return self._generations_of(schema.generations.c.episode_id, episode_ids)

    # Ending

    def close(self) -> None:
        """Writes what waits, then closes the database."""
        self._writer.close()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _generations_of(self, key: sa.Column[Any], values: Iterable[str]) -> list[Generation]:
        with self.database.read() as connection:
            return queries.generations_of(connection, key, list(values))

    def _expire_in_background(self) -> float:
        if self._rules.retention_days is None:
            return EXPIRY_INTERVAL_S
        deleted = self.expire()
        return 0.0 if deleted.num_generations or deleted.num_feedback else EXPIRY_INTERVAL_S


def issued_ns(identifier: str) -> int | None:
    """When a UUIDv7 was issued, in Unix nanoseconds; None for anything else."""
    try:
        value = uuid.UUID(identifier)
    except ValueError:
        return None
    return (value.int >> 80) * 1_000_000 if value.version == 7 else None


def _nothing(_connection: sa.Connection) -> None:
    """For who only waits for the transaction."""
