"""The one thread that writes the journal: what waits is committed together.

Generations come through a queue that is bounded by their size in memory and never blocks; one that
does not fit is dropped, counted, and remembered by its id for a while, so that feedback on it gets
a clear error. Changes (feedback, deletions) carry a future each. A round takes the changes that
wait, then all generations that wait, and commits both in one transaction: whoever has seen a
generation's end can give feedback on it at once. Where the database refuses, the changes fail and
generations go back into the queue. Where something else fails, each is tried by itself, so that one
item cannot fail the others.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from graftwork.v1 import feedback_service_pb2 as pb
from sqlalchemy.dialects import postgresql, sqlite

from graftwork_trainer.journal import schema
from graftwork_trainer.journal.database import Database
from graftwork_trainer.journal.errors import JournalBusy, JournalError, JournalUnavailable
from graftwork_trainer.journal.rows import generation_row

logger = logging.getLogger(__name__)

LINGER_S = 0.1  # how long generations wait for others when no change is there
RETRY_S = 1.0  # between attempts to write generations while the database refuses
MAX_ROUND = 5000  # items of feedback in one transaction
MAX_WAITING = 20_000  # items of feedback that wait
MAX_REMEMBERED = 10_000  # ids of generations that were dropped

Change = Callable[[sa.Connection], Any]


class JournalObserver(Protocol):
    """What metrics count; called from any thread."""

    def set_journal_queue(self, generations: int) -> None: ...

    def count_journal_generations(self, result: str, number: int) -> None:
        """`result` is "written", "dropped" (no room in the queue) or "failed" (not writable)."""

    def count_journal_failure(self) -> None:
        """A transaction failed."""

    def count_feedback(self, kind: str, number: int) -> None:
        """Items that were accepted."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    change: Change
    weight: int  # items of feedback in it
    future: "Future[Any]"


class Writer:
    """Safe to call from any thread. `idle` is called now and then while nothing waits."""

    def __init__(
        self,
        database: Database,
        observer: JournalObserver,
        *,
        queue_bytes: int,
        idle: Callable[[], float],
    ) -> None:
        """`idle` does what is to be done in the background; it returns the seconds until it wants
        to be called again."""
        self._database = database
        self._observer = observer
        self._queue_bytes = queue_bytes
        self._idle = idle
        self._wake = threading.Condition()
        self._generations: deque[pb.Generation] = deque()
        self._num_bytes = 0
        self._changes: deque[_Waiting] = deque()
        self._num_waiting = 0
        self._dropped: OrderedDict[str, None] = OrderedDict()
        self._closing = False
        self._retry_at = 0.0
        self._idle_at = 0.0
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def log(self, generation: pb.Generation) -> None:
        """Queues a finished generation, or drops it where the queue is full. Never blocks."""
        size = generation.ByteSize()
        with self._wake:
            fits = not self._closing and self._num_bytes + size <= self._queue_bytes
            if fits:
                self._generations.append(generation)
                self._num_bytes += size
                self._wake.notify()
            else:
                self._dropped[generation.id] = None
                if len(self._dropped) > MAX_REMEMBERED:
                    self._dropped.popitem(last=False)
            length = len(self._generations)
        self._observer.set_journal_queue(length)
        if not fits:
            self._observer.count_journal_generations("dropped", 1)

    def run(self, change: Change, *, weight: int = 1) -> "Future[Any]":
        """Runs a change inside the next transaction; the future has its result once that is on
        disk. Raises JournalBusy, JournalUnavailable once closed."""
        future: Future[Any] = Future()
        with self._wake:
            if self._closing:
                raise JournalUnavailable
            if self._num_waiting and self._num_waiting + weight > MAX_WAITING:
                raise JournalBusy(MAX_WAITING)
            self._changes.append(_Waiting(change, weight, future))
            self._num_waiting += weight
            self._wake.notify()
        return future

    def was_dropped(self, generation_id: str) -> bool:
        with self._wake:
            return generation_id in self._dropped

    def close(self) -> None:
        """Writes what waits, as far as the database lets it, and ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    # The thread

    def _run(self) -> None:
        while True:
            with self._wake:
                self._await_work()
                closing = self._closing
                changes = self._take_changes()
            if changes or self._generations:
                self._write(changes)
            if closing and not self._changes:
                self._count_lost()
                return
            if not closing:
                self._run_idle()

    def _await_work(self) -> None:
        """Until a change is there, generations have waited long enough, or `_idle` is due."""
        while not (self._closing or self._changes):
            now = time.monotonic()
            if self._generations:
                end = max(self._retry_at, now + LINGER_S)
                while not (self._closing or self._changes) and (left := end - time.monotonic()) > 0:
                    self._wake.wait(left)
                return
            if self._idle_at <= now:
                return
            self._wake.wait(self._idle_at - now)

    def _take_changes(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        weight = 0
        while self._changes and (not taken or weight + self._changes[0].weight <= MAX_ROUND):
            taken.append(self._changes.popleft())
            weight += taken[-1].weight
        self._num_waiting -= weight
        # Of those whose callers have gone away meanwhile, nothing is written.
        return [waiting for waiting in taken if waiting.future.set_running_or_notify_cancel()]

    def _take_generations(self) -> list[pb.Generation]:
        with self._wake:
            taken = list(self._generations)
            self._generations.clear()  # their bytes count until they are written
        return taken

    def _write(self, changes: Sequence[_Waiting]) -> None:
        generations = self._take_generations()
        try:
            results = self._transact(generations, changes)
        except JournalError as error:  # the database's fault: it would refuse each by itself, too
            self._observer.count_journal_failure()
            self._put_back(generations)
            for waiting in changes:
                waiting.future.set_exception(error)
        except Exception:
            self._observer.count_journal_failure()
            logger.exception("a transaction of the journal failed")
            self._write_apart(generations, changes)
        else:
            self._written(generations)
            for waiting, result in zip(changes, results, strict=True):
                waiting.future.set_result(result)

    def _transact(
        self, generations: Sequence[pb.Generation], changes: Sequence[_Waiting]
    ) -> list[Any]:
        with self._database.write() as connection:
            if generations:
                insert_new(connection, schema.generations, [generation_row(g) for g in generations])
            return [waiting.change(connection) for waiting in changes]

    def _write_apart(
        self, generations: Sequence[pb.Generation], changes: Sequence[_Waiting]
    ) -> None:
        """Each by itself: one of them is not as it must be."""
        for generation in generations:
            try:
                self._transact([generation], [])
            except JournalError:
                self._put_back([generation])
            except Exception:
                logger.exception("generation %s cannot be written", generation.id)
                self._observer.count_journal_generations("failed", 1)
                self._release([generation])
            else:
                self._written([generation])
        for waiting in changes:
            try:
                (result,) = self._transact([], [waiting])
            except Exception as error:
                if not isinstance(error, JournalError):
                    logger.exception("a change of the journal failed")
                waiting.future.set_exception(error)
            else:
                waiting.future.set_result(result)

    def _put_back(self, generations: Sequence[pb.Generation]) -> None:
        if not generations:
            return
        with self._wake:
            self._generations.extendleft(reversed(generations))
            self._retry_at = time.monotonic() + RETRY_S
            length = len(self._generations)
        self._observer.set_journal_queue(length)

    def _written(self, generations: Sequence[pb.Generation]) -> None:
        if generations:
            self._release(generations)
            self._observer.count_journal_generations("written", len(generations))
            self._observer.set_journal_queue(len(self._generations))

    def _release(self, generations: Sequence[pb.Generation]) -> None:
        with self._wake:
            self._num_bytes -= sum(generation.ByteSize() for generation in generations)

    def _run_idle(self) -> None:
        if time.monotonic() < self._idle_at:
            return
        try:
            wait_s = self._idle()
        except Exception as error:
            self._observer.count_journal_failure()
            if not isinstance(error, JournalError):
                logger.exception("the journal's background work failed")
            wait_s = RETRY_S
        self._idle_at = time.monotonic() + wait_s

    def _count_lost(self) -> None:
        if self._generations:
            number = len(self._generations)
            logger.error("%d generations could not be written to the journal", number)
            self._observer.count_journal_generations("failed", number)


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Inserts the rows whose keys are not there yet: a commit whose answer was lost is repeated."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        statement: Any = sqlite.insert(table).on_conflict_do_nothing()
    else:
        statement = postgresql.insert(table).on_conflict_do_nothing()
    connection.execute(statement, list(rows))
