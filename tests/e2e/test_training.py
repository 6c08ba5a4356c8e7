"""Training jobs, from feedback through gRPC to a live version, on a tiny model."""

import asyncio
import json
import os
import random
import re
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from graftwork import Conversation, FailedPrecondition, JobState, Message, TrainingJob
from graftwork.feedback_types import Refusal
from graftwork_server.generation_log import template_hash
from graftwork_trainer.datasets.snapshot import open_snapshot, rebuild
from graftwork_trainer.feedback_stream import exported

from tests.support.server import ServerUnderTest, serving, tiny_settings, until
from tests.support.tiny_serving import TinyBase, model_digest, one_torch_thread, tiny_base

__all__ = ["one_torch_thread", "tiny_base"]

WORDS = ("fox", "dog", "world", "hello", "quick", "brown", "lazy", "jumps")
TASK = "length"

# Enough for the tiny model to tell long words from short ones.
SPEC = {
    "dataset": {"selection": {"tasks": [TASK], "format": "classification"}},
    "hyperparameters": {"learning_rate": 0.01, "epochs": 5.0},
    # Whether it learned is for other tests: these ask what follows when it did.
    "gate": {
        "few_shot": 0,
        "max_examples": 20,
        "min_gain_over_base": -1.0,
        "max_regression": 1.0,
        "max_other_task_regression": 1.0,
    },
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process can import, its workers can."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    settings = tiny_settings(
        tmp_path,
        tiny_base.model,
        adapters={"roots": [str(tiny_base.folder)]},
        # Nobody else waits for this server.
        training={"check_interval_s": 0.1, "scheduling": "nice", "niceness": 0},
    )
    async with serving(settings) as server:
        yield server
        await server.check_idle()


async def submit(running: ServerUnderTest, items: list[dict]) -> None:
    outcomes = await running.client.feedback.submit_many(items)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert not refused, refused[0]


async def label_words(
    running: ServerUnderTest, count: int, *, shuffled: bool = False, start: int = 0
) -> None:
    """Feedback that says of words whether they are long, or of shuffled ones anything."""
    chance, items = random.Random(0), []
    for index in range(start, start + count):
        word = WORDS[index % len(WORDS)]
        text = f"{'the ' * (index % 5)}{word} {index}"
        label = "long" if len(word) > 4 else "short"
        items.append(
            {
                "prompt": Conversation([Message("user", text)]),
                "task": TASK,
                "label": chance.choice(["long", "short"]) if shuffled else label,
                "author": f"a{index}",
            }
        )
    await submit(running, items)


async def ended(running: ServerUnderTest, job: TrainingJob) -> TrainingJob:
    return await running.client.training.wait(job.id, timeout=120)


async def first_job(running: ServerUnderTest) -> TrainingJob:
    """Waits until something has started one."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        async for job in running.client.training.list():
            return job
        await asyncio.sleep(0.05)
    raise AssertionError("no job was started")


async def test_feedback_becomes_a_live_version(running: ServerUnderTest, tmp_path: Path) -> None:
    training = running.client.training
    await label_words(running, 160)
    job = await training.start("lengths", **SPEC)
    assert job.state is JobState.QUEUED
    phases = []
    async for now in training.watch(job.id):
        job = now
        if job.progress.phase not in phases:
            phases.append(job.progress.phase)
    assert job.state is JobState.SUCCEEDED, job
    assert [phase for phase in phases if phase] == sorted(
        {"dataset", "training", "evaluation", "promotion"} & set(phases),
        key=["dataset", "training", "evaluation", "promotion"].index,
    )
    assert {"training", "evaluation"} <= set(phases)
    assert (job.version, job.attempt) == ("lengths@1", 1)
    assert job.snapshot.startswith("sha256:")

    adapter = await running.client.adapters.get("lengths")
    assert adapter.live_version == 1
    version = await running.client.adapters.get_version("lengths@1")
    assert version.base_verified
    report = await training.report(job.id)
    assert "lengths@1" in report.markdown
    assert json.loads(report.json)
    assert all(png.startswith(b"\x89PNG") for png in report.plots.values())
    answer = await running.client.generate(
        [Message("user", "the world 7")], adapter="lengths", max_tokens=4
    )
    assert answer.served_by.version == 1
    assert await model_digest(running) == running.base.digest
    # Some of these are held out, but not all.
    deletions = [await running.client.feedback.delete(author=f"a{n}") for n in range(8)]
    assert ("lengths@1",) in [deletion.trained_versions for deletion in deletions]
    datasets = tmp_path / "data/training/datasets"
    texts = [path.read_text() for path in datasets.rglob("*.jsonl")]
    authors = {int(number) for text in texts for number in re.findall(r'"author": ?"a(\d+)"', text)}
    assert min(authors) >= 8
    assert "redacted" in open_snapshot(datasets, job.snapshot).manifest


async def test_a_snapshot_is_made_again_whatever_feedback_has_come(
    running: ServerUnderTest, tmp_path: Path
) -> None:
    await label_words(running, 60)
    job = await running.client.training.start("lengths", **SPEC, promotion={"mode": "none"})
    await label_words(running, 20, start=60)  # while it is queued or trains
    job = await ended(running, job)
    await label_words(running, 20, start=80)
    snapshot = open_snapshot(tmp_path / "data/training/datasets", job.snapshot)
    again = await asyncio.to_thread(
        rebuild,
        snapshot,
        lambda selection: exported(
            f"127.0.0.1:{running.server.port}", replace(snapshot.settings, selection=selection)
        ),
        tmp_path / "elsewhere",
    )
    assert again.digest == job.snapshot
    assert sum(again.count(split) for split in ("train", "validation", "golden")) <= 60
    chat_template = running.base.tokenizer.chat_template
    assert again.manifest["template_hash"] == template_hash(chat_template) != ""


@pytest.mark.slow
async def test_a_job_goes_on_from_a_version_and_from_a_snapshot(running: ServerUnderTest) -> None:
    training = running.client.training
    await label_words(running, 160)
    job = await ended(running, await training.start("lengths", **SPEC))
    assert job.state is JobState.SUCCEEDED, job

    # The same data on the base that is there now, from the snapshot alone.
    spec = {**SPEC, "dataset": {"snapshot": job.snapshot}, "promotion": {"mode": "none"}}
    again = await ended(running, await training.start("again", **spec))
    assert (again.state, again.snapshot) == (JobState.SUCCEEDED, job.snapshot)
    assert (await running.client.adapters.get("again")).live_version == 0

    # And going on from what is live.
    spec = {**SPEC, "dataset": {"snapshot": job.snapshot}, "initial_version": "lengths"}
    more = await training.start("lengths", **spec)
    assert more.spec["initial_version"] == "lengths@1"
    more = await ended(running, more)
    assert (more.state, more.version) == (JobState.SUCCEEDED, "lengths@2"), more


@pytest.mark.slow
async def test_shuffled_labels_are_refused(running: ServerUnderTest) -> None:
    await label_words(running, 160, shuffled=True)
    spec = {**SPEC, "gate": {**SPEC["gate"], "min_accuracy": 0.9}}
    job = await ended(running, await running.client.training.start("lengths", **spec))
    assert job.state is JobState.REFUSED, job
    assert "accuracy" in job.message
    assert (await running.client.adapters.get("lengths")).live_version == 0
    report = await running.client.training.report(job.id)
    assert "accuracy" in report.markdown


@pytest.mark.slow
async def test_a_search_comes_before_the_training(running: ServerUnderTest) -> None:
    await label_words(running, 60)
    job = await running.client.training.start(
        "searched",
        **{**SPEC, "search": {"trials": 2, "parameters": ["learning_rate", "rank"]}},
        promotion={"mode": "none"},
    )
    job = await ended(running, job)
    # The rate that was found may be too low for so short a training.
    assert job.state in (JobState.SUCCEEDED, JobState.REFUSED), job
    report = json.loads((await running.client.training.report(job.id)).json)
    assert len(report["trials"]) == 2


async def test_what_cannot_be_trained_on_is_said(running: ServerUnderTest) -> None:
    training = running.client.training
    with pytest.raises(FailedPrecondition, match="submit feedback first"):
        await training.start("lengths", **SPEC)
    await label_words(running, 4)
    job = await ended(running, await training.start("lengths", **SPEC))
    assert job.state is JobState.FAILED
    assert job.attempt == 1
    assert "needed" in job.message
    same = [
        {"prompt": f"word {i}", "task": "one", "label": "spam", "author": str(i)} for i in range(40)
    ]
    await submit(running, same)
    spec = {"dataset": {"selection": {"tasks": ["one"], "format": "classification"}}}
    job = await ended(running, await training.start("one", **spec))
    assert job.state is JobState.FAILED
    assert "spam" in job.message


async def test_a_job_is_cancelled_while_it_trains(running: ServerUnderTest, tmp_path: Path) -> None:
    await label_words(running, 60)
    spec = {**SPEC, "hyperparameters": {"epochs": 500.0}}
    job = await running.client.training.start("lengths", **spec)
    async for now in running.client.training.watch(job.id):
        job = now
        if job.progress.phase == "training" and job.progress.step > 1:
            await running.client.training.cancel(job.id)
    assert job.state is JobState.CANCELLED
    assert not (tmp_path / "data/training/jobs" / job.id / "work").exists()


async def test_a_policy_starts_a_job_when_its_count_is_reached(running: ServerUnderTest) -> None:
    policies = running.client.training.policies
    await policies.create("on-feedback", "lengths", min_new_feedback=40, **SPEC)
    await label_words(running, 39)
    await asyncio.sleep(0.5)
    assert [job async for job in running.client.training.list()] == []
    await label_words(running, 1, start=39)
    job = await first_job(running)
    assert job.policy == "on-feedback"
    job = await ended(running, job)
    assert job.state.is_final
    # Noted in a transaction after the one that stores the job.
    assert (await policies.get("on-feedback")).last_job == job.id
    await asyncio.sleep(0.5)
    assert len([job async for job in running.client.training.list()]) == 1


async def test_a_canary_is_sticky_and_rolls_back_on_bad_feedback(
    running: ServerUnderTest, tiny_base: TinyBase
) -> None:
    client = running.client
    await client.adapters.create("lengths", tiny_base.adapter(1))
    await label_words(running, 160)
    job = await client.training.start(
        "lengths",
        **SPEC,
        promotion={"mode": "canary", "canary_percent": 50, "canary_feedback": 8},
    )
    job = await ended(running, job)
    assert job.state is JobState.SUCCEEDED, job
    assert (await client.adapters.get("lengths")).traffic_split == {1: 50, 2: 50}

    served: dict[str, set[int]] = {}
    bad = 0
    for turn in range(12):
        for number in range(10):
            episode = f"episode-{number}"
            answer = await client.generate(
                [Message("user", f"the world {turn}")],
                adapter="lengths",
                max_tokens=2,
                episode_id=episode,
            )
            if not (await client.adapters.get("lengths")).traffic_split:
                break
            served.setdefault(episode, set()).add(answer.served_by.version)
            is_canary = answer.served_by.version == 2
            await client.feedback.submit(
                generation_id=answer.choices[0].generation_id,
                thumbs=not is_canary,
                author=f"{episode}/{turn}",
            )
            bad += is_canary
            if bad == 8:
                break
        if bad == 8:
            break
    assert all(len(versions) == 1 for versions in served.values()), "an episode switched versions"
    assert {1} in served.values()
    assert {2} in served.values()
    registry = running.server.registry
    await until(lambda: not registry.get_adapter("lengths").traffic_split)
    assert registry.get_adapter("lengths").live_version == 1
    assert bad <= 8
    await asyncio.sleep(0.5)
    assert "was rolled back" in (await client.training.get(job.id)).message
