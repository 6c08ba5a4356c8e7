"""The queue and the policies in the database."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from graftwork.status import InvalidFieldError
from graftwork_adapters.errors import RequestIdReused
from graftwork_adapters.mutation import MutationRequest
from graftwork_trainer.jobs import tables
from graftwork_trainer.jobs.errors import PolicyExists, UnknownJob, UnknownPolicy, WrongTransition
from graftwork_trainer.jobs.policy_store import CanaryStore, PolicyStore
from graftwork_trainer.jobs.records import CanaryDraft, CanaryRecord
from graftwork_trainer.jobs.states import TRANSITIONS, JobState
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.journal import schema
from graftwork_trainer.journal.database import Database
from graftwork_trainer.journal.migrations.versions import r0002_training

from tests.trainer.jobs.queue import clock, ids, spec_of


@pytest.fixture
def store(each_database: Database) -> JobStore:
    return JobStore(each_database, ids(), server="a", clock_ns=clock())


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


def test_canaries_and_jobs_of_the_first_release_go_on(each_database: Database):
    canary = {"adapter": "poet", "version": 2, "incumbent": 1, "feedback": 20, "tolerance": 0.1}
    with each_database.write() as connection:
        tables.metadata.drop_all(connection)
        schema.deleted_items.drop(connection)
        context = MigrationContext.configure(connection)
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
        with Operations.context(context):
            r0002_training.upgrade()
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0002'"))
        old = sa.Table("training_canaries", sa.MetaData(), autoload_with=connection)
        connection.execute(old.insert().values(**canary, start_time_ns=7, job_id="job"))
    each_database._migrate()
    draft = CanaryDraft(**canary, percent=0, start_time_ns=7)
    store = CanaryStore(each_database, server="a")
    assert store.waiting() == [CanaryRecord("job", draft)]
    store.end(CanaryRecord("job", draft))
    assert store.waiting() == []


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


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> int:
        return int(self.now_s * 1e9)


@pytest.fixture
def servers(each_database: Database) -> tuple[JobStore, JobStore, Clock]:
    """Two servers on one database."""
    now = Clock()

    def of(server: str) -> JobStore:
        return JobStore(each_database, ids(), server=server, lease_s=60, clock_ns=now)

    return of("a"), of("b"), now


def test_a_server_leaves_alone_what_another_runs(servers: tuple[JobStore, JobStore, Clock]):
    a, b, _ = servers
    job = a.create(spec_of())
    assert a.claim().id == job.id
    assert b.recover() == 0
    assert b.claim() is None
    assert b.renew(job.id) is None
    b.record(job.id, version="poet@9")
    for change in (b.requeue, b.start_again):
        with pytest.raises(WrongTransition):
            change(job.id, "mine")
    with pytest.raises(WrongTransition):
        b.finish(job.id, JobState.FAILED)
    assert b.cancel(job.id).cancel_requested
    assert a.renew(job.id).cancel_requested
    assert a.finish(job.id, JobState.CANCELLED).version == ""


def test_a_job_is_taken_over_once_its_lease_has_ended(servers: tuple[JobStore, JobStore, Clock]):
    a, b, now = servers
    job = a.create(spec_of())
    a.claim()
    now.now_s += 50
    assert a.renew(job.id).id == job.id
    now.now_s += 50
    assert b.recover_abandoned() == 0
    now.now_s += 11
    assert b.recover_abandoned() == 1
    assert a.renew(job.id) is None
    assert b.claim().attempt == 2
    assert a.renew(job.id) is None
    assert a.recover() == 0, "it is not what this server was running"
    with pytest.raises(WrongTransition):
        a.finish(job.id, JobState.SUCCEEDED)
    assert b.finish(job.id, JobState.SUCCEEDED).state is JobState.SUCCEEDED


def test_a_server_that_restarts_takes_its_own_back_at_once(
    servers: tuple[JobStore, JobStore, Clock],
):
    a, _, _ = servers
    a.create(spec_of())
    a.claim()
    assert a.recover_abandoned() == 0
    assert a.recover() == 1
    assert a.claim().attempt == 2


def test_of_servers_that_claim_at_once_each_job_has_one(each_database: Database):
    url = each_database.engine.url.render_as_string(hide_password=False)
    jobs = JobStore(each_database, ids(), server="a")
    made = [jobs.create(spec_of()).id for _ in range(20)]

    def claim_all(server: str) -> list[str]:
        database = Database.open(url)
        store, claimed = JobStore(database, ids(), server=server), []
        while (job := store.claim()) is not None:
            claimed.append(job.id)
        database.close()
        return claimed

    with ThreadPoolExecutor(3) as executor:
        claims = [*executor.map(claim_all, "abc")]
    assert sorted(job for claimed in claims for job in claimed) == made


def test_servers_watch_the_canaries_of_their_own_adapters(each_database: Database):
    a, b = (CanaryStore(each_database, server=server) for server in "ab")
    draft = CanaryDraft("poet", 2, 1, 10, 20, 0.1, 7)
    a.begin(CanaryRecord("job 1", draft))
    b.begin(CanaryRecord("job 2", draft))
    assert [canary.job_id for canary in a.waiting()] == ["job 1"]
    b.end(CanaryRecord("job 2", draft))
    assert (len(a.waiting()), b.waiting()) == (1, [])


def test_a_new_canary_takes_the_place_of_the_one_before(each_database: Database):
    canaries = CanaryStore(each_database, server="a")
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
