"""kill -9 of the trainer, then of the server, at random moments, while feedback comes in."""

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from graftwork import Client, Feedback, GraftworkError, JobState

from tests.support.postgresql import postgres_server
from tests.support.saved_models import save_tiny_model
from tests.support.server_process import ServerProcess, server_process

TASK = ADAPTER = "lengths"
WORDS = ("fox", "dog", "world", "hello", "quick", "brown", "lazy", "jumps")
SPEC = {
    "dataset": {"selection": {"tasks": [TASK], "format": "classification"}},
    "hyperparameters": {"learning_rate": 0.01, "max_steps": 60},
    "gate": {
        "few_shot": 0,
        "max_examples": 10,
        "min_gain_over_base": -1.0,
        "max_regression": 1.0,
        "max_other_task_regression": 1.0,
    },
    "limits": {"max_retries": 3},
}
# Nobody else waits for this server, and the rounds are many.
OPTIONS = ("--training-scheduling", "nice", "--training-niceness", "0")


@dataclass
class World:
    """What the callers of all servers know."""

    data: Path
    model: Path
    options: tuple[str, ...]
    acknowledged: set[str] = field(default_factory=set)  # ids of feedback
    jobs: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextlib.contextmanager
    def server(self) -> Iterator[ServerProcess]:
        with server_process(self.data, self.model, *self.options, timeout_s=120) as server:
            yield server

    def items(self, count: int) -> list[dict]:
        return [
            {
                "prompt": f"{'the ' * (number % 5)}{WORDS[number % len(WORDS)]} {number}",
                "task": TASK,
                "label": "long" if len(WORDS[number % len(WORDS)]) > 4 else "short",
                "author": f"a{number}",
            }
            for number in itertools.islice(self.numbers, count)
        ]


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    model = save_tiny_model("llama", tmp_path / "model")
    if request.param == "sqlite":
        yield World(tmp_path / "data", model, OPTIONS)
        return
    with postgres_server() as postgres:
        yield World(tmp_path / "data", model, (*OPTIONS, "--journal-url", postgres.url))


@pytest.mark.timeout(3600)
@pytest.mark.slow
def test_killed_while_training(world: World) -> None:
    rounds = int(os.environ.get("KILL_ROUNDS", "50"))
    chance = random.Random(0)
    killed = {"trainer": 0, "server": 0}
    for _ in range(rounds):
        with world.server() as server, Client(server.target, timeout=30) as client:
            check_consistent(client, world)
            start_if_none_is_active(client, world)
            for victim in ("trainer", "server"):
                moment = chance.uniform(0.5, 12.0)
                killed[victim] += submit_until_killed(server, client, world, victim, moment)
    with world.server() as server, Client(server.target, timeout=30) as client:
        check_consistent(client, world)
        start_if_none_is_active(client, world)
        check_ends(client, world)
        assert server.terminate() == 0
    assert killed["server"] == rounds
    assert rounds < 10 or killed["trainer"] > rounds / 3, "too few trainers to say anything"
    assert len(world.acknowledged) > 20 * rounds, "too little feedback to say anything"


def start_if_none_is_active(client: Client, world: World) -> None:
    active = list(client.training.list(ADAPTER, JobState.QUEUED, JobState.RUNNING))
    assert len(active) <= 1
    if not active:
        submit(client, world, world.items(60))
        world.jobs.append(client.training.start(ADAPTER, **SPEC).id)


def submit(client: Client, world: World, items: list[dict]) -> None:
    outcomes = client.feedback.submit_many(items)
    assert all(isinstance(outcome, Feedback) for outcome in outcomes), outcomes
    world.acknowledged |= {outcome.id for outcome in outcomes}


def submit_until_killed(
    server: ServerProcess, client: Client, world: World, victim: str, after_s: float
) -> bool:
    """Whether there was someone to kill."""
    killed: list[int] = []

    def kill() -> None:
        pids = [server.process.pid] if victim == "server" else workers_of(server)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Timer(after_s, kill)
    killer.start()
    while killer.is_alive() or (victim == "server" and server.process.poll() is None):
        try:
            submit(client, world, world.items(10))
        except GraftworkError:
            assert victim == "server", "feedback was refused though only a trainer was killed"
            break
        time.sleep(0.1)
    killer.join()
    return bool(killed)


def workers_of(server: ServerProcess) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [
            child.pid
            for child in psutil.Process(server.process.pid).children()
            if "graftwork_trainer.worker" in child.cmdline()
        ]
    return []


def check_consistent(client: Client, world: World) -> None:
    found = {feedback.id for feedback in client.feedback.list(page_size=1000)}
    assert found >= world.acknowledged, "acknowledged feedback is gone"
    jobs = {job.id: job for job in client.training.list(ADAPTER)}
    assert jobs.keys() >= set(world.jobs), "an acknowledged job is gone"
    for job in jobs.values():
        assert job.state is not JobState.FAILED or job.message, job
    for version in client.adapters.versions():
        answer = client.generate("the fox 1", adapter=version.selector, max_tokens=2)
        assert answer.served_by.digest == version.digest
    of_jobs = [job.version for job in jobs.values() if job.version]
    assert len(set(of_jobs)) == len(of_jobs), "a version belongs to two jobs"


def check_ends(client: Client, world: World) -> None:
    """The jobs go on by themselves, and what is live has passed."""
    for job_id in world.jobs:
        job = client.training.wait(job_id, timeout=120)
        assert job.state.is_final
        assert job.message, "it ended without a reason"
    jobs = [client.training.get(job_id) for job_id in world.jobs]
    succeeded = [job.version for job in jobs if job.state is JobState.SUCCEEDED]
    assert succeeded, [job.message for job in jobs]
    live = client.adapters.get(ADAPTER).live_version
    assert f"{ADAPTER}@{live}" in succeeded
    versions = [version.selector for version in client.adapters.versions(ADAPTER)]
    of_jobs = {job.version for job in jobs if job.version}
    assert set(versions) == of_jobs, "a job registered its candidate twice"
