"""Any order of logging, feedback, replacing, deleting, expiring and restarting: nothing that was
acknowledged is lost, and nothing that was deleted comes back."""

import shutil
import tempfile
from pathlib import Path

import pytest
from graftwork.status import WireError
from graftwork_trainer.journal.errors import (
    CannotSupersede,
    FeedbackExists,
    GenerationExpired,
    UnknownFeedback,
    UnknownTarget,
)
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.judge import Rules
from graftwork_trainer.journal.records import Feedback, FeedbackFilter, GenerationFilter
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.support.postgresql import PostgresServer
from tests.trainer.journal.helpers import DAY_NS, Clock, Ids, Observer, draft, generation

RETENTION_DAYS = 30
AUTHORS = st.sampled_from(["ada", "bob"])


class JournalMachine(RuleBasedStateMachine):
    """Against a model of two dictionaries."""

    generations = Bundle("generations")
    feedback = Bundle("feedback")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ids = Ids(self.clock)
        self.begun: dict[str, int] = {}  # what the journal holds, with the time of each
        self.given: dict[str, tuple[str, str, bool]] = {}  # generation, author, whether it counts

    def place(self) -> str | Path:
        raise NotImplementedError

    def open(self) -> None:
        self.journal = Journal.open(
            self.opened_place,
            Rules(retention_days=RETENTION_DAYS),
            Observer(),
            new_id=self.ids.new,
            clock_ns=self.clock,
        )

    @initialize()
    def start(self) -> None:
        self.opened_place = self.place()
        self.open()

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()

    @rule(target=generations, number=st.integers(1, 3))
    def log(self, number: int):
        made = [generation(self.ids, self.clock) for _ in range(number)]
        for one in made:
            self.journal.log(one)
            self.begun[one.id] = self.clock()
        return multiple(*(one.id for one in made))

    @rule(target=feedback, about=st.lists(generations, min_size=1, max_size=4), author=AUTHORS)
    def submit(self, about: list[str], author: str):
        drafts = [draft(generation_id=one, correction="c", author=author) for one in about]
        taken = []
        for one, outcome in zip(about, self.journal.submit(drafts).result(), strict=True):
            if isinstance(outcome, Feedback):
                assert self.keeps(one)
                assert not self.has_said(one, author)
                self.given[outcome.id] = (one, author, True)
                taken.append(outcome.id)
            else:
                self.check_refused(outcome, one, author)
        return multiple(*taken)

    @rule(target=feedback, old=feedback, author=AUTHORS)
    def supersede(self, old: str, author: str):
        known = self.given.get(old)
        about = known[0] if known else next(iter(self.begun), "nothing")
        one = draft(generation_id=about, correction="better", author=author, supersedes=old)
        (outcome,) = self.journal.submit([one]).result()
        if isinstance(outcome, Feedback):
            assert known == (about, author, True)
            assert self.keeps(about)
            self.given[old] = (about, author, False)
            self.given[outcome.id] = (about, author, True)
            return outcome.id
        if not self.keeps(about):
            assert isinstance(outcome, GenerationExpired | UnknownTarget)
        elif known is None:
            assert isinstance(outcome, UnknownFeedback)
        else:
            assert known[1:] != (author, True)
            assert isinstance(outcome, CannotSupersede)
        return multiple()

    @rule(about=st.lists(generations, min_size=1, max_size=3))
    def delete(self, about: list[str]) -> None:
        deleted = self.journal.delete_ids(about).result()
        gone = self.forget(set(about) & self.begun.keys())
        assert (deleted.num_generations, deleted.num_feedback) == gone

    @rule(author=AUTHORS)
    def delete_author(self, author: str) -> None:
        about = {one for one, by, _ in self.given.values() if by == author}
        deleted = self.journal.delete_author(author).result()
        assert (deleted.num_generations, deleted.num_feedback) == self.forget(about)

    @rule(days=st.sampled_from([1, 12, 40]))
    def expire(self, days: int) -> None:
        self.journal.settle()
        self.clock.advance(days)
        old = {one for one in self.begun if not self.keeps(one)}
        deleted = self.journal.expire()
        assert (deleted.num_generations, deleted.num_feedback) == self.forget(old)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.open()

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "journal"):
            return
        self.journal.settle()
        logged = self.journal.list_generations(GenerationFilter(), page_size=1000).items
        assert {one.id for one in logged} == self.begun.keys()
        for counted, wanted in ((False, FeedbackFilter(include_superseded=True)), (True, None)):
            listed = self.journal.list_feedback(wanted or FeedbackFilter(), page_size=1000).items
            assert {one.id for one in listed} == {
                one for one, (_, _, counts) in self.given.items() if counts or not counted
            }

    def keeps(self, generation_id: str) -> bool:
        begun = self.begun.get(generation_id)
        return begun is not None and begun >= self.clock() - RETENTION_DAYS * DAY_NS

    def has_said(self, about: str, author: str) -> bool:
        return (about, author, True) in self.given.values()

    def check_refused(self, outcome: WireError, about: str, author: str) -> None:
        if self.keeps(about):
            assert isinstance(outcome, FeedbackExists)
            assert self.has_said(about, author)
        else:
            assert isinstance(outcome, GenerationExpired | UnknownTarget)

    def forget(self, about: set[str]) -> tuple[int, int]:
        gone = [one for one, (on, _, _) in self.given.items() if on in about]
        for one in gone:
            del self.given[one]
        for one in about:
            del self.begun[one]
        return len(about), len(gone)


def run(machine: type[JournalMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_on_sqlite(tmp_path: Path) -> None:
    class OnSqlite(JournalMachine):
        def place(self) -> Path:
            self.folder = Path(tempfile.mkdtemp(dir=tmp_path))
            return self.folder / "journal.sqlite3"

        def teardown(self) -> None:
            super().teardown()
            if hasattr(self, "folder"):
                shutil.rmtree(self.folder)

    run(OnSqlite, 25)


def test_on_postgresql(postgresql: PostgresServer) -> None:
    class OnPostgresql(JournalMachine):
        def place(self) -> str:
            return postgresql.emptied()

    run(OnPostgresql, 10)


@pytest.mark.slow
def test_on_sqlite_for_longer(tmp_path: Path) -> None:
    class OnSqlite(JournalMachine):
        def place(self) -> Path:
            return Path(tempfile.mkdtemp(dir=tmp_path)) / "journal.sqlite3"

    run(OnSqlite, 400)
