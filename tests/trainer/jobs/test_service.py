"""TrainingService over a real in-process server, with jobs that no worker runs."""

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from graftwork.status import details_of
from graftwork.v1 import training_service_pb2 as pb
from graftwork.v1.training_service_pb2_grpc import (
    TrainingServiceStub,
    add_TrainingServiceServicer_to_server,
)
from graftwork_adapters.errors import NoLiveVersion, UnknownAdapter
from graftwork_adapters.records import VersionRecord
from graftwork_adapters.selector import Selector
from graftwork_server.interceptor import StatusInterceptor
from graftwork_trainer.errors import UnknownSnapshot
from graftwork_trainer.jobs.catalogue import RECIPE_FORMATS, Catalogue
from graftwork_trainer.jobs.creation import JobCreator
from graftwork_trainer.jobs.folders import REPORT, JobFolders
from graftwork_trainer.jobs.leftovers import Leftovers
from graftwork_trainer.jobs.policies import PolicyRunner
from graftwork_trainer.jobs.policy_store import PolicyStore
from graftwork_trainer.jobs.records import Progress
from graftwork_trainer.jobs.service import TrainingParts, TrainingServicer
from graftwork_trainer.jobs.states import JobState
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.jobs.supervisor import Supervisor
from graftwork_trainer.journal.database import Database

from tests.support.server import until
from tests.trainer.jobs.queue import ids, spec_of

NOW_NS = 1_700_000_000 * 10**9
SNAPSHOT = "sha256:" + "a" * 64


class FakeAdapters:
    """One adapter with a live version, and one with none."""

    def ephemeral_versions(self, name: str, owner: str) -> tuple[VersionRecord, ...]:
        return ()

    def lookup(self, selector: Selector) -> VersionRecord:
        if selector.name == "draft":
            raise NoLiveVersion("draft")
        if selector.name != "poet":
            raise UnknownAdapter(str(selector))
        return VersionRecord("poet", selector.version or 3, "", "LORA", 4, 0, 0, 0, "", True, "", 0)


@dataclass
class FakeExamples:
    num_items: int = 5

    def takes_any(self, selection) -> bool:
        return self.num_items > 0

    def count_feedback(self, selection) -> int:
        return self.num_items

    def check_snapshot(self, digest: str) -> None:
        if digest != SNAPSHOT:
            raise UnknownSnapshot(digest)


class NoObserver:
    def set_training_jobs(self, by_state) -> None: ...
    def set_training_progress(self, progress) -> None: ...
    def count_gate_verdict(self, verdict) -> None: ...


@dataclass
class Bench:
    stub: TrainingServiceStub
    store: JobStore
    policies: PolicyStore
    folders: JobFolders
    supervisor: Supervisor
    creator: JobCreator
    examples: FakeExamples = field(default_factory=FakeExamples)

    async def create(self, **fields) -> pb.TrainingJob:
        request_id = fields.pop("request_id", "")
        spec = spec_of(fields.pop("adapter", "poet"), **fields)
        request = pb.CreateTrainingJobRequest(spec=spec, request_id=request_id)
        return await self.stub.CreateTrainingJob(request)

    async def policy(self, name: str = "p", **fields) -> pb.TrainingPolicy:
        policy = pb.TrainingPolicy(name=name, spec=spec_of(), **fields)
        return await self.stub.CreateTrainingPolicy(pb.CreateTrainingPolicyRequest(policy=policy))


@pytest.fixture
async def bench(database: Database, tmp_path: Path) -> AsyncIterator[Bench]:
    store, policies = JobStore(database, ids(), server="a"), PolicyStore(database)
    folders, examples = JobFolders(tmp_path / "jobs"), FakeExamples()
    server = grpc.aio.server(
        interceptors=[
            StatusInterceptor(observe_rpc=lambda method, code: None, is_draining=lambda: False)
        ]
    )
    with ThreadPoolExecutor(1) as executor:

        async def off_loop(function, *args, **kwargs):
            call = asyncio.get_running_loop().run_in_executor
            return await call(executor, lambda: function(*args, **kwargs))

        leftovers = Leftovers(
            store, folders, FakeAdapters(), deletion=None, redact=None, off_loop=off_loop
        )
        supervisor = Supervisor(
            store, leftovers, None, None, None, executor=executor, observer=NoObserver()
        )
        catalogue = Catalogue(RECIPE_FORMATS, frozenset({"LORA", "IA3"}))
        creator = JobCreator(store, catalogue, FakeAdapters(), examples, off_loop, supervisor.wake)
        parts = TrainingParts(store, policies, supervisor, folders, creator)
        add_TrainingServiceServicer_to_server(TrainingServicer(parts, executor), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = TrainingServiceStub(channel)
            yield Bench(stub, store, policies, folders, supervisor, creator, examples)
        await server.stop(None)


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: str, field: str | None = None):
    with pytest.raises(grpc.RpcError) as caught:
        yield
    details = details_of(caught.value)
    assert (caught.value.code(), details.reason) == (code, reason), caught.value.details()
    assert field is None or details.field == field


INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND


async def test_a_job_is_queued_found_listed_and_cancelled(bench: Bench):
    job = await bench.create()
    assert (job.state, job.spec.adapter) == (pb.JOB_STATE_QUEUED, "poet")
    assert not job.HasField("start_time")
    assert await bench.stub.GetTrainingJob(pb.GetTrainingJobRequest(id=job.id)) == job
    listed = await bench.stub.ListTrainingJobs(
        pb.ListTrainingJobsRequest(adapter="poet", states=[pb.JOB_STATE_QUEUED])
    )
    assert list(listed.jobs) == [job]
    ended = await bench.stub.CancelTrainingJob(pb.CancelTrainingJobRequest(id=job.id))
    assert (ended.state, ended.HasField("end_time")) == (pb.JOB_STATE_CANCELLED, True)


async def test_a_repeated_request_is_answered_as_the_first(bench: Bench):
    request_id = str(uuid.uuid4())
    job = await bench.create(request_id=request_id)
    bench.examples.num_items = 0
    assert (await bench.create(request_id=request_id)).id == job.id
    with refused(INVALID, "REQUEST_ID_REUSED"):
        await bench.create(adapter="other", request_id=request_id)
    with refused(INVALID, "INVALID_FIELD", "request_id"):
        await bench.create(request_id="one")


async def test_impossible_jobs_are_refused_before_they_are_queued(bench: Bench):
    with refused(INVALID, "INVALID_FIELD", "spec.recipe"):
        await bench.create(recipe="magic")
    with refused(NOT_FOUND, "UNKNOWN_ADAPTER", "spec.initial_version"):
        await bench.create(initial_version="nobody@1")
    with refused(PRECONDITION, "NO_LIVE_VERSION", "spec.initial_version"):
        await bench.create(initial_version="draft")
    with refused(NOT_FOUND, "UNKNOWN_SNAPSHOT"):
        await bench.create(dataset=pb.DatasetSpec(snapshot="sha256:" + "b" * 64))
    bench.examples.num_items = 0
    with refused(PRECONDITION, "NOTHING_TO_TRAIN_ON", "spec.dataset.selection"):
        await bench.create()
    assert bench.store.list(page_size=10).items == ()
    await bench.create(dataset=pb.DatasetSpec(snapshot=SNAPSHOT))


async def test_a_name_stands_for_its_live_version(bench: Bench):
    assert (await bench.create(initial_version="poet")).spec.initial_version == "poet@3"
    assert (await bench.create(initial_version="poet@2")).spec.initial_version == "poet@2"


async def test_unknown_jobs_and_missing_reports(bench: Bench):
    for call, request in (
        (bench.stub.GetTrainingJob, pb.GetTrainingJobRequest(id="../x")),
        (bench.stub.CancelTrainingJob, pb.CancelTrainingJobRequest(id="x")),
        (bench.stub.GetTrainingReport, pb.GetTrainingReportRequest(job_id="x")),
    ):
        with refused(NOT_FOUND, "UNKNOWN_JOB"):
            await call(request)
    with refused(NOT_FOUND, "UNKNOWN_JOB"):
        async for _ in bench.stub.WatchTrainingJob(pb.WatchTrainingJobRequest(id="x")):
            pass
    job = await bench.create()
    with refused(PRECONDITION, "NO_REPORT", "job_id"):
        await bench.stub.GetTrainingReport(pb.GetTrainingReportRequest(job_id=job.id))
    with refused(INVALID, "INVALID_FIELD", "states"):
        await bench.stub.ListTrainingJobs(pb.ListTrainingJobsRequest(states=[99]))


async def test_a_report_comes_with_its_plots(bench: Bench):
    job = await bench.create()
    folder = bench.folders.of(job.id) / REPORT
    folder.mkdir(parents=True)
    (folder / "report.md").write_text("# Refused")
    (folder / "report.json").write_text("{}")
    (folder / "loss.png").write_bytes(b"PNG")
    report = await bench.stub.GetTrainingReport(pb.GetTrainingReportRequest(job_id=job.id))
    assert (report.markdown, report.json) == ("# Refused", "{}")
    assert [(plot.filename, plot.png) for plot in report.plots] == [("loss.png", b"PNG")]


async def test_a_watch_tells_changes_until_the_end(bench: Bench):
    job = await bench.create()
    seen: list[pb.TrainingJob] = []

    async def watch() -> None:
        async for update in bench.stub.WatchTrainingJob(pb.WatchTrainingJobRequest(id=job.id)):
            seen.append(update.job)
            bench.supervisor.feed.changed(job.id)  # what comes while nobody looks is not lost

    watching = asyncio.create_task(watch())
    await until(lambda: seen)
    bench.store.claim()
    bench.store.record(job.id, progress=Progress("training", step=2, remaining_s=1.5))
    bench.supervisor.feed.changed(job.id)
    await until(lambda: seen[-1].progress.step == 2)
    bench.store.finish(job.id, JobState.FAILED, "why")
    bench.supervisor.feed.changed(job.id)
    await asyncio.wait_for(watching, 10)
    assert seen[-1].message == "why"
    assert any(job.progress.remaining.nanos == 500_000_000 for job in seen)


async def test_policies_live_and_end(bench: Bench):
    policy = await bench.policy(min_new_feedback=5)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "POLICY_EXISTS"):
        await bench.policy(min_new_feedback=6)
    assert await bench.stub.GetTrainingPolicy(pb.GetTrainingPolicyRequest(name="p")) == policy
    changed = pb.TrainingPolicy(name="p", schedule="0 3 * * *", min_new_feedback=0)
    mask = FieldMask(paths=["schedule", "min_new_feedback"])
    updated = await bench.stub.UpdateTrainingPolicy(
        pb.UpdateTrainingPolicyRequest(policy=changed, update_mask=mask)
    )
    assert (updated.schedule, updated.min_new_feedback) == ("0 3 * * *", 0)
    listed = await bench.stub.ListTrainingPolicies(pb.ListTrainingPoliciesRequest())
    assert list(listed.policies) == [updated]
    await bench.stub.DeleteTrainingPolicy(pb.DeleteTrainingPolicyRequest(name="p"))
    with refused(NOT_FOUND, "UNKNOWN_POLICY"):
        await bench.stub.DeleteTrainingPolicy(pb.DeleteTrainingPolicyRequest(name="p"))


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (pb.TrainingPolicy(name="P", min_new_feedback=1), "policy.name"),
        (pb.TrainingPolicy(name="p"), "policy.min_new_feedback"),
        (pb.TrainingPolicy(name="p", min_new_feedback=-1), "policy.min_new_feedback"),
        (pb.TrainingPolicy(name="p", schedule="at night"), "policy.schedule"),
        (pb.TrainingPolicy(name="p", schedule="* * * * * *"), "policy.schedule"),
        (pb.TrainingPolicy(name="p", schedule="0 25 * * *"), "policy.schedule"),
        (
            pb.TrainingPolicy(name="p", min_new_feedback=1, spec=spec_of(recipe="x")),
            "policy.spec.recipe",
        ),
        (
            pb.TrainingPolicy(
                name="p",
                min_new_feedback=1,
                spec=spec_of(dataset=pb.DatasetSpec(snapshot=SNAPSHOT)),
            ),
            "policy.spec.dataset.snapshot",
        ),
    ],
)
async def test_impossible_policies_are_refused(bench: Bench, policy: pb.TrainingPolicy, field: str):
    if not policy.HasField("spec"):
        policy.spec.adapter = "poet"
    with refused(INVALID, "INVALID_FIELD", field):
        await bench.stub.CreateTrainingPolicy(pb.CreateTrainingPolicyRequest(policy=policy))


async def test_a_policy_may_not_be_changed_into_one_that_never_starts(bench: Bench):
    await bench.policy(min_new_feedback=5)
    request = pb.UpdateTrainingPolicyRequest(
        policy=pb.TrainingPolicy(name="p"), update_mask=FieldMask(paths=["min_new_feedback"])
    )
    with refused(INVALID, "INVALID_FIELD", "policy.min_new_feedback"):
        await bench.stub.UpdateTrainingPolicy(request)
    request.update_mask.paths[:] = ["name"]
    with refused(INVALID, "INVALID_FIELD", "update_mask"):
        await bench.stub.UpdateTrainingPolicy(request)


@pytest.mark.parametrize(("sent_ns", "kept_ns"), [(None, NOW_NS), (7, 7), (2 * NOW_NS, NOW_NS)])
async def test_a_job_takes_no_feedback_that_comes_after_it(
    bench: Bench, sent_ns: int | None, kept_ns: int
):
    creator = dataclasses.replace(bench.creator, clock_ns=lambda: NOW_NS)
    spec = spec_of()
    if sent_ns is not None:
        spec.dataset.selection.before.FromNanoseconds(sent_ns)
    before = pb.TrainingJobSpec.FromString(spec.SerializeToString())
    job = await creator.create(spec)
    assert job.spec.dataset.selection.before.ToNanoseconds() == kept_ns
    assert spec == before


async def test_a_job_on_a_snapshot_has_no_selection(bench: Bench):
    spec = spec_of()
    spec.ClearField("dataset")
    spec.dataset.snapshot = SNAPSHOT
    job = await bench.creator.create(spec)
    assert not job.spec.dataset.HasField("selection")


async def test_a_policy_starts_one_job_for_what_is_new(bench: Bench):
    await bench.policy(min_new_feedback=5)
    runner = PolicyRunner(bench.policies, bench.creator, interval_s=60)
    bench.examples.num_items = 4
    await runner.tick()
    assert bench.store.list(page_size=10).items == ()
    bench.examples.num_items = 5
    await runner.tick()
    [job] = bench.store.list(page_size=10).items
    assert job.policy == "p"
    before = job.spec.dataset.selection.before
    policy = bench.policies.get("p")
    assert (policy.last_job, policy.spec.dataset.selection.after) == (job.id, before)
    await runner.tick()  # while its job waits
    bench.store.claim()
    await runner.tick()  # while it runs
    assert len(bench.store.list(page_size=10).items) == 1
    bench.store.finish(job.id, JobState.REFUSED)
    await runner.tick()
    assert len(bench.store.list(page_size=10).items) == 2


@pytest.mark.parametrize(("adapter", "initial"), [("draft", ""), ("new", ""), ("poet", "poet@3")])
async def test_a_policy_that_builds_on_itself_begins_anew_where_nothing_is_live(
    bench: Bench, adapter: str, initial: str
):
    spec = spec_of(adapter, initial_version=adapter)
    policy = pb.TrainingPolicy(name="p", spec=spec, min_new_feedback=5)
    await bench.stub.CreateTrainingPolicy(pb.CreateTrainingPolicyRequest(policy=policy))
    await PolicyRunner(bench.policies, bench.creator, interval_s=60).tick()
    [job] = bench.store.list(page_size=10).items
    assert job.spec.initial_version == initial
    assert bench.policies.get("p").spec.initial_version == adapter  # for those that follow


async def test_a_policy_that_was_killed_while_starting_starts_one_job(bench: Bench, monkeypatch):
    await bench.policy(min_new_feedback=5)
    runner = PolicyRunner(bench.policies, bench.creator, interval_s=60)

    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.policies, "started", crash)
        with pytest.raises(KeyboardInterrupt):
            await runner.tick()
    [job] = bench.store.list(page_size=10).items
    bench.store.claim()
    bench.store.finish(job.id, JobState.FAILED)
    await runner.tick()
    assert len(bench.store.list(page_size=10).items) == 1
    assert bench.policies.get("p").last_job == job.id
