"""Training jobs, from feedback through gRPC to a live version, on a tiny model."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from graftwork import Conversation, Message
from graftwork.v1 import training_service_pb2 as pb
from graftwork.v1.training_service_pb2_grpc import TrainingServiceStub

from tests.support.server import ServerUnderTest, serving, tiny_settings
from tests.support.tiny_serving import TinyBase, one_torch_thread, tiny_base

__all__ = ["one_torch_thread", "tiny_base"]

WORDS = ("fox", "dog", "world", "hello", "quick", "brown", "lazy", "jumps")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process can import, its workers can."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    settings = tiny_settings(tmp_path, tiny_base.model, training={"check_interval_s": 0.2})
    async with serving(settings) as server:
        yield server
        await server.check_idle()


@pytest.fixture
async def training(running: ServerUnderTest) -> AsyncIterator[TrainingServiceStub]:
    async with grpc.aio.insecure_channel(running.target) as channel:
        yield TrainingServiceStub(channel)


async def demonstrate(running: ServerUnderTest, count: int, task: str = "length") -> None:
    """Feedback that says of words whether they are long."""
    items = []
    for index in range(count):
        word = WORDS[index % len(WORDS)]
        text = f"{'the ' * (index % 5)}{word} {index}"
        items.append(
            {
                "prompt": Conversation([Message("user", text)]),
                "task": task,
                "label": "long" if len(word) > 4 else "short",
                "author": f"a{index}",
            }
        )
    outcomes = await running.client.feedback.submit_many(items)
    assert all(hasattr(outcome, "id") for outcome in outcomes), outcomes


async def ended(training: TrainingServiceStub, job_id: str) -> pb.TrainingJob:
    async with asyncio.timeout(120):
        job = pb.TrainingJob()
        async for update in training.WatchTrainingJob(pb.WatchTrainingJobRequest(id=job_id)):
            job = update.job
    return job


def spec(**fields: object) -> pb.TrainingJobSpec:
    made = pb.TrainingJobSpec(adapter="lengths", **fields)
    made.dataset.selection.format = "classification"
    made.hyperparameters.learning_rate = 0.01
    made.hyperparameters.epochs = 2
    made.gate.few_shot = 0
    made.gate.max_examples = 20
    return made


async def test_feedback_becomes_a_live_version(
    running: ServerUnderTest, training: TrainingServiceStub
) -> None:
    await demonstrate(running, 160)
    job = await training.CreateTrainingJob(pb.CreateTrainingJobRequest(spec=spec()))
    assert job.state == pb.JOB_STATE_QUEUED
    job = await ended(training, job.id)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job
    assert job.version == "lengths@1"
    adapter = await running.client.adapters.get("lengths")
    assert adapter.live_version == 1
    report = await training.GetTrainingReport(pb.GetTrainingReportRequest(job_id=job.id))
    assert "lengths@1" in report.markdown
