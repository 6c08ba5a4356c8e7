"""The queue and the policies in the database."""

import uuid

import pytest
import sqlalchemy as sa
from graftwork.status import InvalidFieldError
from graftwork_adapters.errors import RequestIdReused
from graftwork_adapters.mutation import MutationRequest
from graftwork_trainer.jobs import tables
from graftwork_trainer.jobs.errors import PolicyExists, UnknownJob, UnknownPolicy
from graftwork_trainer.jobs.policy_store import CanaryStore, PolicyStore
from graftwork_trainer.jobs.records import CanaryDraft, CanaryRecord
from graftwork_trainer.jobs.states import TRANSITIONS, JobState
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.journal.database import Database

from tests.trainer.jobs.queue import clock, ids, spec_of


@pytest.fixture
def store(each_database: Database) -> JobStore:
    return JobStore(each_database, ids(), clock_ns=clock())


@pytest.fixture
def policies(each_database: Database) -> PolicyStore:
    return PolicyStore(each_database, clock_ns=clock())


def request(*asked: bytes) -> MutationRequest | None:
    return MutationRequest.of(str(uuid.UUID(int=7)), *asked)


def test_the_migration_makes_the_tables_that_the_code_knows(each_database: Database):
    inspector = sa.inspect(each_database.engine)
    for table in tables.metadata.sorted_tables:
        found = {column["name"]: column for column in inspector.get_columns(table.name)}
        assert list(found) == [column.name for column in table.columns]
        for column in table.columns:
            assert found[column.name]["nullable"] == bool(column.nullable), column
            assert isinstance(found[column.name]["type"], type(column.type).__mro__[1]), column
        indexes = {index["name"] for index in inspector.get_indexes(table.name)}
        assert {index.name for index in table.indexes} <= indexes


def test_a_repeated_request_gets_the_first_job(store: JobStore):
    job = store.create(spec_of(), request=request(b"one"))
    assert store.create(spec_of(), request=request(b"one")) == job
    assert store.recall(request(b"one")) == job
    with pytest.raises(RequestIdReused):
        store.create(spec_of("other"), request=request(b"two"))
    assert len(store.list(page_size=10).items) == 1


def test_lists_page_newest_first_and_filter(store: JobStore):
    jobs = [store.create(spec_of(adapter)) for adapter in "abab"]
    store.claim()
    seen, token = [], ""
    while True:
        page = store.list(page_size=3, page_token=token)
        seen += [job.id for job in page.items]
        token = page.next_page_token
        if not token:
            break
    assert seen == [job.id for job in reversed(jobs)]
    of_a = store.list(adapter="a", page_size=10).items
    assert [job.id for job in of_a] == [jobs[2].id, jobs[0].id]
    running = store.list(states=[JobState.RUNNING], page_size=10).items
    assert [job.id for job in running] == [jobs[0].id]
    with pytest.raises(InvalidFieldError, match="page_token"):
        store.list(adapter="a", page_size=1, page_token=store.list(page_size=1).next_page_token)


def test_unknown_jobs_are_said_to_be(store: JobStore):
    for call in (store.get, store.cancel):
        with pytest.raises(UnknownJob, match="no training job"):
            call("nothing")


def test_specs_survive_the_database(store: JobStore):
    spec = spec_of(do=["x"], initial_version="poet@3")
    spec.hyperparameters.learning_rate = 1e-4
    spec.hyperparameters.seed = 2**64 - 1
    spec.dataset.mixture["spam ü\0"] = 0.3
    assert store.get(store.create(spec).id).spec == spec


def test_a_new_canary_takes_the_place_of_the_one_before(each_database: Database):
    canaries = CanaryStore(each_database)
    for version in (2, 3):
        begun = CanaryRecord(f"job {version}", CanaryDraft("poet", version, 1, 10, 20, 0.1, 7))
        for _ in range(2):
            canaries.begin(begun)
        [waiting] = canaries.waiting()
        assert waiting == begun
        if version == 2:
            first = waiting
    canaries.end(first)  # comes late
    assert canaries.waiting() == [waiting]
    canaries.end(waiting)
    assert canaries.waiting() == []


def test_final_states_are_final():
    for state in JobState:
        assert state.is_final == (not TRANSITIONS[state])
        assert not state.may_become(state)


def test_policies_are_kept_changed_and_deleted(policies: PolicyStore):
    made = policies.create(
        "nightly", spec_of(), min_new_feedback=5, schedule="0 3 * * *", paused=False
    )
    assert policies.get("nightly") == made
    with pytest.raises(PolicyExists):
        policies.create("nightly", spec_of(), min_new_feedback=0, schedule="", paused=True)
    changed = policies.update("nightly", paused=True, min_new_feedback=0)
    assert (changed.paused, changed.min_new_feedback, changed.schedule) == (True, 0, "0 3 * * *")
    assert policies.active() == ()
    started = policies.started("nightly", "job", spec_of("moved"))
    assert (started.last_job, started.spec.adapter) == ("job", "moved")
    policies.delete("nightly")
    for call in (policies.get, policies.delete, policies.update):
        with pytest.raises(UnknownPolicy):
            call("nightly")


def test_policies_page_by_name(policies: PolicyStore):
    for name in "cab":
        policies.create(name, spec_of(), min_new_feedback=1, schedule="", paused=False)
    page = policies.list(page_size=2)
    assert [policy.name for policy in page.items] == ["a", "b"]
    rest = policies.list(page_size=2, page_token=page.next_page_token)
    assert [policy.name for policy in rest.items] == ["c"]
    assert rest.next_page_token == ""


def test_a_repeated_policy_request_gets_the_policy(policies: PolicyStore):
    values = {"min_new_feedback": 1, "schedule": "", "paused": False}
    made = policies.create("p", spec_of(), request=request(b"x"), **values)
    assert policies.create("p", spec_of(), request=request(b"x"), **values) == made
    with pytest.raises(RequestIdReused):
        policies.create("q", spec_of(), request=request(b"y"), **values)
