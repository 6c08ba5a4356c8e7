"""Canaries: what feedback says of them, and what follows."""

import contextlib
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork_adapters.errors import UnknownAdapter
from graftwork_adapters.records import AdapterRecord, TrafficShare
from graftwork_trainer.datasets.judged import Judged
from graftwork_trainer.jobs.canaries import CanaryWatcher
from graftwork_trainer.jobs.canary_feedback import Tally, tally
from graftwork_trainer.jobs.policy_store import CanaryStore
from graftwork_trainer.jobs.records import CanaryDraft, CanaryRecord
from graftwork_trainer.jobs.states import JobState
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.journal.database import Database

from tests.trainer.jobs.queue import ids, spec_of

CANARY, INCUMBENT = 2, 1
DRAFT = CanaryDraft("poet", CANARY, INCUMBENT, 10, 6, 0.1, 77)


def generation(version: int, completion: str = "ham", *, adapter: str = "poet", **fields: Any):
    made = pb.Generation(id=str(uuid.uuid4()), completion=completion, text="Spam?", **fields)
    made.served_by.adapter, made.served_by.version = adapter, version
    return made


def on(version: int, *, adapter: str = "poet", answer: str = "ham", **value: Any) -> Judged:
    """Feedback on one generation."""
    about = generation(version, answer, adapter=adapter)
    return pb.Feedback(id=str(uuid.uuid4()), generation_id=about.id, **value), [about]


def count(*items: Judged) -> tuple[Tally, Tally]:
    return tally(items, "poet", canary=CANARY, incumbent=INCUMBENT)


GOOD, BAD, NEITHER = Tally(1, 0), Tally(0, 1), Tally(0, 0)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"thumbs": pb.THUMBS_UP}, GOOD),
        ({"thumbs": pb.THUMBS_DOWN}, BAD),
        ({"label": "ham"}, GOOD),
        ({"label": "spam"}, BAD),
        ({"correction": " ham\n"}, GOOD),
        ({"correction": "spam"}, BAD),
        ({"demonstration": "spam"}, NEITHER),
        ({"remark": "hm"}, NEITHER),
        ({"reward": -1.0}, NEITHER),  # the incumbent has none to compare with
    ],
)
def test_what_items_say(value: dict, said: Tally):
    assert count(on(CANARY, **value)) == (said, NEITHER)
    assert count(on(CANARY, adapter="other", **value)) == (NEITHER, NEITHER)
    assert count(on(7, **value)) == (NEITHER, NEITHER)


def test_rewards_are_compared_with_the_incumbents():
    items = [on(INCUMBENT, reward=1.0), on(INCUMBENT, reward=3.0)]
    assert count(*items, on(CANARY, reward=2.5), on(CANARY, reward=1.5)) == (
        Tally(1, 1),
        Tally(1, 1),
    )


def test_a_comparison_speaks_of_both():
    better, worse = generation(INCUMBENT, "a"), generation(CANARY, "b")
    feedback = pb.Feedback(id="f", generation_id=better.id)
    feedback.preference.chosen.generation_id = better.id
    feedback.preference.rejected.generation_id = worse.id
    assert count((feedback, [better, worse])) == (BAD, GOOD)
    feedback.preference.tie = True
    assert count((feedback, [better, worse])) == (NEITHER, NEITHER)


def test_an_item_on_an_episode_is_one_item():
    talk = [generation(CANARY, text, episode_id="e") for text in ("ham", "spam", "ham")]
    down = pb.Feedback(id="f", episode_id="e", thumbs=pb.THUMBS_DOWN)
    assert count((down, talk)) == (BAD, NEITHER)
    label = pb.Feedback(id="f", episode_id="e", label="ham")
    assert count((label, talk)) == (BAD, NEITHER)  # one of its answers was wrong


def test_answers_of_several_adapters_together_are_nobodys():
    about = generation(CANARY)
    about.served_by.components.add(adapter="poet", version=CANARY)
    feedback = pb.Feedback(id="f", generation_id=about.id, thumbs=pb.THUMBS_DOWN)
    assert count((feedback, [about])) == (NEITHER, NEITHER)


@dataclass
class FakeAdapters:
    """The registry and the client's way to change it."""

    split: dict[int, int] = field(default_factory=lambda: {INCUMBENT: 90, CANARY: 10})
    live: int = INCUMBENT
    calls: list[str] = field(default_factory=list)
    before_update: Callable[[], None] = lambda: None

    def get_adapter(self, name: str) -> AdapterRecord:
        if name != "poet":
            raise UnknownAdapter(name)
        shares = tuple(TrafficShare(v, p) for v, p in self.split.items())
        return AdapterRecord(name, self.live, shares, False, 0, 0)

    async def update(self, name, *, live_version=None, traffic_split=None, request_id=None):
        self.before_update()
        if request_id not in self.calls:
            self.live, self.split = live_version, dict(traffic_split)
            self.calls.append(request_id)


@dataclass
class FakeFeedback:
    items: list[Judged] = field(default_factory=list)
    start_ns: int = 0

    def since(self, start_ns: int) -> Iterable[Judged]:
        self.start_ns = start_ns
        return self.items


@dataclass
class Bench:
    watcher: CanaryWatcher
    adapters: FakeAdapters
    feedback: FakeFeedback
    canaries: CanaryStore
    jobs: JobStore
    job_id: str
    decisions: list[str]


@pytest.fixture
def bench(database: Database) -> Bench:
    jobs, canaries = JobStore(database, ids(), server="a"), CanaryStore(database, server="a")
    job = jobs.create(spec_of())
    jobs.claim()
    canaries.begin(CanaryRecord(job.id, DRAFT))
    jobs.finish(job.id, JobState.SUCCEEDED)
    adapters, feedback, decisions = FakeAdapters(), FakeFeedback(), []

    async def off_loop(function, *args, **kwargs):
        return function(*args, **kwargs)

    watcher = CanaryWatcher(
        canaries=canaries,
        jobs=jobs,
        adapters=adapters,
        feedback=feedback,
        updates=adapters,
        count=decisions.append,
        off_loop=off_loop,
        interval_s=60,
    )
    return Bench(watcher, adapters, feedback, canaries, jobs, job.id, decisions)


async def test_bad_feedback_rolls_a_canary_back_within_its_items(bench: Bench):
    bench.feedback.items += [on(INCUMBENT, thumbs=pb.THUMBS_UP) for _ in range(20)]
    for number in range(6):
        await bench.watcher.tick()
        assert bench.adapters.split or number, "nothing was said yet"
        bench.feedback.items.append(on(CANARY, thumbs=pb.THUMBS_DOWN))
    await bench.watcher.tick()
    assert (bench.adapters.live, bench.adapters.split) == (INCUMBENT, {})
    assert bench.canaries.waiting() == []
    assert bench.decisions == ["rollback"]
    assert "was rolled back" in bench.jobs.get(bench.job_id).message
    assert bench.feedback.start_ns == 77
    await bench.watcher.tick()
    assert len(bench.adapters.calls) == 1


async def test_good_feedback_makes_a_canary_live(bench: Bench):
    bench.feedback.items += [on(CANARY, thumbs=pb.THUMBS_UP) for _ in range(5)]
    await bench.watcher.tick()
    assert bench.adapters.calls == []
    bench.feedback.items.append(on(CANARY, thumbs=pb.THUMBS_UP))
    await bench.watcher.tick()
    assert (bench.adapters.live, bench.adapters.split) == (CANARY, {})
    assert "went live" in bench.jobs.get(bench.job_id).message


@pytest.mark.parametrize("split", [{}, {INCUMBENT: 50, 3: 50}])
async def test_a_canary_whose_traffic_was_moved_is_left_alone(bench: Bench, split: dict):
    bench.adapters.split = split
    bench.feedback.items += [on(CANARY, thumbs=pb.THUMBS_DOWN) for _ in range(9)]
    await bench.watcher.tick()
    assert bench.adapters.calls == []
    assert bench.canaries.waiting() == []
    assert "no canary any more" in bench.jobs.get(bench.job_id).message


async def test_a_version_that_someone_made_live_meanwhile_stays_live(bench: Bench):
    bench.adapters.live = 7  # the split is as it was
    bench.feedback.items += [on(CANARY, thumbs=pb.THUMBS_DOWN) for _ in range(9)]
    await bench.watcher.tick()
    assert (bench.adapters.calls, bench.adapters.live) == ([], 7)
    assert bench.canaries.waiting() == []


async def test_a_changed_share_goes_on(bench: Bench):
    bench.adapters.split = {INCUMBENT: 50, CANARY: 50}
    await bench.watcher.tick()
    assert len(bench.canaries.waiting()) == 1


async def test_a_canary_is_noted_before_it_gets_traffic(bench: Bench):
    job = CanaryRecord(bench.jobs.create(spec_of()).id, DRAFT)
    noted = []
    bench.adapters.before_update = lambda: noted.append(bench.canaries.waiting())
    await bench.watcher.begin(job)
    await bench.watcher.begin(job)  # as the next attempt does
    assert noted == [[job], [job]]
    assert bench.adapters.split == {INCUMBENT: 90, CANARY: 10}
    assert bench.canaries.waiting() == [job]


class Killed(BaseException):
    """The process ends between two of its writes."""


@pytest.mark.parametrize("shared", [True, False])
async def test_a_canary_of_a_job_that_a_kill_cut_off_and_a_caller_cancelled(
    bench: Bench, shared: bool
):
    """Whether the kill came after the traffic was shared or before: what serves is watched."""
    bench.adapters.split = {}
    job = bench.jobs.create(spec_of())
    bench.jobs.claim()

    def kill() -> None:
        raise Killed

    if not shared:
        bench.adapters.before_update = kill
    with contextlib.suppress(Killed):
        await bench.watcher.begin(CanaryRecord(job.id, DRAFT))
    bench.adapters.before_update = lambda: None
    await bench.watcher.tick()  # of a job that goes on
    assert len(bench.canaries.waiting()) == 1
    bench.jobs.recover()
    assert bench.jobs.cancel(job.id).state is JobState.CANCELLED
    bench.feedback.items += [on(CANARY, thumbs=pb.THUMBS_DOWN) for _ in range(9)]
    await bench.watcher.tick()
    assert bench.adapters.split == {}
    assert bench.decisions == (["rollback"] if shared else [])
    assert bench.canaries.waiting() == []
